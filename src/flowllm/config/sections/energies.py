"""The sections of the energies: potential, relaxation, DFT, hulls, stability."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from flowllm.config.sections.base import OwnPath, Section


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
