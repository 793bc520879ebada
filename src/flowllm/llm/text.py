"""Crystal text: what the language model reads and writes of a crystal, and nothing else.

Line 1 holds the three lengths in angstrom with one decimal place, line 2 the three angles in whole
degrees; then each atom has two lines, its element's symbol and its fractional coordinates with two
decimal places (paper, section 4.1)::

    5.6 5.6 5.6
    90 90 90
    Na
    0.00 0.00 0.00
    Cl
    0.50 0.50 0.50

Decoding a generated text gives either a crystal or one named reason why there is none. One of them
is not about the form and can be turned off: two atoms at the same point. A model with little
training repeats coordinate lines, and the flow, which treats like atoms alike, can never separate
two of them that start at one point. The paper's protocol does not reject such texts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
from pymatgen.core.periodic_table import Element

from flowllm.crystal import MAX_ATOMIC_NUMBER, Crystal, cell_formula, lattice_has_volume

MAX_LENGTH = 1000.0
"""Angstrom. A longer cell edge is no crystal of a few atoms, and might overflow float32."""

# A model writes what it likes: only plain decimal numbers are read, so no inf, nan, 1e9 or 1_0.
_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(\.[0-9]{1,12})?")


class Reason(StrEnum):
    """Why a text is not the crystal that was asked for."""

    TRUNCATED = "truncated"
    WRONG_COUNT = "wrong_count"
    BAD_NUMBER = "bad_number"
    UNKNOWN_ELEMENT = "unknown_element"
    TOO_MANY_ATOMS = "too_many_atoms"
    NONPHYSICAL_LATTICE = "nonphysical_lattice"
    FORMULA_MISMATCH = "formula_mismatch"
    COINCIDING_ATOMS = "coinciding_atoms"


@dataclass(frozen=True, slots=True)
class Rejection:
    """A text that is not the crystal that was asked for.

    Attributes:
        reason: its short name.
        detail: the same for a person, with the line and what stands there.
    """

    reason: Reason
    detail: str


class _RejectedTextError(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason, detail)


def encode(crystal: Crystal) -> str:
    """Write a crystal as text, its atoms in the order they have.

    Numbers are rounded as the decimal notation of the stored float32 says (ties to even), never
    truncated. Rounded coordinates stay in [0, 1): 0.996 is written 0.00, the same point.
    """
    lines = [
        " ".join(f"{length:.1f}" for length in crystal.lengths.tolist()),
        " ".join(f"{angle:.0f}" for angle in crystal.angles.tolist()),
    ]
    for number, coords in zip(crystal.atomic_numbers, crystal.frac_coords.tolist(), strict=True):
        lines += [element_symbol(int(number)), " ".join(map(_coordinate, coords))]
    return "\n".join(lines)


def decode(
    text: str,
    *,
    max_atoms: int,
    composition: Mapping[int, int] | None = None,
    truncated: bool = False,
    reject_close_atoms: bool = True,
) -> Crystal | Rejection:
    """Read a crystal from text, or say why it cannot be one. Raises on no text whatever.

    Spaces around lines do not matter; coordinates outside [0, 1) are wrapped. Angles are held to
    what a cell can have (between 0 and 180 degrees, a positive volume); the narrower interval of
    the flow is the flow's affair.

    Args:
        text: what the model wrote, without its end token.
        max_atoms: the most atoms a cell may have.
        composition: atomic number to number of atoms in the cell, where a formula was asked for.
        truncated: the text ended for want of tokens, not with the end token.
        reject_close_atoms: reject two atoms at one point.

    Returns:
        The crystal, or the first reason found in the order: truncated, number of lines or values,
        numbers, elements, number of atoms, lattice, formula, coinciding atoms.
    """
    try:
        crystal = _decode(text, max_atoms, composition, truncated)
        if reject_close_atoms:
            _check_points(crystal.frac_coords)
    except _RejectedTextError as error:
        return error.rejection
    return crystal


def composition_of(atomic_numbers: np.ndarray) -> dict[int, int]:
    """Count the atoms of each element: atomic number to count, in order of atomic number."""
    numbers, counts = np.unique(atomic_numbers, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


@cache
def element_symbol(atomic_number: int) -> str:
    """Return an element's symbol."""
    return Element.from_Z(atomic_number).symbol


@cache
def _atomic_numbers() -> dict[str, int]:
    return {element_symbol(number): number for number in range(1, MAX_ATOMIC_NUMBER + 1)}


def _coordinate(value: float) -> str:
    """Two decimal places, in [0, 1)."""
    text = f"{value % 1.0:.2f}"
    return "0.00" if text == "1.00" else text


def _decode(
    text: str, max_atoms: int, composition: Mapping[int, int] | None, truncated: bool
) -> Crystal:
    if truncated:
        raise _RejectedTextError(Reason.TRUNCATED, "the text stopped before its end token")
    lines = text.strip().split("\n")
    if len(lines) < 4 or len(lines) % 2:
        detail = f"{len(lines)} lines, expected 2 and 2 for each atom"
        raise _RejectedTextError(Reason.WRONG_COUNT, detail)
    lengths = _three_numbers(lines, 0)
    angles = _three_numbers(lines, 1)
    coords = [_three_numbers(lines, line) for line in range(3, len(lines), 2)]
    numbers = [_element(lines, line) for line in range(2, len(lines), 2)]
    if len(numbers) > max_atoms:
        detail = f"{len(numbers)} atoms, at most {max_atoms} are allowed"
        raise _RejectedTextError(Reason.TOO_MANY_ATOMS, detail)
    _check_lattice(lengths, angles)
    crystal = Crystal.from_arrays(numbers, coords, lengths, angles)
    if composition is not None and composition_of(crystal.atomic_numbers) != dict(composition):
        asked = cell_formula(np.repeat(list(composition), list(composition.values())))
        detail = f"{crystal.formula}, asked for {asked}"
        raise _RejectedTextError(Reason.FORMULA_MISMATCH, detail)
    return crystal


def _three_numbers(lines: Sequence[str], line: int) -> list[float]:
    words = lines[line].split()
    if len(words) != 3:
        detail = f"line {line + 1} has {len(words)} values, expected 3: {_excerpt(lines[line])}"
        raise _RejectedTextError(Reason.WRONG_COUNT, detail)
    for word in words:
        if _NUMBER.fullmatch(word) is None:
            detail = f"line {line + 1}: {_excerpt(word)} is not a number"
            raise _RejectedTextError(Reason.BAD_NUMBER, detail)
    return [float(word) for word in words]


def _element(lines: Sequence[str], line: int) -> int:
    symbol = lines[line].strip()
    if symbol not in _atomic_numbers():
        detail = f"line {line + 1}: {_excerpt(symbol)} is no element"
        raise _RejectedTextError(Reason.UNKNOWN_ELEMENT, detail)
    return _atomic_numbers()[symbol]


def _check_lattice(lengths: Sequence[float], angles: Sequence[float]) -> None:
    if min(lengths) <= 0 or max(lengths) >= MAX_LENGTH:
        detail = f"lengths {lengths} are not all between 0 and {MAX_LENGTH:.0f} angstrom"
        raise _RejectedTextError(Reason.NONPHYSICAL_LATTICE, detail)
    if not lattice_has_volume(np.asarray(angles)):
        raise _RejectedTextError(Reason.NONPHYSICAL_LATTICE, f"angles {angles} span no volume")


def _check_points(frac_coords: np.ndarray) -> None:
    """Reject two atoms at one point; the coordinates are wrapped already."""
    _, first, counts = np.unique(frac_coords, axis=0, return_index=True, return_counts=True)
    if counts.max() > 1:
        atom = int(first[counts.argmax()]) + 1
        detail = f"{counts.max()} atoms at the point of atom {atom}"
        raise _RejectedTextError(Reason.COINCIDING_ATOMS, detail)


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
