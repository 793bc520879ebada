"""The whole configuration: one model per section, no defaults, no unknown keys.

`config.yaml` gives every value once, and overlays (`workflow/config/*.yaml`) change some. A stage
is given only the sections that `STAGES` names for it, so that a change reruns only what depends on
it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

from flowllm.config.sections.base import OwnPath, Section
from flowllm.config.sections.cluster import Nodes, Resources
from flowllm.config.sections.data import Data, External, Prepare, Sizes
from flowllm.config.sections.energies import (
    Dft,
    DftCollect,
    DftHull,
    DftInputs,
    Potential,
    Prerelax,
    ReferenceHull,
    Select,
    Stability,
)
from flowllm.config.sections.evaluation import Fingerprints, Metrics, Report
from flowllm.config.sections.flow import TRAIN_COMPOSITIONS, Flow, Method, Refine, TrainRfm
from flowllm.config.sections.llm import (
    Base,
    CspBase,
    FinetuneLlm,
    Invariance,
    MergeAdapter,
    Prompts,
    SampleBase,
    SamplePairs,
)
from flowllm.config.stages import STAGES, ListName

SHAPES_OF_DRAFTS = ("structured", "restrict_tokens", "min_distance")
"""Keys of `sample_pairs` and `sample_base` that change which texts are possible.

A flow is trained on the drafts of the first and starts from those of the second, so both must have
equal values. Temperature and top_p may differ, as in the paper (appendix C). `reject_close_atoms`
may differ too: it changes only the number of the drafts without two atoms at one point, and no flow
without noise can separate the atoms of the others.
"""


class Config(Section):
    """The whole configuration."""

    run_dir: Annotated[OwnPath, AfterValidator(lambda text: str(Path(text)))] = Field(
        description="folder of all artifacts of this run"
    )
    seed: NonNegativeInt = Field(
        description="seed of the run; each draw derives its own seed from it and from what is drawn"
    )
    data: Data = Field(description="source of the crystals")
    prepare: Prepare = Field(description="cells, filters and splits of the crystals")
    prompts: Prompts = Field(description="prompts, for the tasks of Gruver et al. 2024")
    finetune_llm: FinetuneLlm = Field(description="fine-tuning of the base language model")
    merge_adapter: MergeAdapter = Field(
        description="addition of the adapter to the base model's weights"
    )
    invariance: Invariance = Field(
        description="invariance of the merged model under translation and permutation (paper, "
        "equation 9)",
    )
    sizes: Sizes = Field(
        description="numbers of samples, and how they are divided into shards, on which no draw "
        "depends; read by the workflow",
    )
    sample_pairs: SamplePairs = Field(
        description="sampling of the pairs (c0, c1) that the flow is trained on"
    )
    train_rfm: TrainRfm = Field(description="velocity network and its training")
    flows: tuple[Flow, ...] = Field(
        min_length=1,
        description="velocity networks, one per row, by the base distribution that they start from",
    )
    bases: tuple[Base, ...] = Field(
        min_length=1,
        description="base distributions, one branch per row: how the language model is sampled",
    )
    sample_base: SampleBase = Field(description="sampling of the bases, the start of generation")
    methods: tuple[Method, ...] = Field(
        min_length=1,
        description="rows of the results, one branch per row through refine and all stages "
        "after it",
    )
    external_samples: tuple[External, ...] = Field(
        description="samples of other models, measured as ours are, one branch per row"
    )
    csp_bases: tuple[CspBase, ...] = Field(
        description="crystal structure prediction of the test split's formulas, e.g. "
        "workflow/config/csp.yaml",
    )
    csp_methods: tuple[Method, ...] = Field(
        description="how the predictions are refined, for match rate and RMSE; keys as in methods"
    )
    refine: Refine = Field(description="integration of the velocity field")
    potential: Potential = Field(
        description="machine-learned potential of every energy that is not DFT's"
    )
    select: Select = Field(
        description="crystals that are not relaxed, since their result is known before"
    )
    prerelax: Prerelax = Field(description="relaxation of the crystals by the potential")
    reference_hull: ReferenceHull = Field(
        description="reference entries for the potential's energies"
    )
    dft_hull: DftHull = Field(
        description="reference entries for DFT energies, for the target all_dft; never mixed "
        "with the potential's",
    )
    stability: Stability = Field(description="thresholds of stability")
    dft: Dft = Field(
        description="DFT code of every DFT energy; energies of different codes are never in "
        "one hull",
    )
    dft_inputs: DftInputs = Field(description="selection of crystals for DFT, and their inputs")
    dft_collect: DftCollect = Field(description="corrections of DFT energies")
    fingerprints: Fingerprints = Field(description="fingerprints for coverage")
    metrics: Metrics = Field(description="rules of the metrics")
    report: Report = Field(description="HTML page")
    resources: dict[str, Resources] = Field(
        description="what each rule requests from the cluster for its first attempt"
    )
    nodes: Nodes = Field(
        description="nodes per SLURM job; the job's GPUs, cores and memory are then those of "
        "each node",
    )

    @model_validator(mode="after")
    def _names_fit(self) -> "Config":
        flows = [flow.name for flow in self.flows]
        bases = [
            *(base.name for base in self.bases),
            *(base.name for base in self.csp_bases),
            TRAIN_COMPOSITIONS,
        ]
        methods = [method.name for method in (*self.methods, *self.csp_methods)]
        for names, where in ((flows, "flows"), (bases, "bases"), (methods, "methods")):
            if len(set(names)) != len(names):
                raise ValueError(f"{where}: each name must be unique, got {names}")
        external = [row.name for row in self.external_samples]
        if len(set(external)) != len(external) or {*external} & {*bases, *methods}:
            raise ValueError(
                f"external_samples: each of {external} needs a name that no other row, base or "
                "method has"
            )
        for name, what in (("test", "the test split"), ("hull", "the reference hull")):
            if name in [*methods, *external]:
                raise ValueError(
                    f"methods: the name {name} is reserved for {what}; use another name"
                )
        self._bases_fit()
        self._flows_fit()
        self._cells_fit()
        self._drafts_fit()
        missing = set(STAGES) - set(self.resources)
        unknown = set(self.resources) - set(STAGES)
        if missing or unknown:
            raise ValueError(f"resources: missing {sorted(missing)}, unknown {sorted(unknown)}")
        return self

    @model_validator(mode="after")
    def _dft_on_one_scale(self) -> "Config":
        """Refuse a DFT hull of another scale before DFT runs; stability checks the energies."""
        found = self.dft_hull.correction_scheme
        ours = self.dft_collect.correction_scheme.removesuffix("_plus_u_only")
        needed = "GPAW" if self.dft.code == "gpaw" else ours
        if self.dft_hull.source is not None and found != needed:
            raise ValueError(
                f"dft_hull: its energies are of {found}, those of dft.code {self.dft.code} will be "
                f"of {needed}. Give dft_hull a source and a correction_scheme of {needed}"
            )
        return self

    @model_validator(mode="after")
    def _dft_results_are_read(self) -> "Config":
        """Refuse a DFT hull where the results of the inputs cannot be read."""
        scan = self.dft.code == "vasp" and self.dft_inputs.input_set == "MPScanRelaxSet"
        if self.dft_hull.source is not None and scan:
            raise ValueError(
                "dft_inputs.input_set MPScanRelaxSet is of the functional r2SCAN, but dft_collect "
                "reads GGA and GGA+U results alone. Set it to MPRelaxSet, or dft_hull.source to "
                "null"
            )
        return self

    @model_validator(mode="after")
    def _text_fits_crystals(self) -> "Config":
        """Refuse symmetric text of crystals whose cell is not that of their text."""
        if self.prompts.crystal_text != "symmetric":
            return self
        if self.prepare.cell != "standard":
            raise ValueError(
                f"prompts.crystal_text: symmetric writes the primitive cell of the space group's "
                f"standard setting, but prepare.cell is {self.prepare.cell}, so that the atoms of "
                "a draft and its target would not correspond. Set prepare.cell: standard"
            )
        if self.finetune_llm.augment_translation:
            raise ValueError(
                "finetune_llm.augment_translation: true has no meaning for prompts.crystal_text: "
                "symmetric, whose origin is that of the space group. Set it to false"
            )
        return self

    @model_validator(mode="after")
    def _properties_have_sentences(self) -> "Config":
        """Refuse properties without a sentence, and what nothing provides."""
        columns, sentences = set(self.prepare.properties), set(self.prompts.properties)
        if one_sided := sorted(columns ^ sentences):
            raise ValueError(
                f"property {one_sided[0]} needs a column in prepare.properties and a sentence in "
                "prompts.properties; add the missing one"
            )
        for base in self.bases:
            asked = set(base.conditions.properties) if base.conditions else set()
            if unknown := sorted(asked - columns):
                raise ValueError(
                    f"bases: {base.name} asks for {unknown[0]}, which is not among the properties "
                    f"{sorted(columns)} of prepare.properties"
                )
        return self

    @model_validator(mode="after")
    def _starts_are_of_other_runs(self) -> "Config":
        """Refuse a start that this run would delete before it makes its own output there."""
        own = Path(self.run_dir).resolve()
        for key, start in (
            ("finetune_llm.start", self.finetune_llm.start),
            ("train_rfm.start", self.train_rfm.start),
        ):
            if start is not None and Path(start).resolve().is_relative_to(own):
                raise ValueError(
                    f"{key}: {start} is in run_dir, whose models this run replaces; give the "
                    "folder of another run, or another run_dir"
                )
        return self

    @model_validator(mode="after")
    def _judge_has_a_hull(self) -> "Config":
        """Refuse a second potential whose hull cannot be made."""
        source = self.reference_hull.source
        has_crystals = source == "train" or Path(source).suffix == ".parquet"
        if self.potential.check is not None and not has_crystals:
            raise ValueError(
                "potential.check: the second potential evaluates the crystals of the hull, which a "
                "file of entries does not have: set reference_hull.source to train or to the hull "
                "of another run, or remove check"
            )
        return self

    @property
    def asks_llm(self) -> bool:
        """Whether a method samples the language model, whose invariance is then measured."""
        return bool(self.sampled_bases or self.csp_methods)

    @property
    def sampled_bases(self) -> set[str]:
        """The bases of `methods` that the language model samples."""
        return {method.base for method in self.methods} & {base.name for base in self.bases}

    @property
    def used_flows(self) -> set[str]:
        """The flows that a method uses; no other is trained."""
        rows = (*self.methods, *self.csp_methods)
        return {method.flow for method in rows if method.flow is not None}

    @property
    def given_bases(self) -> dict[str, External]:
        """The rows of `external_samples` that are the base of a method, by name."""
        used = {method.base for method in self.methods}
        return {row.name: row for row in self.external_samples if row.name in used}

    def _bases_fit(self) -> None:
        for where, rows, names in (
            (
                "bases and external_samples",
                self.methods,
                [
                    *(base.name for base in self.bases),
                    TRAIN_COMPOSITIONS,
                    *(row.name for row in self.external_samples),
                ],
            ),
            ("csp_bases", self.csp_methods, [base.name for base in self.csp_bases]),
        ):
            for method in rows:
                if method.base not in names:
                    raise ValueError(
                        f"methods: {method.name} uses base {method.base!r}, "
                        f"which is not among the {where} {names}"
                    )

    def _flows_fit(self) -> None:
        for flow in self.flows:
            if flow.augment_axes and not self.train_rfm.has_symmetric_bounds:
                raise ValueError(
                    f"flows: {flow.name} has augment_axes, which replaces angles by their "
                    "supplements, so train_rfm.angle_bounds must be symmetric about 90 degrees "
                    f"(got {list(self.train_rfm.angle_bounds)})"
                )
        starts = {flow.name: flow.start for flow in self.flows}
        for method in (*self.methods, *self.csp_methods):
            if method.flow not in [None, *starts]:
                raise ValueError(
                    f"methods: {method.name} uses flow {method.flow!r}, "
                    f"which is not among the flows {[*starts]}"
                )
            simple = method.flow is not None and starts[method.flow] == "simple"
            if method.base == TRAIN_COMPOSITIONS and not simple:
                raise ValueError(
                    f"methods: {method.name} has the base {TRAIN_COMPOSITIONS}, whose cells and "
                    "coordinates are random: it needs a flow with start: simple"
                )

    def _cells_fit(self) -> None:
        """Refuse a flow that starts from given crystals in other cells than its training's."""
        for method in self.methods:
            row = self.given_bases.get(method.base)
            if row is not None and method.flow is not None and row.cell != self.prepare.cell:
                raise ValueError(
                    f"methods: the flow of {method.name} was trained on cells of prepare.cell: "
                    f"{self.prepare.cell}, but its base, external_samples {row.name}, has cell: "
                    f"{row.cell or 'null'}; set cell: {self.prepare.cell} in that row"
                )

    def _drafts_fit(self) -> None:
        """Refuse a flow that is trained on drafts of another form than it starts from."""
        from_drafts = [flow.name for flow in self.flows if flow.start == "llm"]
        methods = [*self.methods, *self.csp_methods]
        hit = [method.name for method in methods if method.flow in from_drafts]
        for key in SHAPES_OF_DRAFTS:
            pairs, base = getattr(self.sample_pairs, key), getattr(self.sample_base, key)
            if hit and pairs != base:
                raise ValueError(
                    f"sample_pairs.{key} is {str(pairs).lower()}, but sample_base.{key} is "
                    f"{str(base).lower()}: the flow of methods {', '.join(hit)} (start: llm) "
                    "would be trained on other drafts than it starts from. Give both keys the "
                    "same value (temperature and top_p may differ)"
                )

    def row(self, kind: ListName, name: str) -> Flow | Base | CspBase | Method | External:
        """Return the row with a name in one of the lists."""
        return next(row for row in self._rows(kind) if row.name == name)

    def row_names(self, kind: ListName) -> list[str]:
        """Return the names of the rows of one of the lists."""
        return [row.name for row in self._rows(kind)]

    def _rows(self, kind: ListName) -> Sequence[Flow | Base | CspBase | Method | External]:
        rows: dict[ListName, Sequence[Flow | Base | CspBase | Method | External]] = {
            "flow": self.flows,
            "base": self.bases,
            "csp_base": self.csp_bases,
            "method": (*self.methods, *self.csp_methods),
            "external": self.external_samples,
        }
        return rows[kind]
