"""The cell and the listed atoms of a CIF."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from pymatgen.core import Element, Lattice

from flowllm.crystal import lattice_has_volume
from flowllm.data.cif_blocks import Block, parse_number
from flowllm.data.cif_formula import read_formula
from flowllm.data.rejected import RejectedError

LENGTHS = ("_cell_length_a", "_cell_length_b", "_cell_length_c")
ANGLES = ("_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma")
COORDINATES = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")

MAX_LENGTH = 1e4
"""Angstrom. A longer cell edge is a mistyped number, and overflows in the reduction."""

THIRDS_TOLERANCE = 1e-4
"""Relative difference within which a coordinate is 1/3 or 2/3; the same as pymatgen's."""

SAME_PLACE = 0.002
"""Angstrom. Images of one atom this close are one atom on a special position, whose coordinates are
rounded to four decimal places."""

OCCUPANCY_TOLERANCE = 1e-6

_LETTERS = re.compile(r"[A-Za-z]+")
_SEVERAL = re.compile(r"[A-Za-z0-9]\s*[+,/&]\s*[0-9.]*[A-Z]")


@dataclass(frozen=True)
class Atom:
    """One atom that a CIF lists, fully occupied.

    Attributes:
        number: atomic number, 1 to 118.
        coords: float (3,), fractional, as the CIF gives them; 1/3 and 2/3 are exact.
        multiplicity: atoms per cell on this site according to the CIF, None where it is missing.
    """

    number: int
    coords: np.ndarray
    multiplicity: int | None


def read_lattice(block: Block) -> Lattice:
    """Return the cell of a CIF.

    Raises:
        RejectedError: bad_cif, where a length or angle is missing or makes no cell.
    """
    lengths = [_required_number(block, name) for name in LENGTHS]
    angles = [_required_number(block, name) for name in ANGLES]
    in_range = all(0 < length <= MAX_LENGTH for length in lengths)
    if not in_range or not lattice_has_volume(np.array(angles)):
        raise RejectedError("bad_cif", f"the lengths {lengths} and angles {angles} make no cell")
    return Lattice.from_parameters(*lengths, *angles)


def _required_number(block: Block, name: str) -> float:
    text = block.first(name)
    if text is None:
        raise RejectedError("bad_cif", f"{name} is missing")
    return parse_number(text, name)


def read_atoms(block: Block, lattice: Lattice) -> list[Atom]:
    """Return the atoms that a CIF lists, without dummies.

    Raises:
        RejectedError: bad_cif, disordered, no_element or missing_atoms (hydrogen without
            coordinates).
    """
    columns = _columns(block)
    elements = read_formula(block).counts
    parts: list[tuple[Atom, float]] = []
    for i in range(len(columns[COORDINATES[0]])):
        row = {name: values[i] for name, values in columns.items()}
        occupancy = _number_in(row, "_atom_site_occupancy", "1")
        if row.get("_atom_site_calc_flag") == "dum" or occupancy == 0:
            continue
        _check_row(row, occupancy)
        atom = Atom(_element(row, elements), _coords(row), _multiplicity(row))
        parts.append((atom, occupancy))
    if not parts:
        raise RejectedError("bad_cif", "the CIF lists no atoms with coordinates")
    return _whole_atoms(parts, lattice)


def _columns(block: Block) -> dict[str, Sequence[str | None]]:
    """Return the columns of the loop of atoms by name."""
    if missing := [name for name in COORDINATES if name not in block.values]:
        raise RejectedError("bad_cif", f"{missing[0]} is missing: the CIF lists no atoms")
    length = len(block.values[COORDINATES[0]])
    columns = {
        name: values
        for name, values in block.values.items()
        if re.match(r"_atom_site_(?!aniso|moment)", name) and len(values) == length
    }
    if missing := [name for name in COORDINATES if name not in columns]:
        raise RejectedError(
            "bad_cif", f"{missing[0]} has another number of values than {COORDINATES[0]}"
        )
    return columns


def _check_row(row: dict[str, str | None], occupancy: float) -> None:
    """Reject a row that is not one atom of an ordered crystal."""
    label = row.get("_atom_site_label") or row.get("_atom_site_type_symbol")
    if row.get("_atom_site_disorder_group") not in (None, "0", "1"):
        raise RejectedError("disordered", f"atom {label} is in an alternative disorder group")
    if not 0 < occupancy <= 1 + OCCUPANCY_TOLERANCE:
        raise RejectedError("disordered", f"atom {label} has the occupancy {occupancy:g}")
    hydrogens = _number_in(row, "_atom_site_attached_hydrogens", "0")
    if hydrogens:
        raise RejectedError(
            "missing_atoms", f"{hydrogens:g} hydrogen atoms at {label} have no coordinates"
        )


def _number_in(row: dict[str, str | None], name: str, default: str) -> float:
    return parse_number(row.get(name) or default, name)


def _whole_atoms(parts: list[tuple[Atom, float]], lattice: Lattice) -> list[Atom]:
    """Join partly occupied sites of one element in one place into one atom.

    Fe2+ and Fe3+, each with the occupancy 0.5, are one iron atom, since charges are dropped.

    Args:
        parts: the listed atoms and their occupancies.
        lattice: the cell.

    Raises:
        RejectedError: disordered, where the occupancies in a place do not add up to 1, or the
            elements differ.
    """
    atoms = [atom for atom, occupancy in parts if occupancy >= 1 - OCCUPANCY_TOLERANCE]
    partial = [part for part in parts if part[1] < 1 - OCCUPANCY_TOLERANCE]
    while partial:
        first = partial[0][0]
        is_here = [_distance(first, atom, lattice) < SAME_PLACE for atom, _ in partial]
        here = [*compress(partial, is_here)]
        partial = [part for part, near in zip(partial, is_here, strict=True) if not near]
        total = sum(occupancy for _, occupancy in here)
        symbols = {Element.from_Z(atom.number).symbol for atom, _ in here}
        if len(symbols) > 1 or abs(total - 1) > OCCUPANCY_TOLERANCE:
            where = " ".join(f"{one:.4f}" for one in first.coords)
            detail = f"{', '.join(sorted(symbols))} at {where} has the occupancy {total:g}"
            raise RejectedError("disordered", detail)
        atoms.append(first)
    return atoms


def _distance(one: Atom, other: Atom, lattice: Lattice) -> float:
    """Return the distance of two atoms in angstrom; exact for atoms that are close."""
    difference = other.coords - one.coords
    return float(np.linalg.norm((difference - np.rint(difference)) @ lattice.matrix))


def _element(row: dict[str, str | None], formula: dict[int, float] | None) -> int:
    """Return the atomic number of a row, from its symbol or, without one, from its label.

    A label is free text. One that does not begin with a symbol, such as CA1 or OW, is read only
    where the formula decides.

    Raises:
        RejectedError: no_element or disordered.
    """
    symbol = row.get("_atom_site_type_symbol")
    text = symbol or row.get("_atom_site_label") or ""
    if symbol and _SEVERAL.search(symbol):
        raise RejectedError("disordered", f"the site {symbol!r} has several elements")
    match = _LETTERS.match(text)
    letters = match[0] if match else ""
    if Element.is_valid_symbol(letters):
        return int(Element(letters).Z)
    if symbol:
        numbers = _numbers_of(letters)
    else:
        numbers = _numbers_of(letters[:1], letters[:2]) & (formula or {}).keys()
    if len(numbers) != 1:
        where = "_atom_site_type_symbol" if symbol else "_atom_site_label"
        raise RejectedError("no_element", f"{where} {text!r} is not an element's symbol")
    return numbers.pop()


def _numbers_of(*words: str) -> set[int]:
    """Return the atomic numbers of those words that are a symbol, in upper or lower case."""
    symbols = [word.capitalize() for word in words]
    return {Element(one).Z for one in symbols if Element.is_valid_symbol(one)}


def _coords(row: dict[str, str | None]) -> np.ndarray:
    """Return the fractional coordinates of a row; 1/3 and 2/3 are exact."""
    coords = []
    for name in COORDINATES:
        text = row[name]
        if text is None:
            raise RejectedError("bad_cif", f"{name} of {row.get('_atom_site_label')} is unknown")
        value = parse_number(text, name)
        thirds = [third for third in (1 / 3, 2 / 3) if _is_third(value, third)]
        coords.append(thirds[0] if thirds else value)
    return np.array(coords)


def _is_third(value: float, third: float) -> bool:
    return math.isclose(value / third, 1, abs_tol=THIRDS_TOLERANCE, rel_tol=0)


def _multiplicity(row: dict[str, str | None]) -> int | None:
    for name in ("_atom_site_site_symmetry_multiplicity", "_atom_site_symmetry_multiplicity"):
        text = row.get(name) or ""
        if re.fullmatch("[0-9]{1,9}", text):
            return int(text)
    return None
