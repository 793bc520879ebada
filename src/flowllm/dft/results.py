"""Energies and crystals from finished DFT runs, corrected as the Materials Project corrects."""

import math
import os
from pathlib import Path
from typing import Literal

import numpy as np

from flowllm.crystal import Crystal
from flowllm.dft.corrections import StrictAnions, mp2020_correction, scheme_name
from flowllm.dft.gpaw_output import GPAW_OUTPUT, read_gpaw
from flowllm.dft.inputs import OPEN_SETS
from flowllm.dft.runs import AskedRun, DftRun, RunProblem
from flowllm.dft.vasp_output import find_vasp_outputs, read_vasp
from flowllm.errors import FlowllmError

CorrectionScheme = Literal["MP2020", "MP2020_plus_u_only", "none"]

MAX_ENERGY_PER_ATOM = 1e3
"""eV; energies count from neutral atoms, in VASP and in GPAW, and are within some tens of them."""

MIN_VOLUME_PER_ATOM = 1.0
"""Cubic angstrom; diamond, which has the most atoms per volume of all solids, has 5.7."""


def read_run(folder: Path, asked: AskedRun | None = None) -> DftRun:
    """Read the result of a folder, GPAW's or VASP's.

    Args:
        folder: the run's.
        asked: what the manifest says of it.

    Raises:
        RunProblem: there is none (`missing`), it has no energy (`unfinished`,
            `unconverged_electronic`), is not what its name says (`unreadable`), is another
            functional's than the input sets ask for (`wrong_functional`), or has other settings
            than its inputs (`other_settings`).
        FlowllmError: there is no room to unpack a result.
    """
    try:
        run = _read(folder, asked or AskedRun())
        _check_crystal(run)
    except OSError as error:
        detail = f"{folder.name}: {error.strerror or error}"
        raise RunProblem("unreadable", detail) from error
    return run


def _read(folder: Path, asked: AskedRun) -> DftRun:
    if not os.path.lexists(folder):
        raise RunProblem("missing", "no folder")
    if any(path.name == GPAW_OUTPUT for path in folder.iterdir()):
        return read_gpaw(folder / GPAW_OUTPUT, asked)
    outputs = find_vasp_outputs(folder)
    if not outputs:
        raise RunProblem("missing", "no result in the folder")
    if asked.input_set in OPEN_SETS.values():
        detail = f"{outputs[0].name} is VASP's, expected is a run with {asked.input_set}"
        raise RunProblem("other_settings", detail)
    return read_vasp(outputs, asked)


def _check_crystal(run: DftRun) -> None:
    """Refuse numbers that no crystal has.

    Raises:
        RunProblem: a cell without volume, a number that is not finite, an energy of 400 digits
            (`unreadable`).
    """
    num_atoms = len(run.structure)
    with np.errstate(invalid="ignore"):
        volume = run.structure.volume / num_atoms
    if not MIN_VOLUME_PER_ATOM <= volume < math.inf:
        raise RunProblem("unreadable", f"no crystal: {volume:.3g} cubic angstrom per atom")
    try:
        Crystal.from_structure(run.structure)
    except FlowllmError as error:
        raise RunProblem("unreadable", f"no crystal: {error}") from error
    if not abs(run.energy / num_atoms) <= MAX_ENERGY_PER_ATOM:
        detail = f"energy {run.energy / num_atoms:.3g} eV per atom, more than {MAX_ENERGY_PER_ATOM}"
        raise RunProblem("unreadable", detail)


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
