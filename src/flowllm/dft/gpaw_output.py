"""Energies from gpaw_result.json, which `gpaw_static.py` writes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from flowllm.crystal import MAX_ATOMIC_NUMBER
from flowllm.dft.bounded import opened
from flowllm.dft.inputs import GPAW_INPUT, OPEN_SETS
from flowllm.dft.runs import AskedRun, DftRun, RunProblem

GPAW_OUTPUT = "gpaw_result.json"

_SAME = 1e-6
"""By which numbers of the result are those of the inputs: JSON keeps all digits."""

_COMPARED = ("cell", "frac_coords", "xc", "cutoff_ev", "kpoints")
"""Keys of the result that the inputs must have alike: the energy is of that crystal, on the scale
of that functional and cutoff."""


def read_gpaw(path: Path, asked: AskedRun | None = None) -> DftRun:
    """Read one result.

    Raises:
        RunProblem: it is not what its name says (`unreadable`), did not converge
            (`unconverged_electronic`), or is not of the inputs in its folder (`other_settings`,
            `wrong_composition`, `wrong_functional`).
    """
    result = _object(path)
    try:
        structure, energy, converged = _values(result)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        detail = f"{path.name}: {type(error).__name__}: {str(error)[:200]}"
        raise RunProblem("unreadable", detail) from error
    if not converged:
        raise RunProblem(
            "unconverged_electronic", f"{path.name}: the electronic loop hit its limit"
        )
    _check_inputs(result, path, asked or AskedRun())
    return DftRun(
        structure=structure,
        energy=energy,
        run_type="GPAW",
        parameters={},
        converged_electronic=True,
        converged_ionic=True,  # there is nothing to relax in it
        num_steps=1,
    )


def _object(path: Path) -> Mapping[str, Any]:
    """The file's JSON object."""
    with opened(path) as source:
        text = b"".join(source.blocks())
    try:
        found = json.loads(text)
    # A deeply nested one ends in a RecursionError, a number of 5,000 digits in a ValueError.
    except (ValueError, RecursionError) as error:
        detail = f"{path.name}: {type(error).__name__}: {str(error)[:200]}"
        raise RunProblem("unreadable", detail) from error
    if not isinstance(found, dict):
        raise RunProblem("unreadable", f"{path.name} has no JSON object")
    return found


def _values(result: Mapping[str, Any]) -> tuple[Structure, float, bool]:
    """Crystal, energy (eV) and whether it converged, each of the type that GPAW's script writes.

    Raises:
        ValueError: a number is none, or is out of bounds; also TypeError, KeyError, OverflowError.
    """
    numbers, energy, converged = (result[key] for key in ("atomic_numbers", "energy", "converged"))
    if not (isinstance(numbers, list) and numbers and all(map(_is_element, numbers))):
        raise ValueError("atomic_numbers is no list of atomic numbers")
    if not isinstance(converged, bool):
        raise TypeError(f"converged is {str(converged)[:20]!r}, not true or false")
    cell = _numbers(result, "cell", (3, 3))
    coords = _numbers(result, "frac_coords", (len(numbers), 3))
    if isinstance(energy, bool) or not isinstance(energy, int | float):
        raise TypeError("energy is no number")
    if not math.isfinite(float(energy)):
        raise ValueError(f"energy {energy}")
    return Structure(cell, numbers, coords), float(energy), converged


def _is_element(number: object) -> bool:
    is_number = isinstance(number, int) and not isinstance(number, bool)
    return is_number and 1 <= number <= MAX_ATOMIC_NUMBER


def _numbers(result: Mapping[str, Any], key: str, shape: tuple[int, int]) -> np.ndarray:
    """A key's finite numbers, of the given shape."""
    given = np.asarray(result[key])
    if given.shape != shape or given.dtype.kind not in "if":
        raise ValueError(f"{key} is not {shape[0]} times {shape[1]} numbers")
    if not np.isfinite(given).all():
        raise ValueError(f"{key} has a number that is not finite")
    return given.astype(float)


def _check_inputs(result: Mapping[str, Any], path: Path, asked: AskedRun) -> None:
    """Compare a result with the inputs in its folder, where those can be read."""
    if asked.input_set not in (None, OPEN_SETS["gpaw"]):
        detail = f"{path.name} is GPAW's, expected is a run with {asked.input_set}"
        raise RunProblem("other_settings", detail)
    if str(result.get("xc", "PBE"))[:20] != "PBE":
        raise RunProblem(
            "wrong_functional", f"{path.name}: xc is {str(result['xc'])[:20]}, not PBE"
        )
    try:
        given = _object(path.with_name(GPAW_INPUT))
    except RunProblem:
        return
    if result["atomic_numbers"] != given.get("atomic_numbers"):
        detail = f"{path.name}: atomic_numbers are not those of {GPAW_INPUT} beside it"
        raise RunProblem("wrong_composition", detail)
    for key in _COMPARED:
        if key in result and key in given and not _same(result[key], given[key]):
            detail = f"{path.name}: {key} is not that of {GPAW_INPUT} beside it"
            raise RunProblem("other_settings", detail)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers to within rounding."""
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    try:
        return bool(np.allclose(one, other, rtol=0, atol=_SAME))
    except (ValueError, TypeError):
        return False
