"""The configuration: one model a section, no defaults here, no unknown keys.

`config.yaml` holds every value once, with its unit and source; overlays (`workflow/config/*.yaml`)
change some. A stage is given just the sections that `STAGES` names for it, so that a change reruns
only what depends on it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from flowllm.errors import FlowllmError
from flowllm.plain_text import printable, redacted

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
"""A name that becomes part of a path: no slash, no space, nothing a shell would read."""

Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(gt=0, le=1)]


class _UnshownError(ValueError):
    """A problem with a value that no message may repeat."""


def has_credentials(url: str) -> bool:
    """Whether an address has a user's name or password before its host (https://user:word@host)."""
    return re.match(r"([a-z][a-z0-9+.-]*:)?/*[^/?#]*@", url, re.IGNORECASE) is not None


def checked_path(text: str) -> str:
    """Return a path with a leading `~` expanded.

    Raises:
        ValueError: Snakemake would read something else in it, or it names a variable.
    """
    expanded, reason = text, None
    if text.startswith("~"):
        with suppress(RuntimeError):  # no such user
            expanded = str(Path(text).expanduser())
    if text != text.strip():
        reason = "begins or ends with a space"
    elif printable(text) != text:
        reason = "holds a line break or another control character"
    elif re.search(r"\$\{?[A-Za-z_]", text):
        reason = "names a variable, which is not expanded; write the path out"
    elif "{" in text or "}" in text:
        reason = "holds braces, which Snakemake reads as a wildcard"
    elif text.startswith("~") and expanded == text:
        reason = "begins with ~, and there is no such user; write the path out"
    if reason is not None:
        raise ValueError(f"the path {reason}")
    return expanded


OwnPath = Annotated[str, StringConstraints(min_length=1), AfterValidator(checked_path)]
"""A path, or a name that may stand in its place."""


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """Where the crystals come from."""

    source: OwnPath = Field(description="mp_20, bundled, or a folder of CSV or CIF files")
    url: str | None = Field(description="base URL of a mirror or proxy instead of sources.yaml's")

    @field_validator("url")
    @classmethod
    def _url_holds_no_password(cls, url: str | None) -> str | None:
        if url is not None and has_credentials(url):
            raise _UnshownError(
                "a user name or password in it would be recorded; take an address without"
            )
        if url is not None and ("?" in url or "#" in url):
            raise _UnshownError(
                "the files' names are put at its end, so it cannot have a query (and a token in "
                "it would be recorded); take an address without"
            )
        return url


class Prepare(Section):
    """How raw crystals become the three splits."""

    cell: Literal["primitive", "as_given"]
    max_atoms: PositiveInt = Field(description="crystals with more atoms in the cell are rejected")
    max_rows: PositiveInt | None = Field(description="use this many rows a split, null for all")
    split_shares: tuple[Fraction, Fraction, Fraction] = Field(
        description="train, val, test shares where the source has no split of its own"
    )

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> "Prepare":
        if abs(sum(self.split_shares) - 1) > 1e-9:
            raise ValueError(f"split_shares {self.split_shares} must sum to 1")
        if min(self.split_shares) == 0:
            raise ValueError(
                f"split_shares {self.split_shares}: each of the three splits needs crystals, so "
                "each share must be above 0"
            )
        return self


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


class Sizes(Section):
    """How much is sampled, and how it is cut into shards; only the workflow reads these.

    A shard's content depends on which draws it holds and not on these totals, so that raising a
    total adds shards and keeps the finished ones.
    """

    num_pairs: PositiveInt
    num_val_pairs: PositiveInt
    pairs_per_shard: PositiveInt
    num_samples: PositiveInt = Field(description="crystals to generate at each setting")
    samples_per_shard: PositiveInt
    num_csp_crystals: PositiveInt = Field(description="test crystals to predict, the first ones")
    csp_crystals_per_shard: PositiveInt


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
    draws_in_a_row: PositiveInt = Field(description="consecutive draws of one crystal and prompt")
    max_attempts: PositiveInt = Field(description="drafts a pair before it is given up")
    chunk_size: PositiveInt = Field(description="prompts at once; what a kill can cost")

    @model_validator(mode="after")
    def _engine_holds_to_grammar(self) -> "SamplePairs":
        _check_structured(self.structured, self.backend)
        return self


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


TRAIN_COMPOSITIONS = "train_compositions"
"""The base without a language model: atoms of random training crystals, all else FlowMM's base."""


class Setting(Section):
    """One row of the results: a base and how it is refined."""

    name: Name
    base: Name = Field(description="a row of bases, or train_compositions")
    flow: Name | None = Field(description="null keeps the LLM's crystal")
    num_steps: NonNegativeInt = Field(description="integration steps; 0 without a flow")

    @model_validator(mode="after")
    def _steps_need_a_flow(self) -> "Setting":
        if (self.flow is None) != (self.num_steps == 0):
            raise ValueError("a setting has a flow and num_steps > 0, or flow null and num_steps 0")
        return self


class External(Section):
    """Another model's samples, measured like ours."""

    name: Name
    file: OwnPath = Field(
        description="folder of CIF or POSCAR files, or one .cif, .csv, .json, .jsonl, .extxyz or "
        ".pt; all but .pt also with .gz"
    )
    shards: PositiveInt = Field(description="parts that are relaxed at the same time")
    column: str | None = Field(
        None, description="of a CSV, or key of JSON's records, with the crystals; null: found"
    )


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


class Potential(Section):
    """The machine-learned potential of every energy that is not DFT's."""

    name: Literal["chgnet", "mace", "mattersim", "sevennet", "orb"]


class Prerelax(Section):
    """Relaxation of the generated crystals with the potential."""

    max_force: PositiveFloat = Field(description="eV/angstrom")
    max_steps: PositiveInt
    max_seconds: PositiveFloat = Field(description="wall time a crystal")
    chunk_size: PositiveInt = Field(description="crystals saved at once; what a kill can cost")


class Dft(Section):
    """The code of every DFT energy."""

    code: Literal["vasp", "gpaw", "espresso"]


class DftInputs(Section):
    """Which relaxed crystals go to DFT, and with what inputs."""

    input_set: Literal["MPRelaxSet", "MPScanRelaxSet", "MPStaticSet"] = Field(
        description="pymatgen's, for code vasp; the other codes have one set each"
    )
    plane_wave_cutoff: PositiveFloat = Field(description="eV; GPAW and Quantum ESPRESSO")
    kpoint_density: PositiveFloat = Field(description="angstrom^3; GPAW and Quantum ESPRESSO")
    selection: Literal["all", "first", "random", "n_ary", "e_above_hull"]
    max_crystals: PositiveInt = Field(description="for every selection but all")
    max_e_above_hull: float = Field(description="eV/atom, for selection e_above_hull")
    folders_per_directory: PositiveInt


class DftCollect(Section):
    """How DFT energies are corrected."""

    correction_scheme: Literal["MP2020", "MP2020_plus_u_only", "none"]
    strict_anions: Literal["require_bound", "require_exact", "no_check"] = Field(
        description="which oxidation states let an anion be corrected, of results and references"
    )


class ReferenceHull(Section):
    """The reference for the potential's energies; its crystals are relaxed as `prerelax` says."""

    source: OwnPath = Field(description="train, or a JSON file of entries by the same potential")
    chunk_size: PositiveInt = Field(description="crystals saved at once; what a kill can cost")

    @model_validator(mode="before")
    @classmethod
    def _relaxed_like_the_crystals(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and (old := {"relax_steps", "max_force"} & set(given)):
            raise ValueError(
                f"remove {' and '.join(sorted(old))}: the training crystals are "
                "relaxed by prerelax.max_force and prerelax.max_steps, as the generated ones are"
            )
        return given


class DftHull(Section):
    """The reference for DFT energies."""

    source: OwnPath | None = Field(
        description="matbench_discovery, mp_api, or a JSON file of DFT ComputedEntries; "
        "null: no DFT hull"
    )
    correction_scheme: Literal["MP2020", "none", "GPAW"] = Field(
        description="of the file's energies; GPAW for entries by that code"
    )

    @model_validator(mode="after")
    def _scheme_of_source(self) -> "DftHull":
        if self.source in ("matbench_discovery", "mp_api") and self.correction_scheme != "MP2020":
            raise ValueError(f"correction_scheme: the energies of {self.source} have MP2020's")
        return self


class Stability(Section):
    """What stable means."""

    stable_below: float = Field(description="eV/atom")
    inclusive: bool = Field(description="<= instead of <")
    metastable_below: PositiveFloat = Field(description="eV/atom")
    min_elements: PositiveInt

    @model_validator(mode="after")
    def _stable_is_metastable(self) -> "Stability":
        if self.stable_below > self.metastable_below:
            raise ValueError(
                f"stable_below {self.stable_below} exceeds metastable_below "
                f"{self.metastable_below}, so stable crystals would not count as metastable"
            )
        return self


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


class Resources(Section):
    """What one rule asks of the cluster for a first attempt."""

    gpus: NonNegativeInt
    cpus: PositiveInt
    mem_mb: PositiveInt
    runtime: PositiveInt = Field(description="minutes")


class Nodes(Section):
    """Nodes of one job, of the stages that share their work among nodes."""

    finetune_llm: PositiveInt
    train_rfm: PositiveInt


SHAPES_OF_DRAFTS = ("structured", "restrict_tokens")
"""Keys of `sample_pairs` and `sample_base` that change which texts can come at all.

A flow is trained on the drafts of the one and starts from those of the other, so that they must
agree. Temperature and nucleus may differ, as in the paper (appendix C). So may
`reject_close_atoms`: of the drafts without two atoms at one point it changes nothing but their
number, and the others no flow without noise can part.
"""

Kind = Literal["flow", "base", "csp_base", "setting", "external"]
"""The lists of which a stage's jobs are given one row each."""


class Config(Section):
    """The whole configuration."""

    run_dir: Annotated[OwnPath, AfterValidator(lambda text: str(Path(text)))]
    seed: NonNegativeInt
    data: Data
    prepare: Prepare
    prompts: Prompts
    finetune_llm: FinetuneLlm
    merge_adapter: MergeAdapter
    invariance: Invariance
    sizes: Sizes
    sample_pairs: SamplePairs
    train_rfm: TrainRfm
    flows: tuple[Flow, ...] = Field(min_length=1)
    bases: tuple[Base, ...] = Field(min_length=1)
    sample_base: SampleBase
    settings: tuple[Setting, ...] = Field(min_length=1)
    external_samples: tuple[External, ...]
    csp_bases: tuple[CspBase, ...]
    csp_settings: tuple[Setting, ...]
    refine: Refine
    potential: Potential
    prerelax: Prerelax
    reference_hull: ReferenceHull
    dft_hull: DftHull
    stability: Stability
    dft: Dft
    dft_inputs: DftInputs
    dft_collect: DftCollect
    fingerprints: Fingerprints
    metrics: Metrics
    report: Report
    resources: dict[str, Resources]
    nodes: Nodes

    @model_validator(mode="after")
    def _names_fit(self) -> "Config":
        flows = [flow.name for flow in self.flows]
        bases = [base.name for base in (*self.bases, *self.csp_bases)] + [TRAIN_COMPOSITIONS]
        settings = [setting.name for setting in (*self.settings, *self.csp_settings)]
        for names, where in ((flows, "flows"), (bases, "bases"), (settings, "settings")):
            if len(set(names)) != len(names):
                raise ValueError(f"{where}: a name stands twice in {names}")
        external = [row.name for row in self.external_samples]
        if len(set(external)) != len(external) or {*external} & {*bases, *settings}:
            raise ValueError(
                f"external_samples: each of {external} needs a name that no other row, base or "
                "setting has"
            )
        if "test" in [*settings, *external]:
            raise ValueError("settings: the name test is the test split's, take another")
        self._bases_fit()
        self._flows_fit()
        self._drafts_fit()
        missing = set(STAGES) - set(self.resources)
        unknown = set(self.resources) - set(STAGES)
        if missing or unknown:
            raise ValueError(f"resources: missing {sorted(missing)}, unknown {sorted(unknown)}")
        return self

    @model_validator(mode="after")
    def _dft_on_one_scale(self) -> "Config":
        """Said before the DFT is paid for; stability looks at the energies themselves."""
        found = self.dft_hull.correction_scheme
        ours = self.dft_collect.correction_scheme.removesuffix("_plus_u_only")
        needed = "GPAW" if self.dft.code == "gpaw" else ours
        if self.dft_hull.source is not None and found != needed:
            raise ValueError(
                f"dft_hull: its energies are of {found}, those of dft.code {self.dft.code} will be "
                f"of {needed}; give dft_hull a source and a correction_scheme of {needed}"
            )
        return self

    @property
    def asks_llm(self) -> bool:
        """Whether some row is drawn from the language model; what it knows is measured then."""
        rows = (*self.settings, *self.csp_settings)
        return any(setting.base != TRAIN_COMPOSITIONS for setting in rows)

    def _bases_fit(self) -> None:
        for where, rows, names in (
            ("bases", self.settings, [*(base.name for base in self.bases), TRAIN_COMPOSITIONS]),
            ("csp_bases", self.csp_settings, [base.name for base in self.csp_bases]),
        ):
            for setting in rows:
                if setting.base not in names:
                    raise ValueError(
                        f"settings: {setting.name} uses base {setting.base!r}, "
                        f"which is not among the {where} {names}"
                    )

    def _flows_fit(self) -> None:
        starts = {flow.name: flow.start for flow in self.flows}
        for setting in (*self.settings, *self.csp_settings):
            if setting.flow not in [None, *starts]:
                raise ValueError(
                    f"settings: {setting.name} uses flow {setting.flow!r}, "
                    f"which is not among the flows {[*starts]}"
                )
            simple = setting.flow is not None and starts[setting.flow] == "simple"
            if setting.base == TRAIN_COMPOSITIONS and not simple:
                raise ValueError(
                    f"settings: {setting.name} has the base {TRAIN_COMPOSITIONS}, whose cells and "
                    "coordinates are random: it needs a flow with start: simple"
                )

    def _drafts_fit(self) -> None:
        """Refuse a flow that is trained on drafts of another form than it starts from."""
        from_drafts = [flow.name for flow in self.flows if flow.start == "llm"]
        settings = [*self.settings, *self.csp_settings]
        hit = [setting.name for setting in settings if setting.flow in from_drafts]
        for key in SHAPES_OF_DRAFTS:
            pairs, base = getattr(self.sample_pairs, key), getattr(self.sample_base, key)
            if hit and pairs != base:
                raise ValueError(
                    f"sample_pairs.{key} is {str(pairs).lower()}, but sample_base.{key} is "
                    f"{str(base).lower()}: the flow of settings {', '.join(hit)} (start: llm) "
                    "would be trained on other drafts than it starts from. Give both keys the "
                    "same value (temperature and top_p may differ)"
                )

    def row(self, kind: Kind, name: str) -> Flow | Base | CspBase | Setting | External:
        """Return the row of a name in one of the lists."""
        rows = {
            "flow": self.flows,
            "base": self.bases,
            "csp_base": self.csp_bases,
            "setting": (*self.settings, *self.csp_settings),
            "external": self.external_samples,
        }
        return next(row for row in rows[kind] if row.name == name)


@dataclass(frozen=True)
class Stage:
    """What the workflow knows of a stage.

    Attributes:
        sections: the parts of the configuration that its results depend on.
        row: the list of which each of its jobs is given one row.
        version: raised by decision when its results change, so that a mended defect reruns the
            stage, and an edited comment does not.
    """

    sections: tuple[str, ...]
    row: Kind | None = None
    version: int = 1


STAGES: dict[str, Stage] = {
    "download": Stage(("data",)),
    "prepare": Stage(("prepare",), version=2),
    "fetch_model": Stage(()),
    "finetune_llm": Stage(("finetune_llm", "prompts"), version=5),
    "merge_adapter": Stage(("merge_adapter",), version=3),
    "invariance": Stage(("invariance", "prompts", "finetune_llm"), version=2),
    "sample_pairs": Stage(("sample_pairs", "prompts"), version=5),
    "train_rfm": Stage(("train_rfm",), row="flow", version=5),
    "sample_base": Stage(("sample_base", "prompts"), row="base", version=4),
    "sample_compositions": Stage(()),
    "sample_csp": Stage(("sample_base", "prompts"), row="csp_base", version=4),
    "refine": Stage(("refine",), row="setting", version=4),
    "import_samples": Stage((), row="external", version=4),
    "prerelax": Stage(("prerelax", "potential"), version=3),
    "reference_hull": Stage(("reference_hull", "potential", "prerelax"), version=3),
    "stability": Stage(("stability",), version=3),
    "dft_inputs": Stage(("dft", "dft_inputs"), version=3),
    "dft_collect": Stage(("dft_collect",), version=4),
    "dft_hull": Stage(("dft_hull", "dft_collect"), version=2),
    "fingerprints": Stage(("fingerprints",), version=2),
    "metrics": Stage(("metrics",), version=4),
    "match_csp": Stage(("metrics",), version=2),
    "report": Stage(("report",), version=3),
}
"""In the order of the pipeline."""

_ROW_MODELS: dict[Kind, Any] = {
    "flow": Flow,
    "base": Base,
    "csp_base": CspBase,
    "setting": Setting,
    "external": External,
}


def load_config(paths: Sequence[Path]) -> Config:
    """Load a configuration file and the overlays after it.

    Raises:
        FlowllmError: a file is missing or not YAML, a key is unknown or missing, or a value is
            bad; the message gives the key's path.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise FlowllmError(f"{path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise FlowllmError(f"{path}: not YAML: {redacted(str(error))}") from error
        if not isinstance(loaded, Mapping):
            raise FlowllmError(f"{path}: expected sections with keys")
        merged = merge(merged, loaded)
    return check_config(merged, " + ".join(str(path) for path in paths))


def check_config(values: Mapping[str, Any], where: str = "configuration") -> Config:
    """Check a merged configuration.

    Raises:
        FlowllmError: every problem on its own line, with the key's path.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise FlowllmError(f"{where}:\n{_explain(error)}") from error


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another; mappings merge, lists and values replace."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(under, value) if both else value
    return merged


def stage_values(config: Config, stage: str, row: str | None = None) -> dict[str, Any]:
    """Return what a stage's job depends on as plain values, for its `--settings`.

    Args:
        config: the whole configuration.
        stage: the stage's name.
        row: name of the flow, base or setting, for a stage whose jobs are given one.
    """
    kind = STAGES[stage].row
    values = config.model_dump(mode="json", include=set(STAGES[stage].sections))
    if kind is not None and row is not None:
        values[kind] = config.row(kind, row).model_dump(mode="json")
    return {"seed": config.seed, "version": STAGES[stage].version, **values}


def stage_json(config: Config, stage: str, row: str | None = None) -> str:
    """Return `stage_values` as JSON with sorted keys, so that equal settings are equal text."""
    return json.dumps(stage_values(config, stage, row), sort_keys=True)


class StageSettings:
    """What a job was given, by section as attributes; asking for any other section is an error.

    Attributes:
        stage: the stage's name.
        seed: the configuration's seed.
        version: the stage's version.
        values: the sections as plain values, for the provenance record.
    """

    def __init__(self, stage: str, given: Mapping[str, Any]) -> None:
        """Check and hold the values made by `stage_values`.

        Raises:
            FlowllmError: a section is missing, unknown, or has a bad value.
        """
        models: dict[str, Any] = {name: _section_model(name) for name in STAGES[stage].sections}
        if (kind := STAGES[stage].row) is not None:
            models[kind] = _ROW_MODELS[kind]
        expected = {"seed", "version", *models}
        if set(given) != expected:
            raise FlowllmError(
                f"settings of {stage}: expected {sorted(expected)}, got {sorted(given)}"
            )
        self.stage = stage
        self.seed: int = int(given["seed"])
        self.version: int = int(given["version"])
        self.values = {name: given[name] for name in models}
        for name, model in models.items():
            try:
                setattr(self, name, TypeAdapter(model).validate_python(given[name]))
            except ValidationError as error:
                raise FlowllmError(f"settings of {stage}:\n{_explain(error, name)}") from error

    def __getattr__(self, name: str) -> Any:
        stage = self.__dict__.get("stage")  # missing while a copy is being made
        raise AttributeError(f"a job of {stage} is not given {name!r}; see config.STAGES")

    @classmethod
    def from_json(cls, stage: str, text: str) -> "StageSettings":
        """Parse the JSON that a rule passes.

        Raises:
            FlowllmError: it is not a JSON object, or as the constructor.
        """
        try:
            given = json.loads(text)
        except json.JSONDecodeError as error:
            raise FlowllmError(f"--settings of {stage}: not JSON: {error}") from error
        if not isinstance(given, dict):
            raise FlowllmError(f"--settings of {stage}: expected an object with keys")
        return cls(stage, given)

    @classmethod
    def from_config(cls, stage: str, config: Config, row: str | None = None) -> "StageSettings":
        """Take a stage's part of a whole configuration."""
        return cls(stage, stage_values(config, stage, row))


def _section_model(name: str) -> type[Section]:
    model = Config.model_fields[name].annotation
    assert isinstance(model, type)
    assert issubclass(model, Section)
    return model


def _explain(error: ValidationError, section: str = "") -> str:
    """One line a problem: the key's path, what is wrong, what was given."""
    lines = []
    for problem in error.errors(include_url=False):
        path = ".".join([section] * bool(section) + [str(part) for part in problem["loc"]])
        given = problem["input"]
        cause = problem.get("ctx", {}).get("error")
        hidden = isinstance(given, Mapping) or isinstance(cause, _UnshownError)
        shown = "" if hidden else redacted(f" (got {given!r})")
        lines.append(f"  {path or 'configuration'}: {problem['msg']}{shown}")
    return "\n".join(lines)
