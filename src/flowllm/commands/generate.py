"""Sample crystals for given conditions that the model was trained on (`flowllm generate`)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from cyclopts.validators import Number

from flowllm.commands.options import DEFAULT_CONFIG, ConfigFiles, RowName
from flowllm.config.load import load_config
from flowllm.config.sections.llm import Base, Prompts, SampleBase
from flowllm.config.stage_settings import StageSettings
from flowllm.data.wishes import ElementsMode, Words, read_wishes
from flowllm.errors import FlowllmError
from flowllm.io.schemas import BASE
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.model_record import read_record
from flowllm.llm.prompts import prompt_text
from flowllm.llm.redraws import Form
from flowllm.llm.sampling import DrawRequest, base_row, write_samples
from flowllm.llm.wishes import Target, form_of, request_of, target_of
from flowllm.runtime.log import setup_logging
from flowllm.runtime.provenance import stage_run
from flowllm.seeds import derive

SpaceGroup = Annotated[int, Parameter(validator=Number(gte=1, lte=230))]


class Settings(StageSettings):
    """The settings of sampling, those of the stage `sample_base`."""

    sample_base: SampleBase
    prompts: Prompts
    base: Base


def run(
    *,
    model: Path,
    out: Path,
    formula: str | None = None,
    elements: str | None = None,
    elements_mode: ElementsMode | None = None,
    num_atoms: PositiveInt | None = None,
    formation_energy_per_atom: float | None = None,
    band_gap: float | None = None,
    e_above_hull: float | None = None,
    space_group_number: SpaceGroup | None = None,
    conditions: Path | None = None,
    count: PositiveInt = 1,
    gpus: NonNegativeInt = 0,
    config: ConfigFiles = None,
    name: RowName = None,
) -> None:
    """Sample crystals for given conditions, for a file of conditions, or without any.

    Args:
        model: Folder of the merged model.
        out: Table of crystals to write.
        formula: Formula of the cell, e.g. Na4Cl4.
        elements: Elements of the crystal, e.g. Na,Cl.
        elements_mode: Whether all of the elements must occur (exact), or at least one (subset).
            [exact]
        num_atoms: Number of atoms per cell.
        formation_energy_per_atom: Formation energy in eV per atom.
        band_gap: Band gap in eV.
        e_above_hull: Energy above the hull in eV per atom.
        space_group_number: Number of the space group.
        conditions: CSV file with one column per condition and one row per set of conditions.
        count: Crystals per set of conditions.
        gpus: Number of GPUs, 0 for the CPU.
        config: See `options.ConfigFiles`.
        name: See `options.RowName`; a base.

    Raises:
        FlowllmError: conditions are invalid or given twice, or the model was not trained on them.
    """
    setup_logging(None)
    loaded = load_config(config or DEFAULT_CONFIG)
    settings = Settings.from_config("sample_base", loaded, name or loaded.bases[0].name)
    given = {
        "formula": formula,
        "elements": elements,
        "elements_mode": elements_mode,
        "num_atoms": num_atoms,
        "formation_energy_per_atom": formation_energy_per_atom,
        "band_gap": band_gap,
        "e_above_hull": e_above_hull,
        "space_group_number": space_group_number,
    }
    words = {key: str(value) for key, value in given.items() if value is not None}
    if conditions is not None and words:
        raise FlowllmError("Give conditions either as options or as a file, not both.")
    own = read_record(model).own(settings.prompts)
    asked = read_wishes(conditions, own) if conditions else [words]
    generate(settings, model=model, asked=asked, count=count, out=out, gpus=gpus)


def generate(
    settings: Settings,
    *,
    model: Path,
    asked: Sequence[Words],
    count: int,
    out: Path,
    gpus: int,
) -> None:
    """Sample crystals for the given conditions.

    Args:
        settings: settings of `sample_base`.
        model: folder of the merged model.
        asked: sets of conditions as text, see `data.wishes`.
        count: crystals per set.
        out: table to write (`schemas.BASE`); ids are `sample-{conditions}-{number}`.
        gpus: GPUs to use, 0 for the CPU.

    Raises:
        FlowllmError: conditions are invalid, or the model was not trained on such prompts.
    """
    opened = ModelFolder(model, settings.prompts)
    prompts, record = settings.prompts, opened.record
    targets = [target_of(prompts, record, words) for words in asked]
    structured = settings.sample_base.structured
    forms = [form_of(one, prompts, record) if structured else None for one in targets]
    sampler = opened.sampler(
        [target.conditions for target in targets],
        temperature=settings.base.temperature,
        top_p=settings.base.top_p,
        max_attempts=settings.sample_base.max_attempts,
        restrict_tokens=settings.sample_base.restrict_tokens,
        reject_close_atoms=settings.sample_base.reject_close_atoms,
        min_distance=settings.sample_base.min_distance,
        max_redraws=settings.sample_base.max_redraws,
        backend=settings.sample_base.backend,
        gpus=gpus,
    )
    numbers = [(i, j) for i in range(len(targets)) for j in range(count)]

    def make_rows(items: range) -> list[dict[str, Any]]:
        chosen = [numbers[k] for k in items]
        tasks = [_request(settings, targets[i], forms[i], i, j) for i, j in chosen]
        return [
            base_row(
                f"sample-{i:04d}-{j:06d}", outcome, prompt_text(prompts, targets[i].conditions)
            )
            for (i, j), outcome in zip(chosen, sampler.draw(tasks), strict=True)
        ]

    work = {"asked": [dict(words) for words in asked], "count": count}
    with stage_run(settings, inputs={"model": model}, output=out, work=work) as run:
        chunk = settings.sample_base.chunk_size
        write_samples(sampler, out, run, BASE, len(numbers), chunk, make_rows)


def _request(settings: Settings, target: Target, form: Form | None, i: int, j: int) -> DrawRequest:
    seed = partial(derive, settings.seed, "sample", settings.base.name, i, j)
    return request_of(target, form, seed)
