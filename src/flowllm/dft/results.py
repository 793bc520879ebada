"""Energies and crystals of DFT runs, corrected as in the Materials Project."""

import math
import os
from pathlib import Path
from typing import Literal

import numpy as np

from flowllm.crystal import Crystal
from flowllm.dft.corrections import StrictAnions, mp2020_correction, scheme_name
from flowllm.dft.gpaw_output import GPAW_OUTPUT, read_gpaw
from flowllm.dft.inputs import OTHER_SETS
from flowllm.dft.runs import DftRun, RequestedRun, RunProblem
from flowllm.dft.vasp_output import find_vasp_outputs, read_vasp
from flowllm.errors import FlowllmError

CorrectionScheme = Literal["MP2020", "MP2020_plus_u_only", "none"]

MAX_ENERGY_PER_ATOM = 1e3
"""eV; VASP and GPAW give energies relative to neutral atoms, which are a few tens of eV at most."""

MIN_VOLUME_PER_ATOM = 1.0
"""Cubic angstrom; diamond, which has the most atoms per volume of all solids, has 5.7."""


def read_run(folder: Path, requested: RequestedRun | None = None) -> DftRun:
    """Read the result in a folder, of GPAW or VASP.

    Args:
        folder: folder of the run.
        requested: the run that the manifest requests.

    Raises:
        RunProblem: the folder has no result (`missing`), or the result has no energy (`unfinished`,
            `unconverged_electronic`), is not a valid result (`unreadable`), has another functional
            than the input sets (`wrong_functional`), or other settings than its inputs
            (`other_settings`).
        FlowllmError: the temporary folder has no space to unpack a result.
    """
    try:
        run = _read(folder, requested or RequestedRun())
        _check_crystal(run)
    except OSError as error:
        detail = f"{folder.name}: {error.strerror or error}"
        raise RunProblem("unreadable", detail) from error
    return run


def _read(folder: Path, requested: RequestedRun) -> DftRun:
    """Read the result of either code, without a check of its numbers."""
    if not os.path.lexists(folder):
        raise RunProblem("missing", "the folder does not exist")
    if any(path.name == GPAW_OUTPUT for path in folder.iterdir()):
        return read_gpaw(folder / GPAW_OUTPUT, requested)
    outputs = find_vasp_outputs(folder)
    if not outputs:
        raise RunProblem("missing", "the folder has no result")
    if requested.input_set in OTHER_SETS.values():
        detail = f"{outputs[0].name} is from VASP, expected a run with {requested.input_set}"
        raise RunProblem("other_settings", detail)
    return read_vasp(outputs, requested)


def _check_crystal(run: DftRun) -> None:
    """Reject numbers that no crystal has.

    Raises:
        RunProblem: the cell has no volume, a number is not finite, or the energy per atom is larger
            than `MAX_ENERGY_PER_ATOM` (`unreadable`).
    """
    num_atoms = len(run.structure)
    with np.errstate(invalid="ignore"):
        volume = run.structure.volume / num_atoms
    if not MIN_VOLUME_PER_ATOM <= volume < math.inf:
        raise RunProblem("unreadable", f"not a crystal: {volume:.3g} cubic angstrom per atom")
    try:
        Crystal.from_structure(run.structure)
    except FlowllmError as error:
        raise RunProblem("unreadable", f"not a crystal: {error}") from error
    if not abs(run.energy / num_atoms) <= MAX_ENERGY_PER_ATOM:
        energy = run.energy / num_atoms
        detail = f"energy {energy:.3g} eV per atom, the limit is {MAX_ENERGY_PER_ATOM:g} eV"
        raise RunProblem("unreadable", detail)


def scheme_of(run: DftRun, scheme: CorrectionScheme, strict_anions: StrictAnions) -> str:
    """Return the name of a run's correction scheme; `GPAW` for GPAW, which has no corrections."""
    return "GPAW" if run.run_type == "GPAW" else scheme_name(scheme, strict_anions)


def corrected_energy(run: DftRun, scheme: CorrectionScheme, strict_anions: StrictAnions) -> float:
    """Return the corrected energy in eV per cell.

    For MP2020 (Wang et al. 2021), the run type of every entry is set. Without it, pymatgen skips
    entries that are not GGA+U, and oxides and halides without U are not corrected. The published
    rates of the public codes have this omission; `MP2020_plus_u_only` reproduces it for comparison.

    Raises:
        RunProblem: the scheme has no correction for the run (`no_correction`).
    """
    if run.run_type == "GPAW" or scheme == "none":
        return run.energy
    if scheme == "MP2020_plus_u_only" and run.run_type != "GGA+U":
        return run.energy
    correction = mp2020_correction(run.structure, run.parameters, strict_anions)
    if correction is None:
        raise RunProblem(
            "no_correction", "MP2020 does not cover the settings or elements of the run"
        )
    return run.energy + correction
