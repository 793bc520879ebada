"""What is known of one DFT run, whichever code made it."""

from dataclasses import dataclass
from typing import Any

from pymatgen.core import Structure


class RunProblem(Exception):  # noqa: N818
    """A run's energy cannot be used.

    Attributes:
        status: short name, the row's status.
    """

    def __init__(self, status: str, detail: str) -> None:
        """Name what is wrong and say it in full."""
        super().__init__(detail)
        self.status = status


@dataclass(frozen=True)
class AskedRun:
    """What the manifest says of the run that it asks for.

    Attributes:
        input_set: name of the set of inputs; None where the manifest does not say.
        potcar_symbols: pseudopotentials; None where the manifest does not say.
    """

    input_set: str | None = None
    potcar_symbols: list[str] | None = None


@dataclass(frozen=True)
class DftRun:
    """A run with an energy that converged electronically.

    Attributes:
        structure: the structure that the energy is of.
        energy: eV of the cell, uncorrected.
        run_type: GGA or GGA+U, by VASP; or GPAW.
        parameters: what the correction scheme needs to know of the run.
        converged_electronic: the last ionic step's electronic loop reached its threshold.
        converged_ionic: the relaxation reached its threshold, or there was none to do.
        num_steps: whole ionic steps.
        shortfall: why the energy is not the relaxed crystal's but an upper bound of it; None where
            `converged_ionic`.
    """

    structure: Structure
    energy: float
    run_type: str
    parameters: dict[str, Any]
    converged_electronic: bool
    converged_ionic: bool
    num_steps: int
    shortfall: str | None = None
