"""The structure of one CIF block: all atoms of its cell, from the listed atoms and the symmetry."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Lattice, Structure
from scipy.spatial import cKDTree

from flowllm.data.cif_atoms import (
    SAME_PLACE,
    Atom,
    read_atoms,
    read_lattice,
)
from flowllm.data.cif_blocks import read_block
from flowllm.data.cif_formula import Formula, formula_text, read_formula
from flowllm.data.cif_symmetry import Symmetry, symmetry_of
from flowllm.data.rejected import RejectedError
from flowllm.data.symmetry_operations import Operations

SAME_CRYSTAL = 1e-3
"""Fraction of a cell edge. Two interpretations of a CIF whose atoms agree this closely are one
crystal."""


@dataclass(frozen=True)
class Cell:
    """All atoms of a cell in one interpretation of a CIF.

    Attributes:
        numbers: int (n,), atomic numbers.
        coords: float (n, 3), fractional, in [0, 1).
        multiplicities_fit: whether the CIF gives the multiplicities of its sites, and they agree
            with this interpretation.
    """

    numbers: np.ndarray
    coords: np.ndarray
    multiplicities_fit: bool

    @property
    def counts(self) -> Counter[int]:
        """Number of atoms by atomic number."""
        return Counter(self.numbers.tolist())


def read_structure(block: str) -> Structure:
    """Return the structure of a CIF with one data block: the cell as given and all its atoms.

    Charges are dropped, since Fe2+ and Fe3+ are one element in a crystal text.

    Raises:
        RejectedError: with one of the reasons bad_cif, disordered, no_element, missing_atoms,
            modulated, unknown_symmetry, symmetry_mismatch, ambiguous_symmetry or formula_mismatch.
    """
    read = read_block(block)
    lattice = read_lattice(read)
    symmetry = symmetry_of(read, lattice)
    atoms = read_atoms(read, lattice)
    cells = [expand(atoms, operations, lattice) for operations in symmetry.possible]
    cell = choose(cells, symmetry, read_formula(read))
    # Sorted by electronegativity, as pymatgen sorts the atoms of a CIF.
    return Structure(lattice, cell.numbers.tolist(), cell.coords).get_sorted_structure()


def expand(atoms: Sequence[Atom], operations: Operations, lattice: Lattice) -> Cell:
    """Apply symmetry operations to the listed atoms.

    An image that coincides with another listed atom is left out, since many programs list all
    atoms of the cell beside the operations. Two atoms listed in one place are both kept, so that
    the check of distances finds them.
    """
    orbits: list[np.ndarray] = []
    for i, atom in enumerate(atoms):
        orbit = _orbit(atom.coords, operations, lattice)
        if len(operations) > 1 and _is_image(i, atoms, orbits, lattice):
            orbit = orbit[:0]
        orbits.append(orbit)
    sizes = [len(orbit) for orbit in orbits]
    given = [atom.multiplicity for atom in atoms]
    return Cell(
        numbers=np.repeat([atom.number for atom in atoms], sizes),
        coords=np.concatenate(orbits),
        # Some programs write 1 for every site.
        multiplicities_fit=given == sizes and max(sizes) > 1,
    )


def choose(cells: Sequence[Cell], symmetry: Symmetry, formula: Formula) -> Cell:
    """Return the one cell that fits the formula and Z.

    Raises:
        RejectedError: formula_mismatch, where no cell fits; ambiguous_symmetry, where several
            different cells fit and the multiplicities do not decide; unknown_symmetry, where the
            group is not known and the formula does not confirm the atoms.
    """
    fitting = _distinct([cell for cell in cells if formula.fits(cell.counts)])
    if not fitting:
        found = " or ".join(dict.fromkeys(formula_text(cell.counts) for cell in cells))
        raise RejectedError("formula_mismatch", f"the cell has {found}, the CIF has {formula}")
    if not symmetry.confirmed and not formula.confirms(fitting[0].counts):
        raise RejectedError(
            "unknown_symmetry",
            "the space group is not known, and formula and Z do not confirm that all atoms are "
            "listed",
        )
    if len(fitting) > 1:
        fitting = [cell for cell in fitting if cell.multiplicities_fit]
    if len(fitting) != 1:
        found = " or ".join(formula_text(cell.counts) for cell in _distinct(cells))
        raise RejectedError(
            "ambiguous_symmetry",
            f"the CIF may mean different crystals ({found}); list the operations, name the setting "
            "or origin choice, or give formula and Z",
        )
    return fitting[0]


def _orbit(coords: np.ndarray, operations: Operations, lattice: Lattice) -> np.ndarray:
    """Return the distinct images (n, 3) of a place; images that nearly coincide are averaged."""
    left = (operations.rotations @ coords + operations.translations) % 1
    places = []
    while len(left):
        shifts = _shifts(left[0], left)
        near = np.linalg.norm(shifts @ lattice.matrix, axis=1) < SAME_PLACE
        places.append((left[0] + shifts[near].mean(axis=0)) % 1)
        left = left[~near]
    orbit = np.array(places)
    # A remainder just below 1 can round to 1, which is the same place as 0.
    return np.where(orbit >= 1, 0.0, orbit)


def _is_image(
    i: int, atoms: Sequence[Atom], orbits: Sequence[np.ndarray], lattice: Lattice
) -> bool:
    """Whether atom i is an image of an earlier atom that is listed in another place."""
    atom = atoms[i]
    for other, orbit in zip(atoms[:i], orbits, strict=True):
        if other.number != atom.number:
            continue
        apart = np.linalg.norm(_shifts(atom.coords, other.coords) @ lattice.matrix)
        distances = np.linalg.norm(_shifts(atom.coords, orbit) @ lattice.matrix, axis=-1)
        if apart >= SAME_PLACE and distances.min(initial=np.inf) < SAME_PLACE:
            return True
    return False


def _shifts(place: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the differences of fractional coordinates, each within half a cell."""
    difference = others - place
    nearest: np.ndarray = difference - np.rint(difference)
    return nearest


def _distinct(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells without those that repeat an earlier one."""
    distinct: list[Cell] = []
    for cell in cells:
        if not any(_is_same(cell, other) for other in distinct):
            distinct.append(cell)
    return distinct


def _is_same(one: Cell, other: Cell) -> bool:
    """Whether each atom of one cell has one of its element in the same place of the other."""
    if one.counts != other.counts:
        return False
    for a, b in ((one, other), (other, one)):
        tree = cKDTree(a.coords, boxsize=np.ones(3))
        distances, nearest = tree.query(b.coords, distance_upper_bound=SAME_CRYSTAL)
        found = np.isfinite(distances)
        if not found.all() or (a.numbers[nearest] != b.numbers).any():
            return False
    return True
