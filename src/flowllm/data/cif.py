"""CIF text to crystal record: parsing, primitive cell, Niggli reduction and checks."""

import math
import warnings
from collections import Counter
from typing import Literal

import numpy as np
import spglib
from pymatgen.core import Lattice, Structure

from flowllm.crystal import MIN_DISTANCE, Crystal, formula_key
from flowllm.data.cif_blocks import split_blocks
from flowllm.data.cif_structure import read_structure
from flowllm.data.rejected import RejectedError
from flowllm.data.spglib_calls import or_none
from flowllm.data.standard_cell import NoDescriptionError, standardized
from flowllm.data.standard_frame import NIGGLI_TOLERANCE
from flowllm.errors import FlowllmError

Cell = Literal["primitive", "as_given", "standard"]
"""How a crystal's cell is chosen."""

PRIMITIVE_TOLERANCE = 0.01
"""Angstrom. Two atoms are equivalent if a translation maps one onto the other within this distance,
which is the noise of a relaxed structure. pymatgen's default of 0.25 merges cells that differ by
real displacements (20 of 1,800 in MP-20)."""

ANGLE_TOLERANCE = 0.01
"""Degrees by which rounding may move an angle of a Niggli cell out of [60, 120]."""


def crystal_from_cif(text: str, cell: Cell, max_atoms: int) -> Crystal:
    """Parse a CIF and return its Niggli-reduced crystal, coordinates in [0, 1).

    Args:
        text: one CIF with one structure.
        cell: reduce to the primitive cell first, or keep the given cell's volume; standard: the
            primitive cell with origin and axes of the space group's standard setting.
        max_atoms: largest number of atoms in the resulting cell.

    Raises:
        RejectedError: with one of the reasons of `read_structure`, or too_many_atoms, not_reduced,
            close_atoms, bad_crystal or no_standard_cell.
    """
    with warnings.catch_warnings():
        # Several remarks on rounding and symmetry per row; what matters is checked here.
        warnings.simplefilter("ignore")
        structure = structure_from_cif(text)
        if cell != "as_given":
            # Rejected before the search for the primitive cell, which takes minutes in large cells.
            check_size(atoms_in_formula(structure), max_atoms, "the formula")
        # Before the reduction, which treats a shift of 0.004 angstrom as a translation.
        check_distances(structure)
        structure = reduce_cell(structure, cell)
        check_distances(structure)
    check_size(len(structure), max_atoms, f"the {cell} cell")
    try:
        crystal = Crystal.from_structure(structure)
    except FlowllmError as error:
        raise RejectedError("bad_crystal", str(error)) from error
    return _standard_cell(crystal) if cell == "standard" else crystal


def crystal_in_cell(crystal: Crystal, cell: Cell) -> Crystal:
    """Return a crystal in the Niggli cell that `crystal_from_cif` would choose.

    Raises:
        RejectedError: not_reduced, bad_crystal, close_atoms or no_standard_cell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `crystal_from_cif`
        structure = reduce_cell(crystal.to_structure(), cell)
    try:
        reduced = Crystal.from_structure(structure)
    except FlowllmError as error:
        raise RejectedError("bad_crystal", str(error)) from error
    return _standard_cell(reduced) if cell == "standard" else reduced


def _standard_cell(crystal: Crystal) -> Crystal:
    """Return the primitive cell of the space group's standard setting.

    Raises:
        RejectedError: no_standard_cell, or close_atoms where the symmetry brings atoms together.
    """
    try:
        standard = standardized(crystal).crystal
    except (NoDescriptionError, FlowllmError, ValueError) as error:
        raise RejectedError("no_standard_cell", str(error)) from error
    check_distances(standard.to_structure())
    return standard


def structure_from_cif(text: str) -> Structure:
    """Return the one structure of a CIF: the cell as given and all atoms, without charges.

    Raises:
        RejectedError: as in `read_structure`; also bad_cif, where the CIF does not have exactly one
            structure.
    """
    blocks = split_blocks(text)
    if len(blocks) > 1:
        # A block with a cell but no atoms describes a measurement.
        blocks = [block for block in blocks if "_atom_site" in block.lower()]
    if len(blocks) != 1:
        raise RejectedError("bad_cif", f"{len(blocks)} structures in one CIF, expected one")
    return read_structure(blocks[0])


def check_distances(structure: Structure) -> None:
    """Reject atoms closer than `MIN_DISTANCE`, periodic images included.

    Raises:
        RejectedError: close_atoms.
    """
    distances = structure.distance_matrix
    np.fill_diagonal(distances, min(structure.lattice.abc))
    first, second = np.unravel_index(distances.argmin(), distances.shape)
    if distances[first, second] < MIN_DISTANCE:
        raise RejectedError(
            "close_atoms",
            f"atoms {first + 1} ({structure[first].species_string}) and {second + 1} "
            f"({structure[second].species_string}) are {distances[first, second]:.3f} angstrom "
            f"apart, at least {MIN_DISTANCE} are needed; coordinates of special positions need "
            "four decimal places",
        )


def atoms_in_formula(structure: Structure) -> int:
    """Return the number of atoms in the reduced formula; no cell of the crystal has fewer."""
    counts = Counter(site.species_string for site in structure)
    return len(structure) // math.gcd(*counts.values())


def check_size(num_atoms: int, max_atoms: int, where: str) -> None:
    """Reject more atoms than allowed.

    Raises:
        RejectedError: too_many_atoms.
    """
    if num_atoms > max_atoms:
        raise RejectedError("too_many_atoms", f"{num_atoms} atoms in {where}, limit {max_atoms}")


def reduce_cell(structure: Structure, cell: Cell) -> Structure:
    """Return the structure in its Niggli cell: the three shortest vectors, angles in [60, 120].

    Args:
        structure: an ordered structure.
        cell: as_given to keep the volume, otherwise the cell of smallest volume.

    Raises:
        RejectedError: not_reduced, where the reduction fails or an angle is out of bounds.
    """
    try:
        if cell != "as_given":
            structure = structure.get_primitive_structure(tolerance=PRIMITIVE_TOLERANCE)
            # pymatgen has ordered it by symbol.
            structure = structure.get_sorted_structure(lambda site: formula_key(site.specie.Z))
        reduced = niggli_reduced(structure)
    except Exception as error:
        # The reduction of a degenerate lattice fails with many kinds of error.
        raise RejectedError("not_reduced", f"{type(error).__name__}: {error}") from error
    angles = np.asarray(reduced.lattice.angles)
    if angles.min() < 60 - ANGLE_TOLERANCE or angles.max() > 120 + ANGLE_TOLERANCE:
        raise RejectedError("not_reduced", f"angles {angles.tolist()} out of [60, 120] degrees")
    return reduced


def niggli_reduced(structure: Structure) -> Structure:
    """Return the structure in the Niggli cell of its lattice (International Tables A, 9.2).

    The reduction is spglib's. pymatgen's maps the reduced cell onto the lattice with a tolerance
    of one degree and so gives another cell for 1 in 80 crystals of MP-20.

    Raises:
        ValueError: the reduction fails, or its cell is not one of the same lattice.
    """
    matrix = structure.lattice.matrix
    reduced = or_none(spglib.niggli_reduce, matrix, eps=NIGGLI_TOLERANCE)
    if reduced is None:
        raise ValueError(f"no Niggli cell for lengths {structure.lattice.abc}")
    # New vectors (rows) in terms of the old ones: whole numbers, determinant 1 or -1.
    change = np.rint(reduced @ np.linalg.inv(matrix))
    if not abs(abs(np.linalg.det(change)) - 1) < 1e-6:
        raise ValueError(f"the reduction of lengths {structure.lattice.abc} changed the lattice")
    coords = structure.frac_coords @ np.linalg.inv(change)
    return Structure(Lattice(change @ matrix), structure.species, coords)
