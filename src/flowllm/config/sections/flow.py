"""The sections of flow matching: training, base distributions, integration."""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from flowllm.config.sections.base import Name, Section


class TrainRfm(Section):
    """The velocity network and its training."""

    hidden_dim: PositiveInt
    num_layers: PositiveInt
    time_dim: PositiveInt
    num_frequencies: PositiveInt
    angle_bounds: tuple[float, float] = Field(description="degrees, open interval of the logit map")
    lambda_f: PositiveFloat
    lambda_l: PositiveFloat
    epochs: PositiveInt
    max_steps: PositiveInt | None
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    min_learning_rate: NonNegativeFloat
    weight_decay: NonNegativeFloat
    clip_value: PositiveFloat
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["bf16", "fp32"]
    compile: bool = Field(description="compile the network's layers by torch.compile")
    val_steps: PositiveInt = Field(description="optimiser steps between validations")
    patience: PositiveInt | None = Field(description="validations without gain before stopping")
    match_atoms: bool = Field(
        description="reduce the distance from c0 to c1: order of the atoms of each species, origin"
    )
    augment_axes: bool = Field(description="the cell's axes in random order and direction")

    @field_validator("angle_bounds")
    @classmethod
    def _bounds_hold_reduced_cells(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        """The logit maps an open interval; a reduced cell's angles are 60 to 120 degrees."""
        low, high = bounds
        if not low < high:
            raise ValueError("the lower bound comes first, and the two differ")
        if not (0 <= low < 60 and 120 < high <= 180):
            raise ValueError(
                "the open interval must contain the angles of a reduced cell, 60 to 120 degrees, "
                "and lie within 0 to 180 degrees; the paper's is [59.9, 120.1]"
            )
        return bounds

    @model_validator(mode="after")
    def _rate_falls(self) -> "TrainRfm":
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} exceeds learning_rate "
                f"{self.learning_rate}; the cosine falls from learning_rate to min_learning_rate"
            )
        return self

    @model_validator(mode="after")
    def _supplements_are_negatives(self) -> "TrainRfm":
        if self.augment_axes and abs(sum(self.angle_bounds) - 180) > 1e-9:
            raise ValueError(
                f"augment_axes turns angles into their supplements, so angle_bounds must lie even "
                f"about 90 degrees (given {list(self.angle_bounds)})"
            )
        return self


class LlmFlow(Section):
    """A velocity network that starts from the language model's crystals."""

    name: Name
    start: Literal["llm"]
    coords_noise: NonNegativeFloat = Field(description="std of Gaussian noise, fractions of a cell")
    lengths_noise: NonNegativeFloat = Field(description="std of Gaussian noise, angstrom")
    angles_noise: NonNegativeFloat = Field(description="std of Gaussian noise, degrees")


class SimpleFlow(Section):
    """A velocity network that starts from FlowMM's base and the language model's atoms."""

    name: Name
    start: Literal["simple"]


Flow = Annotated[LlmFlow | SimpleFlow, Field(discriminator="start")]
"""One velocity network: the base distribution that it carries to the data."""

TRAIN_COMPOSITIONS = "train_compositions"
"""The base without a language model: atoms of random training crystals, all else FlowMM's base."""


class Method(Section):
    """One row of the results: a base and how it is refined."""

    name: Name
    base: Name = Field(description="a row of bases, or train_compositions")
    flow: Name | None = Field(description="null keeps the LLM's crystal")
    num_steps: NonNegativeInt = Field(description="integration steps; 0 without a flow")

    @model_validator(mode="after")
    def _steps_need_a_flow(self) -> "Method":
        if (self.flow is None) != (self.num_steps == 0):
            raise ValueError("a method has a flow and num_steps > 0, or flow null and num_steps 0")
        return self


class Refine(Section):
    """Integration of the learned velocity field."""

    integrator: Literal["euler", "midpoint", "heun", "rk4"]
    batch_memory_mb: PositiveInt = Field(description="memory that a batch of crystals may take")
    anneal_slope: NonNegativeFloat = Field(description="coordinate velocity times 1 + slope * t")
    keep_symmetry: bool = Field(
        description="move the start onto its space group, found within 0.1 angstrom, and keep it"
    )
    trajectory_every: PositiveInt | None = Field(
        description="save the crystals after every so many steps, null for none"
    )
