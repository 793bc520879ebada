"""The sections of flow matching: training, base distributions, integration."""

from typing import Annotated, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from flowllm.config.sections.base import Name, OwnPath, Row, Section


class TrainRfm(Section):
    """The velocity network and its training."""

    start: OwnPath | None = Field(
        description="folder rfm of an earlier run (each flow continues from the network of its own "
        "name there), or folder of one network; null (paper): random weights",
    )
    hidden_dim: PositiveInt = Field(description="features per atom; public code")
    num_layers: PositiveInt = Field(description="message-passing layers; public code")
    time_dim: PositiveInt = Field(description="features of the time embedding; public code")
    num_frequencies: PositiveInt = Field(
        description="Fourier frequencies of the coordinates' differences, equation 16; public code"
    )
    angle_bounds: tuple[float, float] = Field(
        description="degrees; open interval of the logit of the angles; equation 7, bounds "
        "of the public code",
    )
    lambda_f: PositiveFloat = Field(
        description="weight of the coordinates in the loss; paper, App. C"
    )
    lambda_l: PositiveFloat = Field(description="weight of the lattice in the loss; paper, App. C")
    epochs: PositiveInt = Field(description="passes over the training pairs; paper, App. C")
    max_steps: PositiveInt | None = Field(description="optimizer steps; null: all epochs")
    batch_size: PositiveInt = Field(description="pairs per optimizer step; public code")
    learning_rate: PositiveFloat = Field(
        description="initial learning rate of AdamW; public code; paper: chosen in 1e-3 to 1e-4"
    )
    min_learning_rate: NonNegativeFloat = Field(
        description="learning rate at the end of the cosine schedule; public code"
    )
    weight_decay: NonNegativeFloat = Field(description="AdamW's weight decay; public code")
    clip_value: PositiveFloat = Field(
        description="bound of each entry of the gradient; public code"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="decay of the moving average of the weights; public code"
    )
    precision: Literal["bf16", "fp32"] = Field(description="fp32 (public code) or bf16")
    compile: bool = Field(
        description="whether torch.compile compiles the layers; faster on a GPU and in long "
        "runs, needs a C++ compiler",
    )
    val_steps: PositiveInt = Field(
        description="optimizer steps between validations; 25000 are about one epoch of 3.3 "
        "million pairs",
    )
    patience: PositiveInt | None = Field(
        description="validations without gain before training stops, null: never; the paper "
        "stops early but gives no number",
    )
    match_atoms: bool = Field(
        description="whether c1's atoms of each species are reordered and its origin moved, "
        "to reduce the distance from c0; not in the paper",
    )
    augment_axes: bool = Field(
        description="whether each epoch draws an order and directions of the cell's axes; "
        "useful for few pairs; paper: false",
    )

    @property
    def has_symmetric_bounds(self) -> bool:
        """Whether the bounds of the angles are symmetric about 90 degrees."""
        return abs(sum(self.angle_bounds) - 180) <= 1e-9

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
                "and be within 0 to 180 degrees; the paper's is [59.9, 120.1]"
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
        if self.augment_axes and not self.has_symmetric_bounds:
            raise ValueError(
                f"augment_axes replaces angles by their supplements, so angle_bounds must be "
                f"symmetric about 90 degrees (got {list(self.angle_bounds)})"
            )
        return self


class LlmFlow(Row):
    """A velocity network that starts from the language model's crystals."""

    optional_keys: ClassVar[frozenset[str]] = frozenset(("augment_axes",))

    name: Name = Field(description="name of the velocity network")
    start: Literal["llm"] = Field(
        description="llm (crystals of the language model; paper) or simple (FlowMM's base "
        "distribution with the atoms of the language model: FlowLLM-Types; "
        "paper, section 5.3)",
    )
    coords_noise: NonNegativeFloat = Field(
        description="for start llm, std of Gaussian noise in fractions of the cell, drawn "
        "in each epoch; paper, App. F (levels are not given)",
    )
    lengths_noise: NonNegativeFloat = Field(description="likewise, in angstrom")
    angles_noise: NonNegativeFloat = Field(description="likewise, in degrees")
    augment_axes: bool | None = Field(
        None,
        description="in place of train_rfm.augment_axes for this network; null: "
        "train_rfm.augment_axes",
    )


class SimpleFlow(Row):
    """A velocity network that starts from FlowMM's base and the language model's atoms."""

    optional_keys: ClassVar[frozenset[str]] = frozenset(("augment_axes",))

    name: Name = Field(description="name of the velocity network")
    start: Literal["simple"] = Field(
        description="FlowMM's base distribution with the atoms of the language model"
    )
    augment_axes: bool | None = Field(None, description="as for start llm")


Flow = Annotated[LlmFlow | SimpleFlow, Field(discriminator="start")]
"""One velocity network: the base distribution that it carries to the data."""

TRAIN_COMPOSITIONS = "train_compositions"
"""The baseline without a language model: compositions of random training crystals, and FlowMM's
base distribution for cells and coordinates."""


class Method(Row):
    """One row of the results: a base and how it is refined."""

    optional_keys: ClassVar[frozenset[str]] = frozenset(("keep_symmetry",))

    name: Name = Field(description="name of the row in the results")
    base: Name = Field(
        description="a name of bases (of csp_bases for csp_methods), of external_samples "
        "(given crystals), or train_compositions (baseline without a language model)",
    )
    flow: Name | None = Field(
        description="a name of flows; null: the crystal of the language model is kept"
    )
    num_steps: NonNegativeInt = Field(description="integration steps; 0 without a flow")
    keep_symmetry: bool | None = Field(
        None,
        description="in place of refine.keep_symmetry for this row; null: refine.keep_symmetry",
    )

    @model_validator(mode="after")
    def _steps_need_a_flow(self) -> "Method":
        if (self.flow is None) != (self.num_steps == 0):
            raise ValueError("a method has a flow and num_steps > 0, or flow null and num_steps 0")
        if self.flow is None and self.keep_symmetry is not None:
            raise ValueError("keep_symmetry is for a method with a flow; remove it")
        return self


class Refine(Section):
    """Integration of the learned velocity field."""

    integrator: Literal["euler", "midpoint", "heun", "rk4"] = Field(
        description="euler (public code), midpoint, heun or rk4; 1, 2, 2 or 4 evaluations per step"
    )
    batch_memory_mb: PositiveInt = Field(
        description="MB; memory of the crystals that are integrated together, all of one "
        "number of atoms",
    )
    anneal_slope: NonNegativeFloat = Field(
        description="s in the factor 1 + s t of the coordinate velocity; FlowMM's anti-annealing"
    )
    keep_symmetry: bool = Field(
        description="whether the draft is moved onto its space group (tolerance 0.1 "
        "angstrom), which the flow then keeps; paper: false",
    )
    trajectory_every: PositiveInt | None = Field(
        description="integration steps between saved crystals (trajectories/); null: none are saved"
    )
