"""The sections of the language model: prompts, fine-tuning, sampling."""

import re
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

from flowllm.config.sections.base import Fraction, Name, OwnPath, Probability, Section

CONDITIONS = (
    "formula",
    "elements",
    "formation_energy_per_atom",
    "band_gap",
    "e_above_hull",
    "space_group_number",
)
"""What a prompt can give of a crystal, in the order of its sentences."""


class Prompts(Section):
    """What the language model is asked, in training and sampling alike."""

    introduction: str
    formula: str = Field(description="sentence with {formula}")
    elements: str = Field(description="sentence with {elements}, and so for the following")
    formation_energy_per_atom: str
    band_gap: str
    e_above_hull: str
    space_group_number: str
    instruction: str
    infill: str = Field(description="before a crystal with one element hidden: asks for {mask}")
    mask: str = Field(description="word in the place of a hidden element's symbol")
    formula_style: Literal["atoms", "cell", "reduced"]

    @model_validator(mode="after")
    def _values_are_used(self) -> "Prompts":
        for name in CONDITIONS:
            if f"{{{name}}}" not in getattr(self, name):
                raise ValueError(f"{name} must contain {{{name}}}")
        if "{mask}" not in self.infill:
            raise ValueError("infill must contain {mask}")
        return self

    @model_validator(mode="after")
    def _values_are_told_apart(self) -> "Prompts":
        """Each sentence gives one value, and no two sentences read alike."""
        allowed = {name: {name} for name in CONDITIONS} | {"infill": {"mask"}}
        for name in ("introduction", *CONDITIONS, "instruction", "infill"):
            found = set(re.findall(r"\{(\w*)\}", getattr(self, name)))
            if foreign := sorted(found - allowed.get(name, set())):
                raise ValueError(
                    f"{name}: {{{foreign[0]}}} would stay in the prompt as it is; a sentence gives "
                    "the one value that it is named after"
                )
        read: dict[str, str] = {}
        for name in CONDITIONS:
            sentence = getattr(self, name).replace(f"{{{name}}}", "{}")
            if sentence in read:
                raise ValueError(
                    f"{read[sentence]} and {name} have the same sentence, so a prompt would not "
                    "say which of the two values it gives"
                )
            read[sentence] = name
        return self

    @field_validator("mask")
    @classmethod
    def _mask_is_one_word(cls, mask: str) -> str:
        if len(mask.split()) != 1 or mask != mask.strip():
            raise ValueError("must be one word without spaces: it stands in a symbol's line")
        if re.fullmatch(r"[A-Z][a-z]?", mask):
            raise ValueError("looks like an element's symbol; take a word that no element has")
        return mask


Quantization = Literal["nf4", "int8", "none"]
"""Of frozen weights: 4-bit NormalFloat (QLoRA), 8-bit integers (LLM.int8()), or not at all."""


class FinetuneLlm(Section):
    """LoRA fine-tuning of the base language model."""

    base_model: OwnPath = Field(
        description="name on the Hugging Face hub, a folder, or smollm2-135m"
    )
    quantization: Quantization
    precision: Literal["bf16", "fp32"]
    lora_rank: PositiveInt
    lora_alpha: PositiveFloat
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    epochs: PositiveInt
    max_steps: PositiveInt | None = Field(description="stop after this many optimiser steps")
    batch_size: PositiveInt = Field(description="texts an optimiser step, over all GPUs")
    micro_batch_size: PositiveInt = Field(description="texts at once on one GPU")
    learning_rate: PositiveFloat
    warmup_steps: NonNegativeInt
    weight_decay: NonNegativeFloat
    max_grad_norm: PositiveFloat
    max_tokens: PositiveInt = Field(description="longer texts are left out, and counted")
    gradient_checkpointing: bool
    sharding: Literal["none", "fsdp"] = Field(description="of the frozen weights over the GPUs")
    loss_on: Literal["text", "crystal"] = Field(description="prompt and crystal, or crystal only")
    infill_share: Fraction = Field(description="share of texts that ask for one hidden element")
    formula_share: Fraction = Field(description="share of prompts that give the formula alone")
    properties_share: Fraction = Field(description="share that give some of all that is known")
    augment_translation: bool = Field(description="move each training crystal anew every epoch")
    augment_permutation: bool = Field(description="shuffle its atoms anew every epoch")
    validation_rows: PositiveInt
    eval_steps: PositiveInt
    patience: PositiveInt | None = Field(description="validations without gain before stopping")
    save_steps: PositiveInt

    @model_validator(mode="after")
    def _int8_is_not_sharded(self) -> "FinetuneLlm":
        if self.sharding == "fsdp" and self.quantization == "int8":
            raise ValueError("sharding fsdp takes the quantizations nf4 and none; int8 is not cut")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> "FinetuneLlm":
        if self.max_steps is not None and self.warmup_steps > self.max_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} exceed max_steps {self.max_steps}, so the "
                "learning rate would never reach learning_rate; lower warmup_steps"
            )
        return self

    @model_validator(mode="after")
    def _shares_leave_room(self) -> "FinetuneLlm":
        if self.infill_share + self.formula_share + self.properties_share > 1:
            raise ValueError("infill_share, formula_share and properties_share exceed 1 together")
        return self


MAX_LOSS_RISE = 0.02
"""Nats per token by which merging may raise the validation loss without a warning. Measured with
SmolLM2-135M after 30 steps beside nf4 weights (loss 0.6579): the original weights cost 0.028, the
dequantized ones rounded to bfloat16 0.0004, in float32 nothing."""


class MergeAdapter(Section):
    """How the adapter becomes part of the base model's weights."""

    into: Literal["dequantized", "original"] = Field(
        description="weights that the adapter is added to: rounded as in training, or not"
    )


class Invariance(Section):
    """How well the language model knows that a crystal has no origin and its atoms no order."""

    num_crystals: PositiveInt = Field(description="validation crystals, the first ones")
    num_transformations: PositiveInt = Field(description="translations, and as many permutations")
    batch_size: PositiveInt = Field(description="texts at once; memory only")


Backend = Literal["vllm", "transformers"]


def _check_structured(structured: bool, backend: Backend) -> None:
    """Refuse a grammar without the engine that holds to it."""
    if structured and backend != "vllm":
        raise ValueError(
            f"structured: true needs backend: vllm, since {backend} holds to no grammar; set "
            "structured: false or backend: vllm"
        )


class SamplePairs(Section):
    """Mass sampling of the pairs (c0, c1) that the flow is trained on."""

    temperature: PositiveFloat
    top_p: Probability
    backend: Backend
    restrict_tokens: bool = Field(description="draw only tokens that crystal text consists of")
    structured: bool = Field(description="grammar that fixes the form and the formula's atoms")
    reject_close_atoms: bool = Field(
        description="draw a text again that has two atoms at one point"
    )
    draws_per_prompt: PositiveInt = Field(description="consecutive draws of one crystal and prompt")
    max_attempts: PositiveInt = Field(description="drafts a pair before it is given up")
    chunk_size: PositiveInt = Field(description="prompts at once; what a kill can cost")

    @model_validator(mode="after")
    def _engine_holds_to_grammar(self) -> "SamplePairs":
        _check_structured(self.structured, self.backend)
        return self


class Base(Section):
    """One way of drawing unconditional crystals from the language model."""

    name: Name
    temperature: PositiveFloat
    top_p: Probability


class SampleBase(Section):
    """Unconditional sampling, the start of generation."""

    backend: Backend
    restrict_tokens: bool = Field(description="draw only tokens that crystal text consists of")
    structured: bool = Field(description="grammar that fixes the form of the text")
    reject_close_atoms: bool = Field(
        description="draw a text again that has two atoms at one point"
    )
    max_attempts: PositiveInt
    chunk_size: PositiveInt

    @model_validator(mode="after")
    def _engine_holds_to_grammar(self) -> "SampleBase":
        _check_structured(self.structured, self.backend)
        return self


class CspBase(Section):
    """One way of drawing crystals of the test split's formulas: structure prediction."""

    name: Name
    temperature: PositiveFloat
    top_p: Probability
    attempts: PositiveInt = Field(description="crystals a formula; the nearest counts")
