"""Energies and crystals from finished DFT runs, corrected as the Materials Project corrects."""

import json
import math
from pathlib import Path
from typing import Literal

from pymatgen.core import Structure

from flowllm.dft.corrections import StrictAnions, mp2020_correction, scheme_name
from flowllm.dft.runs import DftRun, RunProblem
from flowllm.dft.vasp_output import find_vasp_outputs, read_vasp

CorrectionScheme = Literal["MP2020", "MP2020_plus_u_only", "none"]

GPAW_OUTPUT = "gpaw_result.json"
"""Written by `gpaw_static.py`."""


def read_run(folder: Path) -> DftRun:
    """Read the result of a folder, GPAW's or VASP's.

    Raises:
        RunProblem: there is none (`missing`), it has no energy (`unfinished`,
            `unconverged_electronic`), is not what its name says (`unreadable`), or is another
            functional's than the input sets ask for (`wrong_functional`).
    """
    if (folder / GPAW_OUTPUT).exists():
        return _read_gpaw(folder / GPAW_OUTPUT)
    outputs = find_vasp_outputs(folder) if folder.exists() else []
    if not outputs:
        raise RunProblem("missing", "no result in the folder")
    return read_vasp(outputs)


def _read_gpaw(path: Path) -> DftRun:
    try:
        result = json.loads(path.read_text())
        structure = Structure(result["cell"], result["atomic_numbers"], result["frac_coords"])
        energy = float(result["energy"])
        converged = bool(result["converged"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunProblem("unreadable", f"{path.name}: {type(error).__name__}: {error}") from error
    if not math.isfinite(energy):
        raise RunProblem("unreadable", f"{path.name}: energy {energy}")
    if not converged:
        raise RunProblem(
            "unconverged_electronic", f"{path.name}: the electronic loop hit its limit"
        )
    return DftRun(
        structure=structure,
        energy=energy,
        run_type="GPAW",
        parameters={},
        converged_electronic=True,
        converged_ionic=True,  # there is nothing to relax in it
        num_steps=1,
    )


def scheme_of(run: DftRun, scheme: CorrectionScheme, strict_anions: StrictAnions) -> str:
    """Return the correction scheme of a run: the given one, or GPAW's, which has no corrections."""
    return "GPAW" if run.run_type == "GPAW" else scheme_name(scheme, strict_anions)


def corrected_energy(run: DftRun, scheme: CorrectionScheme, strict_anions: StrictAnions) -> float:
    """Energy of the cell in eV with the scheme's correction.

    MP2020 (Wang et al. 2021) is given the run type of every entry: without it pymatgen drops an
    entry that is not GGA+U, and plain oxides and halides stay uncorrected. That is what the public
    codes' published rates have; `MP2020_plus_u_only` does the same, for comparison with them.

    Raises:
        RunProblem: the scheme has no correction for the run (`no_correction`).
    """
    if run.run_type == "GPAW" or scheme == "none":
        return run.energy
    if scheme == "MP2020_plus_u_only" and run.run_type != "GGA+U":
        return run.energy
    correction = mp2020_correction(run.structure, run.parameters, strict_anions)
    if correction is None:
        raise RunProblem("no_correction", "MP2020 does not cover the run's settings or elements")
    return run.energy + correction
