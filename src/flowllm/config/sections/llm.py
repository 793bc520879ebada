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
from flowllm.config.sections.conditions import BaseConditions, PropertyName
from flowllm.config.sections.scratch import SCRATCH, Scratch

CONDITIONS = (
    "formula",
    "elements",
    "formation_energy_per_atom",
    "band_gap",
    "e_above_hull",
    "space_group_number",
)
"""Properties of a crystal that a prompt can give, in the order of its sentences."""


CrystalTextName = Literal["coordinates", "symmetric"]
"""Kinds of crystal text."""


class Prompts(Section):
    """Prompts and crystal text of the language model, the same in training and sampling."""

    crystal_text: CrystalTextName = Field(
        description="what the model writes: coordinates (every atom; paper) or symmetric (space "
        "group and one atom per orbit; needs prepare.cell: standard)",
    )
    introduction: str = Field(description="first sentence of every prompt")
    formula: str = Field(description="sentence with {formula}")
    elements: str = Field(description="sentence with {elements}")
    formation_energy_per_atom: str = Field(
        description="sentence with {formation_energy_per_atom}, eV/atom"
    )
    band_gap: str = Field(description="sentence with {band_gap}, eV")
    e_above_hull: str = Field(description="sentence with {e_above_hull}, eV/atom")
    space_group_number: str = Field(description="sentence with {space_group_number}, 1 to 230")
    properties: dict[PropertyName, str] = Field(
        description="sentences of prepare.properties by name, each with its name in braces",
    )
    instruction: str = Field(description="last sentence of every prompt that asks for a crystal")
    infill: str = Field(description="prompt before a crystal with one hidden element, with {mask}")
    mask: str = Field(description="word that replaces the hidden element's symbol")
    formula_style: Literal["atoms", "cell", "reduced"] = Field(
        description="atoms (Na Na Cl Cl, the most exact of those measured: "
        "docs/language_model.md), cell (Na2Cl2) or reduced (NaCl)",
    )

    @model_validator(mode="after")
    def _values_are_used(self) -> "Prompts":
        if own := sorted(set(self.properties) & {*type(self).model_fields, "num_atoms"}):
            raise ValueError(f"properties: the name {own[0]} is taken; use another one")
        for name, sentence in self.sentences.items():
            if f"{{{name}}}" not in sentence:
                raise ValueError(f"{name} must contain {{{name}}}")
        if "{mask}" not in self.infill:
            raise ValueError("infill must contain {mask}")
        return self

    @model_validator(mode="after")
    def _values_are_told_apart(self) -> "Prompts":
        """Refuse sentences that give another value than their own, and equal sentences."""
        sentences = self.sentences
        allowed = {name: {name} for name in sentences} | {"infill": {"mask"}}
        others = {name: getattr(self, name) for name in ("introduction", "instruction", "infill")}
        for name, text in (sentences | others).items():
            found = set(re.findall(r"\{(\w*)\}", text))
            if foreign := sorted(found - allowed.get(name, set())):
                raise ValueError(
                    f"{name}: {{{foreign[0]}}} would stay in the prompt as it is; remove it, since "
                    "a sentence gives only the value that it is named after"
                )
        read: dict[str, str] = {}
        for name, text in sentences.items():
            sentence = text.replace(f"{{{name}}}", "{}")
            if sentence in read:
                raise ValueError(
                    f"{read[sentence]} and {name} have the same sentence, so a prompt would not "
                    "say which of the two values it gives"
                )
            read[sentence] = name
        return self

    @property
    def sentences(self) -> dict[str, str]:
        """The sentences of all conditions by name, in their order in a prompt."""
        return {name: getattr(self, name) for name in CONDITIONS} | self.properties

    @field_validator("mask")
    @classmethod
    def _mask_is_one_word(cls, mask: str) -> str:
        if len(mask.split()) != 1 or mask != mask.strip():
            raise ValueError(
                "must be one word without spaces, since it replaces a symbol in its line"
            )
        if re.fullmatch(r"[A-Z][a-z]?", mask):
            raise ValueError("looks like an element's symbol; use another word")
        return mask


Quantization = Literal["nf4", "int8", "none"]
"""Of frozen weights: 4-bit NormalFloat (QLoRA), 8-bit integers (LLM.int8()), or none."""


class FinetuneLlm(Section):
    """Fine-tuning of the base language model."""

    base_model: OwnPath = Field(
        description="causal language model: name on the Hugging Face hub, folder, "
        "smollm2-135m, or scratch (a new network); paper: Llama-2-70b",
    )
    scratch: Scratch = Field(
        description="network of base_model scratch, a small Llama: width (features per token), "
        "layers and attention heads; 6 layers of 256 have 4.8 million weights; ours",
    )
    start: OwnPath | None = Field(
        description="folder of an earlier run that training continues from, with the same base "
        "model and prompts: llm/adapter, or llm/model for method full; null (paper): none",
    )
    method: Literal["lora", "full"] = Field(
        description="weights that are trained: lora (an adapter; paper) or full (all weights, "
        "kept in float32)",
    )
    quantization: Quantization = Field(
        description="of the frozen weights: nf4 (paper: 4-bit), int8 (public code) or none"
    )
    precision: Literal["bf16", "fp32"] = Field(description="of the computation: bf16 or fp32")
    lora_rank: PositiveInt = Field(description="rank of LoRA's matrices; paper, App. C")
    lora_alpha: PositiveFloat = Field(
        description="alpha of LoRA, whose update is multiplied by alpha / rank; paper, App. C"
    )
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="dropout probability of LoRA's inputs; public code"
    )
    epochs: PositiveInt = Field(description="passes over the training texts; paper, App. C")
    max_steps: PositiveInt | None = Field(description="optimizer steps; null: all epochs")
    batch_size: PositiveInt = Field(
        description="texts per optimizer step over all GPUs; paper, App. C"
    )
    micro_batch_size: PositiveInt = Field(
        description="texts per forward pass on one GPU; changes memory only"
    )
    learning_rate: PositiveFloat = Field(
        description="AdamW's learning rate after the warm-up, then cosine to zero; paper, App. C"
    )
    warmup_steps: NonNegativeInt = Field(description="optimizer steps; public code")
    weight_decay: NonNegativeFloat = Field(description="AdamW's weight decay; public code")
    max_grad_norm: PositiveFloat = Field(
        description="bound of the gradient's norm; transformers' default"
    )
    max_tokens: PositiveInt = Field(
        description="tokens per text; longer texts are left out and counted; public code"
    )
    gradient_checkpointing: bool = Field(
        description="whether activations are computed again in the backward pass, which "
        "takes time and saves memory",
    )
    sharding: Literal["none", "fsdp"] = Field(
        description="of the frozen weights: none (each GPU has all of them; nf4 of 70B "
        "takes 40 GB) or fsdp (each GPU has a part, for smaller GPUs: slower, "
        "and while loading each process has all of them in main memory)",
    )
    loss_on: Literal["text", "crystal"] = Field(
        description="tokens that the loss is computed on: text (prompt and crystal; public "
        "code) or crystal",
    )
    infill_share: Fraction = Field(
        description="share of texts that ask for one hidden element; public code (the paper "
        "mentions the task)",
    )
    formula_share: Fraction = Field(
        description="share of prompts that give the formula alone, with which App. C "
        "samples all pairs and which the public code never trains; ours",
    )
    properties_share: Fraction = Field(
        description="share of prompts with a random choice of formula, elements, energies, "
        "band gap and space group; the other prompts give no condition (public "
        "code: a fifth of the crystals written)",
    )
    augment_translation: bool = Field(
        description="whether each epoch moves each training crystal by a random vector; "
        "paper: false",
    )
    augment_permutation: bool = Field(
        description="whether each epoch shuffles the atoms of each training crystal; paper: false"
    )
    validation_rows: PositiveInt = Field(
        description="validation crystals that the validation loss is computed on"
    )
    eval_steps: PositiveInt = Field(description="optimizer steps between validations")
    patience: PositiveInt | None = Field(
        description="validations without gain before training stops; the best adapter is "
        "kept; null (paper): all epochs",
    )
    save_steps: PositiveInt = Field(description="optimizer steps between checkpoints")

    @model_validator(mode="after")
    def _method_fits(self) -> "FinetuneLlm":
        if self.method == "lora":
            if self.base_model == SCRATCH:
                raise ValueError("base_model scratch has no trained weights; set method: full")
            return self
        if self.quantization != "none":
            raise ValueError(
                f"method full trains all weights, which quantization {self.quantization} would "
                "freeze; set quantization: none"
            )
        if self.sharding != "none":
            raise ValueError(
                f"method full has no frozen weights, which sharding {self.sharding} divides; set "
                "sharding: none"
            )
        return self

    @model_validator(mode="after")
    def _int8_is_not_sharded(self) -> "FinetuneLlm":
        if self.sharding == "fsdp" and self.quantization == "int8":
            raise ValueError(
                "sharding fsdp needs quantization nf4 or none, since int8 weights cannot be sharded"
            )
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
            raise ValueError(
                "the sum of infill_share, formula_share and properties_share exceeds 1; lower one "
                "of them"
            )
        return self


MAX_LOSS_RISE = 0.02
"""Nats per token by which merging may raise the validation loss without a warning. Measured with
SmolLM2-135M after 30 steps with nf4 weights (loss 0.6579): the original weights raise it by 0.028,
the dequantized ones by 0.0004 in bfloat16 and by nothing in float32."""


class MergeAdapter(Section):
    """How the adapter becomes part of the base model's weights."""

    into: Literal["dequantized", "original"] = Field(
        description="weights that the adapter is added to (neither paper nor public code "
        "says which): dequantized (rounded to nf4 or int8, as in training and "
        "validation) or original",
    )


class Invariance(Section):
    """Measurement of the language model's invariance under translation and permutation."""

    num_crystals: PositiveInt = Field(description="validation crystals, the first ones")
    num_transformations: PositiveInt = Field(
        description="random translations per crystal, and as many permutations of its atoms"
    )
    batch_size: PositiveInt = Field(description="texts per forward pass; changes memory only")


Backend = Literal["vllm", "transformers"]


def _check_structured(structured: bool, backend: Backend) -> None:
    """Refuse a grammar with an engine that cannot follow one."""
    if structured and backend != "vllm":
        raise ValueError(
            f"structured: true needs backend: vllm, since {backend} cannot follow a grammar; set "
            "structured: false or backend: vllm"
        )


class SamplePairs(Section):
    """Mass sampling of the pairs (c0, c1) that the flow is trained on."""

    temperature: PositiveFloat = Field(
        description="sampling temperature of the language model; paper, App. C"
    )
    top_p: Probability = Field(
        description="share of the probability that tokens are drawn from; paper, App. C"
    )
    backend: Backend = Field(
        description="vllm, or transformers (for machines without vLLM: slow, and without "
        "structured)",
    )
    restrict_tokens: bool = Field(
        description="whether only tokens of crystal text are drawn; no other token is part "
        "of a usual crystal",
    )
    structured: bool = Field(
        description="whether a grammar fixes the form of the text and the atoms of the "
        "formula; must equal sample_base.structured where a flow starts from "
        "drafts",
    )
    reject_close_atoms: bool = Field(
        description="whether a text with two atoms at one point is drawn again; a flow "
        "without noise cannot separate two like atoms at one point",
    )
    min_distance: PositiveFloat | None = Field(
        description="minimum distance of atoms and their images in angstrom: the text is drawn "
        "again from the atom that is nearer to one before it; must equal "
        "sample_base.min_distance where a flow starts from drafts; null (paper): off",
    )
    max_redraws: NonNegativeInt = Field(
        description="redraws per atom with min_distance, after which its coordinates are drawn "
        "from those that are far enough alone (masked); 0: masked from the beginning, the fastest",
    )
    draws_per_prompt: PositiveInt = Field(
        description="consecutive draws of one crystal, whose prompt is computed once; 1: "
        "every draw has another crystal",
    )
    max_attempts: PositiveInt = Field(
        description="drafts per pair, after which the pair is given up and counted"
    )
    chunk_size: PositiveInt = Field(
        description="pairs per saved chunk: the most that a killed job loses"
    )

    @model_validator(mode="after")
    def _engine_follows_grammar(self) -> "SamplePairs":
        _check_structured(self.structured, self.backend)
        return self


class Base(Section):
    """A base distribution: one way of sampling the language model."""

    name: Name = Field(description="name of the base distribution")
    temperature: PositiveFloat = Field(description="sampling temperature of the language model")
    top_p: Probability = Field(description="share of the probability that tokens are drawn from")
    conditions: BaseConditions | None = Field(
        None,
        description="what the draws are asked for (docs/conditions.md), e.g. {e_above_hull: 0.05} "
        "or {file: wishes.csv}; null or left out (paper): nothing",
    )


class SampleBase(Section):
    """Sampling of the bases, the start of generation."""

    backend: Backend = Field(description="vllm or transformers, as in sample_pairs")
    restrict_tokens: bool = Field(
        description="as in sample_pairs; must equal sample_pairs.restrict_tokens where a "
        "flow starts from drafts",
    )
    structured: bool = Field(
        description="whether a grammar fixes the form of the text; as in sample_pairs"
    )
    reject_close_atoms: bool = Field(
        description="whether a text with two atoms at one point is drawn again; true raises "
        "the validity of the rows, which the report then says; paper: false "
        "(only texts that do not parse are rejected)",
    )
    min_distance: PositiveFloat | None = Field(
        description="as in sample_pairs; like reject_close_atoms it raises the validity of the "
        "rows; null (paper): off",
    )
    max_redraws: NonNegativeInt = Field(description="as in sample_pairs")
    max_attempts: PositiveInt = Field(
        description="drafts per sample, after which the sample is given up and counted"
    )
    chunk_size: PositiveInt = Field(
        description="samples per saved chunk: the most that a killed job loses"
    )

    @model_validator(mode="after")
    def _engine_follows_grammar(self) -> "SampleBase":
        _check_structured(self.structured, self.backend)
        return self


class CspBase(Section):
    """One way of sampling crystals of the test split's formulas (structure prediction)."""

    name: Name = Field(description="name of the base distribution")
    temperature: PositiveFloat = Field(description="sampling temperature of the language model")
    top_p: Probability = Field(description="share of the probability that tokens are drawn from")
    attempts: PositiveInt = Field(description="crystals per formula, of which the nearest counts")
