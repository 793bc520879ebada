"""The part of the configuration that one job is given."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, TypeAdapter, ValidationError

from flowllm.config.model import Config
from flowllm.config.problems import list_problems
from flowllm.config.sections.data import External
from flowllm.config.sections.flow import Flow, Method
from flowllm.config.sections.llm import Base, CspBase
from flowllm.config.stages import STAGES, ListName
from flowllm.errors import FlowllmError

_ROW_MODELS: dict[ListName, Any] = {
    "flow": Flow,
    "base": Base,
    "csp_base": CspBase,
    "method": Method,
    "external": External,
}


def stage_values(config: Config, stage: str, row: str | None = None) -> dict[str, Any]:
    """Return what a stage's job depends on as plain values, for its `--settings`.

    Args:
        config: the whole configuration.
        stage: the stage's name.
        row: name of the flow, base or method, for a stage whose jobs are given one.
    """
    kind = STAGES[stage].row
    values = config.model_dump(mode="json", include=set(STAGES[stage].sections))
    for section, _, key in (name.partition(".") for name in STAGES[stage].ignores):
        values[section][key] = None
    for section in STAGES[stage].limits:
        kept = _extended(section).model_fields
        values[section] = {key: values[section][key] for key in kept}
    if kind is not None and row is not None:
        values[kind] = config.row(kind, row).model_dump(mode="json")
    return {"seed": config.seed, "version": STAGES[stage].version, **values}


def stage_json(config: Config, stage: str, row: str | None = None) -> str:
    """Return `stage_values` as JSON with sorted keys, so that equal settings are equal text."""
    return json.dumps(stage_values(config, stage, row), sort_keys=True)


class StageSettings:
    """What a job was given, by section as attributes.

    A stage declares its sections in a subclass, by which the type checker finds a mistyped one:

        class Settings(StageSettings):
            prepare: Prepare

    At run time, access to any section that the stage is not given is an error as well.

    Attributes:
        stage: the stage's name.
        seed: the configuration's seed.
        version: the stage's version.
        values: the sections as plain values, for the provenance record.
    """

    stage: str
    seed: int
    version: int
    values: dict[str, Any]

    def __init__(self, stage: str, given: Mapping[str, Any]) -> None:
        """Check and keep the values of `stage_values`.

        Raises:
            FlowllmError: a section is missing, unknown, or has a bad value.
        """
        types = _section_types(stage)
        expected = {"seed", "version", *types}
        if set(given) != expected:
            raise FlowllmError(
                f"settings of {stage}: expected {sorted(expected)}, got {sorted(given)}"
            )
        self.stage = stage
        self.seed = int(given["seed"])
        self.version = int(given["version"])
        self.values = {name: given[name] for name in types}
        for name, kind in types.items():
            try:
                setattr(self, name, TypeAdapter(kind).validate_python(given[name]))
            except ValidationError as error:
                raise FlowllmError(f"settings of {stage}:\n{list_problems(error, name)}") from error

    # Hidden from the type checker, which would allow every name because of it.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            stage = self.__dict__.get("stage")  # missing while a copy is made
            raise AttributeError(
                f"a job of {stage} is not given {name!r}; see config.stages.STAGES"
            )

    @classmethod
    def from_json(cls, stage: str, text: str) -> Self:
        """Parse the JSON that a rule passes.

        Raises:
            FlowllmError: the text is not a JSON object, or as in the constructor.
        """
        try:
            given = json.loads(text)
        except json.JSONDecodeError as error:
            raise FlowllmError(f"--settings of {stage}: not JSON: {error}") from error
        if not isinstance(given, dict):
            raise FlowllmError(f"--settings of {stage}: expected an object with keys")
        return cls(stage, given)

    @classmethod
    def from_config(cls, stage: str, config: Config, row: str | None = None) -> Self:
        """Return a stage's part of a whole configuration.

        Raises:
            FlowllmError: as in the constructor.
        """
        return cls(stage, stage_values(config, stage, row))


def _section_types(stage: str) -> dict[str, Any]:
    """Return the types of a stage's sections by name, and of its row where it has one."""
    about = STAGES[stage]
    types: dict[str, Any] = {name: Config.model_fields[name].annotation for name in about.sections}
    types |= {name: _extended(name) for name in about.limits}
    return types if about.row is None else {**types, about.row: _ROW_MODELS[about.row]}


def _extended(section: str) -> type[BaseModel]:
    """Return the class that a section's class extends."""
    kind: Any = Config.model_fields[section].annotation
    extended: type[BaseModel] = kind.__base__
    return extended
