"""From CIF text to the crystal record: parse, primitive cell, Niggli reduction, checks."""

import math
import warnings
from collections import Counter
from typing import Literal

import numpy as np
import spglib
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError

PRIMITIVE_TOLERANCE = 0.01
"""Angstrom. Two atoms are copies of each other when a translation maps one onto the other this
closely. pymatgen's default of 0.25 merges cells that differ by real displacements, 20 of 1,800 in
MP-20; this is the noise of a relaxed structure."""

ANGLE_TOLERANCE = 0.01
"""Degrees by which rounding may take a Niggli cell's angle out of [60, 120]."""


NIGGLI_TOLERANCE = 1e-5
"""Spglib's tolerance, square angstrom: terms of the metric this close count as equal."""


class RejectedError(Exception):
    """A crystal that cannot be used: the reason's short name, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def crystal_from_cif(text: str, cell: Literal["primitive", "as_given"], max_atoms: int) -> Crystal:
    """Parse a CIF and return its Niggli-reduced crystal, coordinates in [0, 1).

    Args:
        text: one CIF with one structure.
        cell: reduce to the primitive cell first, or keep the given cell's volume.
        max_atoms: largest number of atoms in the resulting cell.

    Raises:
        RejectedError: with one of the reasons bad_cif, formula_mismatch, disordered, no_element,
            too_many_atoms, not_reduced or bad_crystal.
    """
    with warnings.catch_warnings():
        # Rounding and symmetry remarks, a few a row; what matters is checked here.
        warnings.simplefilter("ignore")
        structure = parse_cif(text)
        check_sites(structure)
        if cell == "primitive":
            # A hopeless one is turned away at once: the search in a large cell takes minutes.
            check_size(atoms_in_formula(structure), max_atoms, "the formula")
        structure = reduce_cell(structure, cell)
    check_size(len(structure), max_atoms, f"the {cell} cell")
    try:
        return Crystal.from_structure(structure)
    except FlowllmError as error:
        raise RejectedError("bad_crystal", str(error)) from error


def parse_cif(text: str) -> Structure:
    """Return the one structure of a CIF, with the cell as given.

    Raises:
        RejectedError: bad_cif or formula_mismatch.
    """
    try:
        parser = CifParser.from_str(text)
        structures = parser.parse_structures(primitive=False, on_error="raise")
        mismatch = parser.check(structures[0])
    except Exception as error:
        # pymatgen raises nearly anything on a malformed CIF; the row is rejected with the reason.
        raise RejectedError("bad_cif", f"{type(error).__name__}: {error}") from error
    if len(structures) != 1:
        raise RejectedError("bad_cif", f"{len(structures)} structures in one CIF, expected one")
    # `check` also remarks that a CIF states no formula at all, which is no fault of the crystal.
    if mismatch and mismatch.startswith(("Missing elements", "Incorrect stoichiometry")):
        raise RejectedError("formula_mismatch", f"formula and sites disagree: {mismatch}")
    return structures[0]


def check_sites(structure: Structure) -> None:
    """Refuse disordered sites and sites that hold no element.

    Raises:
        RejectedError: disordered or no_element.
    """
    disordered = [str(site.species) for site in structure if not site.is_ordered]
    if disordered:
        raise RejectedError("disordered", f"{len(disordered)} sites, the first: {disordered[0]}")
    strange = [species.symbol for species in structure.composition if not 1 <= species.Z <= 118]
    if strange:
        raise RejectedError("no_element", f"{strange[0]} is not an element")


def atoms_in_formula(structure: Structure) -> int:
    """Number of atoms in the reduced formula; no cell of the crystal holds fewer."""
    counts = Counter(site.species_string for site in structure)
    return len(structure) // math.gcd(*counts.values())


def check_size(num_atoms: int, max_atoms: int, where: str) -> None:
    """Refuse more atoms than allowed.

    Raises:
        RejectedError: too_many_atoms.
    """
    if num_atoms > max_atoms:
        raise RejectedError("too_many_atoms", f"{num_atoms} atoms in {where}, limit {max_atoms}")


def reduce_cell(structure: Structure, cell: Literal["primitive", "as_given"]) -> Structure:
    """Return the structure in its Niggli cell: the three shortest vectors, angles in [60, 120].

    Args:
        structure: an ordered structure.
        cell: primitive for the cell of smallest volume, as_given for the volume given.

    Raises:
        RejectedError: not_reduced, where the reduction fails or its angles are out of bounds.
    """
    try:
        if cell == "primitive":
            structure = structure.get_primitive_structure(tolerance=PRIMITIVE_TOLERANCE)
        reduced = niggli_reduced(structure)
    except Exception as error:
        # The reduction of a degenerate lattice fails in many ways; the row says which.
        raise RejectedError("not_reduced", f"{type(error).__name__}: {error}") from error
    angles = np.asarray(reduced.lattice.angles)
    if angles.min() < 60 - ANGLE_TOLERANCE or angles.max() > 120 + ANGLE_TOLERANCE:
        raise RejectedError("not_reduced", f"angles {angles.tolist()} out of [60, 120] degrees")
    return reduced


def niggli_reduced(structure: Structure) -> Structure:
    """Return the structure in the Niggli cell of its lattice (International Tables A, 9.2).

    spglib's reduction, since pymatgen's ends by mapping the reduced cell onto the lattice with a
    tolerance of one degree, and gives another cell for 1 in 80 of MP-20's crystals.

    Raises:
        ValueError: the reduction does not end, or not in a cell of the same lattice.
    """
    matrix = structure.lattice.matrix
    reduced = spglib.niggli_reduce(matrix, eps=NIGGLI_TOLERANCE)
    if reduced is None:
        raise ValueError(f"no Niggli cell for lengths {structure.lattice.abc}")
    # The new vectors (rows) in terms of the old ones: whole numbers, determinant 1 or -1.
    change = np.rint(reduced @ np.linalg.inv(matrix))
    if not abs(abs(np.linalg.det(change)) - 1) < 1e-6:
        raise ValueError(f"the reduction of lengths {structure.lattice.abc} changed the lattice")
    coords = structure.frac_coords @ np.linalg.inv(change)
    return Structure(Lattice(change @ matrix), structure.species, coords)
