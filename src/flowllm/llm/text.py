"""Crystal text: the representation of a crystal that the language model reads and generates.

Line 1 has the three lengths in angstrom with one decimal place, line 2 the three angles in whole
degrees. Two lines per atom follow: the symbol of its element, and its fractional coordinates with
two decimal places (paper, section 4.1)::

    5.6 5.6 5.6
    90 90 90
    Na
    0.00 0.00 0.00
    Cl
    0.50 0.50 0.50

Decoding a generated text returns either a crystal or a rejection with one reason. One of the
reasons does not concern the form and can be turned off: two atoms at the same point. A model with
little training repeats lines of coordinates, and the flow, which is equivariant under permutations,
cannot separate two atoms of one element that start at the same point. The paper's protocol does not
reject such texts.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
from pymatgen.core.periodic_table import Element

from flowllm.crystal import MAX_ATOMIC_NUMBER, Crystal, cell_formula, lattice_has_volume
from flowllm.llm.periodic_points import PeriodicPoints

MAX_LENGTH = 1000.0
"""Upper limit of lengths in angstrom. Longer cells of a few atoms are not crystals, and much longer
ones would overflow float32."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(\.[0-9]{1,12})?")
"""Numbers that are read: decimal numbers only. Python would also accept inf, nan, 1e9 and 1_0."""


class Reason(StrEnum):
    """Reasons why a text is not the requested crystal."""

    TRUNCATED = "truncated"
    WRONG_COUNT = "wrong_count"
    BAD_NUMBER = "bad_number"
    UNKNOWN_ELEMENT = "unknown_element"
    TOO_MANY_ATOMS = "too_many_atoms"
    NONPHYSICAL_LATTICE = "nonphysical_lattice"
    FORMULA_MISMATCH = "formula_mismatch"
    COINCIDING_ATOMS = "coinciding_atoms"
    CLOSE_ATOMS = "close_atoms"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Reason why a text is not the requested crystal, with details.

    Attributes:
        reason: name of the reason.
        detail: description with the line and its content.
    """

    reason: Reason
    detail: str


class _RejectedTextError(Exception):
    """Rejection of a text while it is decoded."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.rejection = Rejection(reason, detail)


def encode(crystal: Crystal) -> str:
    """Return the text of a crystal; the order of its atoms is kept.

    Numbers are rounded from the exact value of the stored float32 (ties to even) and never
    truncated. Rounded coordinates stay in [0, 1): 0.996 is written as 0.00, which is the nearest
    point of the torus.
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
    min_distance: float | None = None,
) -> Crystal | Rejection:
    """Return the crystal of a text, or the reason why it is rejected. No text raises an error.

    Spaces around lines are ignored, and coordinates outside [0, 1) are wrapped. Angles must be
    between 0 and 180 degrees and span a positive volume; the narrower interval of the flow is not
    checked here.

    Args:
        text: generated text without its end token.
        max_atoms: maximum number of atoms per cell.
        composition: required number of atoms per cell by atomic number, None for any.
        truncated: whether the text reached the maximum number of tokens without its end token.
        reject_close_atoms: whether texts with two atoms at one point are rejected.
        min_distance: minimum distance of two atoms, or of an atom and its image, in angstrom; None
            for none.

    Returns:
        The crystal, or the first reason in this order: truncated, number of lines or values,
        numbers, elements, number of atoms, lattice, formula, coinciding atoms, close atoms.
    """
    try:
        crystal = _decode(text, max_atoms, composition, truncated)
        if reject_close_atoms:
            _check_coinciding_atoms(crystal.frac_coords)
        if min_distance is not None:
            _check_distances(crystal, min_distance)
    except _RejectedTextError as error:
        return error.rejection
    return crystal


def read_numbers(line: str) -> list[float] | None:
    """Return the three numbers of a line, None if it has not just three decimal numbers."""
    words = line.split()
    if len(words) != 3 or not all(map(_NUMBER.fullmatch, words)):
        return None
    return [float(word) for word in words]


def composition_of(atomic_numbers: np.ndarray) -> dict[int, int]:
    """Return the number of atoms by atomic number, in ascending order of atomic number."""
    numbers, counts = np.unique(atomic_numbers, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


@cache
def element_symbol(atomic_number: int) -> str:
    """Return an element's symbol."""
    return Element.from_Z(atomic_number).symbol


@cache
def _atomic_numbers() -> dict[str, int]:
    """Return the atomic number of each symbol."""
    return {element_symbol(number): number for number in range(1, MAX_ATOMIC_NUMBER + 1)}


def _coordinate(value: float) -> str:
    """Return a coordinate with two decimal places, in [0, 1)."""
    text = f"{value % 1.0:.2f}"
    return "0.00" if text == "1.00" else text


def _decode(
    text: str, max_atoms: int, composition: Mapping[int, int] | None, truncated: bool
) -> Crystal:
    """Return the crystal of a text.

    Raises:
        _RejectedTextError: the text is not the requested crystal.
    """
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
    """Return the three numbers of a line, which is counted from 0."""
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
    """Return the atomic number of a line's symbol; lines are counted from 0."""
    symbol = lines[line].strip()
    if symbol not in _atomic_numbers():
        detail = f"line {line + 1}: {_excerpt(symbol)} is no element"
        raise _RejectedTextError(Reason.UNKNOWN_ELEMENT, detail)
    return _atomic_numbers()[symbol]


def _check_lattice(lengths: Sequence[float], angles: Sequence[float]) -> None:
    """Reject lengths (angstrom) and angles (degrees) that are not those of a cell."""
    if min(lengths) <= 0 or max(lengths) >= MAX_LENGTH:
        detail = f"lengths {lengths} are not all between 0 and {MAX_LENGTH:.0f} angstrom"
        raise _RejectedTextError(Reason.NONPHYSICAL_LATTICE, detail)
    if not lattice_has_volume(np.asarray(angles)):
        raise _RejectedTextError(Reason.NONPHYSICAL_LATTICE, f"angles {angles} span no volume")


def _check_coinciding_atoms(frac_coords: np.ndarray) -> None:
    """Reject two atoms with the same wrapped coordinates (n, 3)."""
    _, first, counts = np.unique(frac_coords, axis=0, return_index=True, return_counts=True)
    if counts.max() > 1:
        atom = int(first[counts.argmax()]) + 1
        detail = f"{counts.max()} atoms at the point of atom {atom}"
        raise _RejectedTextError(Reason.COINCIDING_ATOMS, detail)


def _check_distances(crystal: Crystal, min_distance: float) -> None:
    """Reject atoms nearer than a distance in angstrom to each other or to an image."""
    points = PeriodicPoints(crystal.lengths.tolist(), crystal.angles.tolist(), min_distance)
    for atom, coords in enumerate(crystal.frac_coords.astype(np.float64)):
        if not points.add(coords[None]):
            detail = (
                f"atom {atom + 1} is nearer than {min_distance} angstrom to another or an image"
            )
            raise _RejectedTextError(Reason.CLOSE_ATOMS, detail)


def _excerpt(text: str) -> str:
    """Return a quoted text, truncated to 40 characters."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
