"""The sections of the metrics and of the report."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, StringConstraints

from flowllm.config.sections.base import Section


class Fingerprints(Section):
    """Fingerprints for coverage."""

    max_seconds: PositiveFloat = Field(description="wall time a crystal; CrystalNN can hang")


class Metrics(Section):
    """Rules of the metrics."""

    novelty_against: Literal["train", "train_val"]
    oxidation_states: Literal["smact14", "icsd16", "icsd24"]


class Report(Section):
    """The HTML page."""

    title: str
    color: Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")]
