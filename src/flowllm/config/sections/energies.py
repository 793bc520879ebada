"""The sections of the energies: potential, relaxation, DFT, hulls, stability."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from flowllm.config.sections.base import Fraction, OwnPath, Section

PotentialName = Literal["chgnet", "chgnet-0.2.0", "mace", "mattersim", "sevennet", "orb"]


class Potential(Section):
    """The machine-learned potential of every energy that is not DFT's."""

    name: PotentialName = Field(
        description="chgnet (paper), chgnet-0.2.0, mace, mattersim, sevennet or orb; "
        "docs/energies.md"
    )
    check: PotentialName | None = Field(
        description="second potential, which evaluates the relaxed crystals and the hull's once "
        "more; the report compares both; null: none",
    )

    @model_validator(mode="after")
    def _is_another(self) -> "Potential":
        if self.check == self.name:
            raise ValueError(
                f"check: {self.check} is the potential itself; name another one, or null"
            )
        return self


class Select(Section):
    """Crystals that are not relaxed."""

    skip: tuple[Literal["known", "repeated"], ...] = Field(
        description="crystals that are not relaxed, as generated: known (match a training "
        "crystal or one of metrics.known_crystals), repeated (match an earlier draft of the "
        "method); [] (paper): none, and the stage has no jobs. Otherwise a larger "
        "sizes.num_samples relaxes all shards of a method again"
    )

    @model_validator(mode="after")
    def _each_once(self) -> "Select":
        if len(set(self.skip)) < len(self.skip):
            raise ValueError("skip: name known and repeated once each")
        return self


class RelaxationLimits(Section):
    """When a relaxation ends."""

    max_force: PositiveFloat = Field(
        description="eV/angstrom; a crystal is relaxed when no force exceeds it; public code"
    )
    max_steps: PositiveInt = Field(description="steps per crystal; public code")


class Prerelax(RelaxationLimits):
    """Relaxation of the generated crystals with the potential."""

    max_seconds: PositiveFloat = Field(description="wall time per crystal in seconds")
    keep_symmetry: bool = Field(
        description="whether a crystal is moved to its exact symmetry (within 0.1 angstrom) and "
        "keeps its space group",
    )
    fixed_cell: bool = Field(
        description="whether only the atoms move; the energies are then upper bounds of those of "
        "the hull, whose crystals are always relaxed fully",
    )
    chunk_size: PositiveInt = Field(
        description="crystals per saved chunk: the most that a killed job loses"
    )


class Dft(Section):
    """The code of every DFT energy."""

    code: Literal["vasp", "gpaw", "espresso"] = Field(
        description="vasp (paper), gpaw (free; static runs, one input set) or espresso "
        "(inputs of a relaxation only, one input set)",
    )


class DftInputs(Section):
    """Selection of relaxed crystals for DFT, and their inputs."""

    input_set: Literal["MPRelaxSet", "MPScanRelaxSet", "MPStaticSet"] = Field(
        description="pymatgen's input set for code vasp: MPRelaxSet (paper), MPStaticSet or "
        "MPScanRelaxSet (inputs only: results are read from GGA and GGA+U runs)",
    )
    plane_wave_cutoff: PositiveFloat = Field(
        description="eV; for GPAW and Quantum ESPRESSO (the VASP sets have 520)"
    )
    kpoint_density: PositiveFloat = Field(
        description="k-points per angstrom^-3; for GPAW and Quantum ESPRESSO; MPRelaxSet's value"
    )
    selection: Literal["all", "first", "random", "n_ary", "e_above_hull", "candidates"] = Field(
        description="crystals that are computed: all, first, random, n_ary (equal numbers "
        "of unary, binary, ... crystals), e_above_hull, or candidates (novel, one per class of "
        "matching crystals, nearest to the hull first)",
    )
    max_crystals: PositiveInt = Field(
        description="number of crystals (of candidates, without their control sample); for every "
        "selection but all"
    )
    max_e_above_hull: float = Field(
        description="eV/atom by the potential; for the selections e_above_hull and candidates"
    )
    control_share: Fraction = Field(
        description="share of the other crystals that the selection candidates also computes, "
        "drawn at random, to estimate rates over all crystals; 0: none, and no estimate"
    )
    folders_per_directory: PositiveInt = Field(description="folders of crystals per directory")


class DftCollect(Section):
    """How DFT energies are corrected."""

    correction_scheme: Literal["MP2020", "MP2020_plus_u_only", "none"] = Field(
        description="MP2020 (paper), MP2020_plus_u_only (public codes: plain GGA runs are "
        "not corrected) or none",
    )
    strict_anions: Literal["require_bound", "require_exact", "no_check"] = Field(
        description="oxidation states for which an anion is corrected, of results and of "
        "dft_hull's entries; require_bound is pymatgen's default since 2024",
    )


class ReferenceHull(Section):
    """The reference for the potential's energies; `prerelax` says how its crystals are relaxed."""

    source: OwnPath = Field(
        description="train (training crystals, relaxed by prerelax.max_force and "
        "prerelax.max_steps), hull/potential.parquet of another run with the same potential and "
        "limits, or a JSON file of entries by the same potential",
    )
    chunk_size: PositiveInt = Field(
        description="crystals per saved chunk: the most that a killed job loses"
    )

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
        description="matbench_discovery (the paper's reference: Materials Project of "
        "2023-02-07, downloaded), mp_api, or a JSON file of ComputedEntries; "
        "null: no DFT hull",
    )
    correction_scheme: Literal["MP2020", "none", "GPAW"] = Field(
        description="correction of the file's energies, which must be that of dft_collect: "
        "MP2020, none, or GPAW for entries by that code",
    )

    @model_validator(mode="after")
    def _scheme_of_source(self) -> "DftHull":
        if self.source in ("matbench_discovery", "mp_api") and self.correction_scheme != "MP2020":
            raise ValueError(f"correction_scheme: {self.source} has energies of MP2020; set MP2020")
        return self


class Stability(Section):
    """Thresholds of stability."""

    stable_below: float = Field(description="eV/atom above the hull; paper, App. D")
    inclusive: bool = Field(
        description="whether the threshold itself is stable; paper: E_hull < 0 (false), "
        "public code: E_hull <= 0 (true)",
    )
    metastable_below: PositiveFloat = Field(description="eV/atom above the hull; paper, App. D")
    min_elements: PositiveInt = Field(
        description="distinct elements that a stable or metastable crystal has at least; paper, "
        "App. D"
    )

    @model_validator(mode="after")
    def _stable_is_metastable(self) -> "Stability":
        if self.stable_below > self.metastable_below:
            raise ValueError(
                f"stable_below {self.stable_below} exceeds metastable_below "
                f"{self.metastable_below}, so stable crystals would not count as metastable"
            )
        return self
