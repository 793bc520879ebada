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
from flowllm.dft.inputs import GPAW_INPUT, OTHER_SETS
from flowllm.dft.runs import DftRun, RequestedRun, RunProblem

GPAW_OUTPUT = "gpaw_result.json"

_TOLERANCE = 1e-6
"""Largest difference between equal numbers of result and inputs; JSON keeps all digits."""

_COMPARED = ("cell", "frac_coords", "magnetic_moments", "xc", "cutoff_ev", "kpoints")
"""Keys that must be equal in the result and in the inputs, since the energy depends on them."""


def read_gpaw(path: Path, requested: RequestedRun | None = None) -> DftRun:
    """Read one result.

    Args:
        path: the gpaw_result.json.
        requested: the run that the manifest requests.

    Raises:
        RunProblem: the file is not a valid result (`unreadable`), did not converge
            (`unconverged_electronic`), or does not belong to the inputs in its folder
            (`other_settings`, `wrong_composition`, `wrong_functional`).
    """
    result = _read_object(path)
    try:
        structure, energy, converged = _checked_values(result)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        detail = f"{path.name}: {type(error).__name__}: {str(error)[:200]}"
        raise RunProblem("unreadable", detail) from error
    if not converged:
        raise RunProblem(
            "unconverged_electronic", f"{path.name}: the electronic loop reached its limit of steps"
        )
    _check_inputs(result, path, requested or RequestedRun())
    return DftRun(
        structure=structure,
        energy=energy,
        run_type="GPAW",
        parameters={},
        converged_electronic=True,
        converged_ionic=True,  # a static calculation
        num_steps=1,
    )


def _read_object(path: Path) -> Mapping[str, Any]:
    """Return the JSON object of a file.

    Raises:
        RunProblem: the file has no JSON object (`unreadable`).
    """
    with opened(path) as source:
        text = b"".join(source.blocks())
    try:
        found = json.loads(text)
    # Deep nesting raises RecursionError, and an integer of 5,000 digits ValueError.
    except (ValueError, RecursionError) as error:
        detail = f"{path.name}: {type(error).__name__}: {str(error)[:200]}"
        raise RunProblem("unreadable", detail) from error
    if not isinstance(found, dict):
        raise RunProblem("unreadable", f"{path.name} does not contain a JSON object")
    return found


def _checked_values(result: Mapping[str, Any]) -> tuple[Structure, float, bool]:
    """Return structure, energy (eV per cell) and convergence of a result.

    Raises:
        ValueError: a value has another form than `gpaw_static.py` writes; also TypeError, KeyError,
            OverflowError.
    """
    numbers, energy, converged = (result[key] for key in ("atomic_numbers", "energy", "converged"))
    if not (isinstance(numbers, list) and numbers and all(map(_is_element, numbers))):
        raise ValueError("atomic_numbers is not a list of atomic numbers")
    if not isinstance(converged, bool):
        raise TypeError(f"converged is {str(converged)[:20]!r}, not true or false")
    cell = _numbers(result, "cell", (3, 3))
    coords = _numbers(result, "frac_coords", (len(numbers), 3))
    if isinstance(energy, bool) or not isinstance(energy, int | float):
        raise TypeError("energy is not a number")
    if not math.isfinite(float(energy)):
        raise ValueError(f"energy is {energy}, not a finite number")
    return Structure(cell, numbers, coords), float(energy), converged


def _is_element(number: object) -> bool:
    """Return whether a value is the atomic number of an element that crystals can have."""
    if isinstance(number, bool) or not isinstance(number, int):
        return False
    return 1 <= number <= MAX_ATOMIC_NUMBER


def _numbers(result: Mapping[str, Any], key: str, shape: tuple[int, int]) -> np.ndarray:
    """Return the finite numbers of a key as an array of the given shape.

    Raises:
        ValueError: the shape is another one, or a value is not a finite number.
    """
    given = np.asarray(result[key])
    if given.shape != shape or given.dtype.kind not in "if":
        raise ValueError(f"{key} is not an array of {shape[0]} times {shape[1]} numbers")
    if not np.isfinite(given).all():
        raise ValueError(f"{key} has a non-finite number")
    return given.astype(float)


def _check_inputs(result: Mapping[str, Any], path: Path, requested: RequestedRun) -> None:
    """Compare a result with the manifest, and with the inputs in its folder if they are readable.

    Raises:
        RunProblem: the result belongs to other inputs (`other_settings`, `wrong_functional`,
            `wrong_composition`).
    """
    if requested.input_set not in (None, OTHER_SETS["gpaw"]):
        detail = f"{path.name} is from GPAW, expected a run with {requested.input_set}"
        raise RunProblem("other_settings", detail)
    if str(result.get("xc", "PBE"))[:20] != "PBE":
        raise RunProblem(
            "wrong_functional", f"{path.name}: xc is {str(result['xc'])[:20]}, not PBE"
        )
    try:
        given = _read_object(path.with_name(GPAW_INPUT))
    except RunProblem:
        return
    if result["atomic_numbers"] != given.get("atomic_numbers"):
        detail = f"{path.name}: atomic_numbers differs from {GPAW_INPUT} in the same folder"
        raise RunProblem("wrong_composition", detail)
    for key in _COMPARED:
        if key in result and key in given and not _is_equal(result[key], given[key]):
            detail = f"{path.name}: {key} differs from {GPAW_INPUT} in the same folder"
            raise RunProblem("other_settings", detail)


def _is_equal(one: Any, other: Any) -> bool:
    """Return whether two values are equal, numbers within `_TOLERANCE`."""
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    try:
        return bool(np.allclose(one, other, rtol=0, atol=_TOLERANCE))
    except (ValueError, TypeError):
        return False
