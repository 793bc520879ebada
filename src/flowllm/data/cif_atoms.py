"""The cell, the listed atoms and the formula of a CIF."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np
from pymatgen.core import Composition, Element, Lattice

from flowllm.crystal import lattice_has_volume
from flowllm.data.cif_blocks import Block, read_number
from flowllm.data.rejected import RejectedError

LENGTHS = ("_cell_length_a", "_cell_length_b", "_cell_length_c")
ANGLES = ("_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma")
COORDINATES = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")

THIRDS_TOLERANCE = 1e-4
"""Relative difference within which a coordinate is 1/3 or 2/3, pymatgen's."""

SAME_PLACE = 0.002
"""Angstrom. Images of one atom this close are the same atom, on a special position that its
coordinates miss by their fourth decimal place."""

OCCUPANCY_TOLERANCE = 1e-6

FORMULA_TOLERANCE = 0.01
"""Relative difference of a count from the formula's, which may be rounded: pymatgen's."""

_LETTERS = re.compile(r"[A-Za-z]+")
_CAPITALS = re.compile(r"[A-Z0-9. ]+")
_SYMBOLS = re.compile(rf"((?:{'|'.join(one.symbol for one in Element)})[0-9. ]*)+")
_SEVERAL = re.compile(r"[A-Za-z0-9]\s*[+,/&]\s*[0-9.]*[A-Z]")


@dataclass(frozen=True)
class Atom:
    """One atom that a CIF lists, fully occupied.

    Attributes:
        number: atomic number, 1 to 118.
        coords: float (3,), fractional, as the CIF gives them; thirds are exact.
        multiplicity: atoms per cell that the CIF says the site has, None where it does not say.
    """

    number: int
    coords: np.ndarray
    multiplicity: int | None


@dataclass(frozen=True)
class Formula:
    """What a CIF says of the number of atoms per cell.

    Attributes:
        counts: atomic number to count in `_chemical_formula_sum`, None where it is missing.
        units: `_cell_formula_units_Z`, None where it is missing.
    """

    counts: dict[int, float] | None
    units: int | None

    def fits(self, found: Counter[int]) -> bool:
        """Whether the atoms of a cell are the formula times Z, or the formula itself.

        The formula itself only where Z divides it: programs write the atoms of the whole cell as
        the formula, with Z as the divisor of the counts.
        """
        if self.counts is None:
            return self.units is None or all(n % self.units == 0 for n in found.values())
        if self.counts.keys() != found.keys():
            return False
        if self.units is None:
            return self._is_multiple(found, sum(found.values()) / sum(self.counts.values()))
        whole = all(_is_close(count % self.units, 0) for count in self.counts.values())
        return self._is_multiple(found, self.units) or (whole and self._is_multiple(found, 1))

    def confirms(self, found: Counter[int]) -> bool:
        """Whether the CIF gives the number of atoms per cell, and they are these."""
        if self.counts is None:
            return False
        return self.fits(found) and (self.units is not None or self._is_multiple(found, 1))

    def _is_multiple(self, found: Counter[int], factor: float) -> bool:
        return all(_is_close(found[z], factor * count) for z, count in self.counts.items())

    def __str__(self) -> str:
        """Return the formula and Z for a person."""
        counts = "no formula" if self.counts is None else formula_text(self.counts)
        return f"{counts}, Z {'not given' if self.units is None else self.units}"


def formula_text(counts: dict[int, float]) -> str:
    """Return counts by atomic number as a formula."""
    return " ".join(f"{Element.from_Z(z).symbol}{count:g}" for z, count in counts.items())


def read_lattice(block: Block) -> Lattice:
    """Return the cell of a CIF.

    Raises:
        RejectedError: bad_cif, where a length or angle is missing or makes no cell.
    """
    lengths = [_number_of(block, name) for name in LENGTHS]
    angles = [_number_of(block, name) for name in ANGLES]
    if min(lengths) <= 0 or not lattice_has_volume(np.array(angles)):
        raise RejectedError("bad_cif", f"no cell has the lengths {lengths} and angles {angles}")
    return Lattice.from_parameters(*lengths, *angles)


def read_formula(block: Block) -> Formula:
    """Return the formula and Z of a CIF.

    Raises:
        RejectedError: bad_cif, where one of them cannot be read.
    """
    text = block.first("_chemical_formula_sum")
    units = block.first("_cell_formula_units_z")
    if units is not None:
        number = _number(units, "_cell_formula_units_Z")
        if number < 1 or number != int(number):
            raise RejectedError("bad_cif", f"_cell_formula_units_Z is {units}, expected 1, 2, ...")
    counts = None if text is None else _counts(text)
    return Formula(counts, None if units is None else int(number))


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
        occupancy = _number(row.get("_atom_site_occupancy") or "1", "_atom_site_occupancy")
        if row.get("_atom_site_calc_flag") == "dum" or occupancy == 0:
            continue
        _check_row(row, occupancy)
        atom = Atom(_element(row, elements), _coords(row), _multiplicity(row))
        parts.append((atom, occupancy))
    if not parts:
        raise RejectedError("bad_cif", "there are no atoms with coordinates")
    return _whole(parts, lattice)


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
        raise RejectedError("bad_cif", f"{missing[0]} has not as many values as {COORDINATES[0]}")
    return columns


def _check_row(row: dict[str, str | None], occupancy: float) -> None:
    """Reject what makes the listed atoms others than those of the crystal."""
    label = row.get("_atom_site_label") or row.get("_atom_site_type_symbol")
    if row.get("_atom_site_disorder_group") not in (None, "0", "1"):
        raise RejectedError("disordered", f"atom {label} is of an alternative disorder group")
    if not 0 < occupancy <= 1 + OCCUPANCY_TOLERANCE:
        raise RejectedError("disordered", f"atom {label} has the occupancy {occupancy:g}")
    hydrogens = _number(row.get("_atom_site_attached_hydrogens") or "0", "attached_hydrogens")
    if hydrogens:
        raise RejectedError("missing_atoms", f"{hydrogens:g} hydrogen at {label} has no place")


def _whole(parts: list[tuple[Atom, float]], lattice: Lattice) -> list[Atom]:
    """Return atoms for parts that are listed, which may share a place as ions of one element.

    Fe2+ and Fe3+, each half, are one iron atom here: charges are no part of a crystal.
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
    """Return the distance of two atoms in angstrom, right for small distances."""
    difference = other.coords - one.coords
    return float(np.linalg.norm((difference - np.rint(difference)) @ lattice.matrix))


def _element(row: dict[str, str | None], formula: dict[int, float] | None) -> int:
    """Return the atomic number of a row: from its symbol, else from its label.

    A label is free text: what is not a symbol and a number, such as CA1 or OW, is read only where
    the formula decides.

    Raises:
        RejectedError: no_element or disordered.
    """
    symbol = row.get("_atom_site_type_symbol")
    text = symbol or row.get("_atom_site_label") or ""
    if symbol and _SEVERAL.search(symbol):
        raise RejectedError("disordered", f"the site {symbol!r} holds several elements")
    match = _LETTERS.match(text)
    letters = match[0] if match else ""
    if Element.is_valid_symbol(letters):
        return Element(letters).Z
    if symbol:
        numbers = _numbers_of(letters)
    else:
        numbers = _numbers_of(letters[:1], letters[:2]) & (formula or {}).keys()
    if len(numbers) != 1:
        where = "_atom_site_type_symbol" if symbol else "_atom_site_label"
        raise RejectedError("no_element", f"{where} {text!r} is not an element's symbol")
    return numbers.pop()


def _numbers_of(*letters: str) -> set[int]:
    """Return the atomic numbers of the symbols among some letters, in any case."""
    symbols = [one.capitalize() for one in letters]
    return {Element(one).Z for one in symbols if Element.is_valid_symbol(one)}


def _coords(row: dict[str, str | None]) -> np.ndarray:
    """Return the fractional coordinates of a row, thirds exact."""
    coords = []
    for name in COORDINATES:
        text = row[name]
        if text is None:
            raise RejectedError("bad_cif", f"{name} of {row.get('_atom_site_label')} is unknown")
        value = _number(text, name)
        thirds = [third for third in (1 / 3, 2 / 3) if _is_third(value, third)]
        coords.append(thirds[0] if thirds else value)
    return np.array(coords)


def _is_third(value: float, third: float) -> bool:
    return math.isclose(value / third, 1, abs_tol=THIRDS_TOLERANCE, rel_tol=0)


def _multiplicity(row: dict[str, str | None]) -> int | None:
    for name in ("_atom_site_site_symmetry_multiplicity", "_atom_site_symmetry_multiplicity"):
        text = row.get(name) or ""
        if text.isdecimal():
            return int(text)
    return None


def _counts(text: str) -> dict[int, float]:
    """Return the counts of a formula by atomic number."""
    if _CAPITALS.fullmatch(text) and not _SYMBOLS.fullmatch(text):
        text = text.title()
    try:
        found = Composition(text)
    except Exception as error:
        # pymatgen raises nearly anything on a malformed formula.
        raise RejectedError("bad_cif", f"_chemical_formula_sum {text!r}: {error}") from error
    if strange := [str(one) for one in found if not isinstance(one, Element)]:
        raise RejectedError("no_element", f"{strange[0]} in _chemical_formula_sum {text!r}")
    counts: Counter[int] = Counter()
    for element, count in found.items():
        counts[element.Z] += count
    return dict(counts)


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=FORMULA_TOLERANCE, abs_tol=1e-6) and (
        abs(one - other) < 0.5
    )


def _number_of(block: Block, name: str) -> float:
    text = block.first(name)
    if text is None:
        raise RejectedError("bad_cif", f"{name} is missing")
    return _number(text, name)


def _number(text: str, name: str) -> float:
    try:
        return read_number(text)
    except ValueError as error:
        raise RejectedError("bad_cif", f"{name}: {error}") from error
