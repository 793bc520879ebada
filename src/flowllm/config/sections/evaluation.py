"""The sections of the metrics and of the report."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, StringConstraints

from flowllm.config.sections.base import Section


class Fingerprints(Section):
    """Fingerprints for coverage."""

    max_seconds: PositiveFloat = Field(
        description="wall time per crystal in seconds; a crystal that takes longer counts "
        "as not covered",
    )


class Metrics(Section):
    """Rules of the metrics."""

    novelty_against: Literal["train", "train_val"] = Field(
        description="crystals that a novel crystal must not match: train (paper, App. D) or "
        "train_val (paper, section 5.3: train or validation)",
    )
    known_crystals: str | None = Field(
        description="table of further crystals that a novel crystal must not match, with the "
        "columns of crystals/train.parquet: those of the run that the models continue from; "
        "null: none",
    )
    oxidation_states: Literal["smact14", "icsd16", "icsd24"] = Field(
        description="SMACT's list of oxidation states: smact14 (used in earlier "
        "publications), icsd16 or icsd24 (other numbers)",
    )


class Report(Section):
    """The HTML page."""

    title: str = Field(description="title of the page")
    color: Annotated[str, StringConstraints(pattern=r"^#[0-9a-fA-F]{6}$")] = Field(
        description="main color of the figures, #RRGGBB"
    )
