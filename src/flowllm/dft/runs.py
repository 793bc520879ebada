"""Data of one DFT run, independent of the code that computed it."""

from dataclasses import dataclass
from typing import Any

from pymatgen.core import Structure


class RunProblem(Exception):  # noqa: N818
    """The reason why the energy of a run cannot be used.

    Attributes:
        status: short name of the problem; the status of the run's row.
    """

    def __init__(self, status: str, detail: str) -> None:
        """Set the short name of the problem and its full description."""
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class RequestedRun:
    """The run that a row of the manifest requests.

    Attributes:
        input_set: name of the input set; None where the manifest does not name one.
        potcar_symbols: pseudopotentials; None where the manifest does not name them.
        structure_hash: SHA-256 of the file with the structure; None where it is not known.
    """

    input_set: str | None = None
    potcar_symbols: list[str] | None = None
    structure_hash: str | None = None


@dataclass(frozen=True)
class DftRun:
    """A run with an energy that converged electronically.

    Attributes:
        structure: the structure that the energy belongs to.
        energy: eV per cell, uncorrected.
        run_type: GGA or GGA+U for VASP, or GPAW.
        parameters: what the correction scheme needs to know of the run.
        converged_electronic: the electronic loop of the last ionic step reached its threshold.
        converged_ionic: the relaxation reached its threshold, or there was nothing to relax.
        num_steps: number of complete ionic steps.
        shortfall: why the energy is only an upper bound of the relaxed crystal's energy; None
            where `converged_ionic` is true.
    """

    structure: Structure
    energy: float
    run_type: str
    parameters: dict[str, Any]
    converged_electronic: bool
    converged_ionic: bool
    num_steps: int
    shortfall: str | None = None
