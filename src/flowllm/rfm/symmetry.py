"""The space group of a start point, and the move of the start onto it.

A flow that keeps the space group of its start needs the operations of the group (this module) and
the projection of velocities (`symmetry_projection`). Text rounds a crystal, so its atoms and cell
have the operations only within a tolerance. The projection removes every motion that breaks the
symmetry, including the one that would correct the rounding. Therefore the start is first moved onto
the group (`symmetrize`).

An operation (R, t) maps fractional coordinates f to R f + t and takes atom i to atom p(i).
"""

from dataclasses import dataclass

import numpy as np
import spglib
import torch
from pymatgen.core import Lattice

from flowllm.crystal import Crystal, lattice_has_volume
from flowllm.data import symmetry_operations
from flowllm.data.spglib_calls import or_none
from flowllm.rfm.base_distribution import (
    RejectedCrystalError,
    StartPoint,
    angles_within,
    bring_angles_within,
    crystal_lattice,
)
from flowllm.rfm.manifold import AngleBounds, gram_parameters, lattice_parameters

TOLERANCE = 0.1
"""Angstrom; tolerance on the distance from an atom's image to an atom. Text rounds coordinates to
0.01 of the cell and lengths to 0.1 angstrom."""

ANGLE_TOLERANCE = 1.5
"""Degrees; tolerance on the angles of the cell, each of which text rounds by up to 0.5. Of 972
crystals written as text, 115 had fewer operations than before with this tolerance, and 135 with
spglib's default (-1, derived from `TOLERANCE`); 21 had more with both."""

_EXACT = 1e-6
"""Angstrom and square angstrom; tolerance on the operations after the move (rounding is 1e-14)."""


@dataclass(frozen=True)
class Operations:
    """The operations of a space group, by their action on the axes and atoms of one cell.

    Attributes:
        rotations: R on fractional coordinates, integers (g, 3, 3).
        images: index p(i) of the atom that each operation takes each atom to, (g, n).
    """

    rotations: np.ndarray
    images: np.ndarray

    @classmethod
    def identity(cls, num_atoms: int) -> "Operations":
        """Return the group that contains only the identity."""
        return cls(np.eye(3, dtype=int)[None], np.arange(num_atoms)[None])

    @property
    def order(self) -> int:
        """Number of operations, without the translations of the lattice."""
        return len(self.rotations)

    @property
    def coords_mean(self) -> np.ndarray:
        """Mean over the operations of their action on velocities of coordinates, (3 n, 3 n)."""
        num_atoms = self.images.shape[1]
        by_atoms = np.zeros((num_atoms, num_atoms, 3, 3))
        for rotation, image in zip(self.rotations, self.images, strict=True):
            by_atoms[image, np.arange(num_atoms)] += rotation / self.order
        return by_atoms.transpose(0, 2, 1, 3).reshape(3 * num_atoms, -1)

    @property
    def gram_mean(self) -> np.ndarray:
        """Mean over the operations of their action on Gram matrices, (9, 9)."""
        mean: np.ndarray = np.einsum("gki,glj->ijkl", self.rotations, self.rotations) / self.order
        return mean.reshape(9, 9)

    def is_group(self) -> bool:
        """Return whether both means are projections, which the means over a group are.

        If the operations are no group, their means shrink velocities instead of projecting them.
        """
        means = (self.coords_mean, self.gram_mean)
        return all(np.allclose(mean @ mean, mean, atol=1e-9) for mean in means)


@dataclass(frozen=True)
class KnownSymmetry:
    """The space group that the text of a crystal names.

    Attributes:
        operations: the operations by their action on axes and atoms.
        translations: t of each operation (g, 3).
    """

    operations: Operations
    translations: np.ndarray

    @classmethod
    def of_crystal(
        cls, crystal: Crystal, operations: symmetry_operations.Operations
    ) -> "KnownSymmetry | None":
        """Return the action of operations on a crystal, None if two atoms have the same image.

        Args:
            crystal: the crystal as the text gives it, without noise.
            operations: operations on its fractional coordinates.
        """
        lengths, angles = crystal.lengths.tolist(), crystal.angles.tolist()
        cell = Lattice.from_parameters(*lengths, *angles).matrix
        rotations, translations = operations.rotations, operations.translations
        coords = crystal.frac_coords.astype(np.float64)
        images = _images(crystal.atomic_numbers, coords, cell @ cell.T, rotations, translations)
        return None if images is None else cls(Operations(rotations, images), translations)


@dataclass(frozen=True)
class Symmetrized:
    """A crystal that was moved onto its space group.

    Attributes:
        coords: fractional coordinates (n, 3), possibly outside [0, 1); the move keeps their mean.
        lengths: angstrom (3,).
        angles: degrees (3,).
        operations: the space group, or only the identity if no group was found.
        is_determined: whether a group was found, possibly that of the identity alone.
    """

    coords: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray
    operations: Operations
    is_determined: bool


def symmetrize(
    elements: np.ndarray,
    coords: np.ndarray,
    lengths: np.ndarray,
    angles: np.ndarray,
    known: KnownSymmetry | None = None,
) -> Symmetrized:
    """Find the space group of a crystal within the tolerance and move the crystal onto it.

    The crystal stays as it is, with the identity alone, in these cases: its angles span no volume;
    spglib finds no operations; the operations are no group; the moved crystal does not have them.

    Args:
        elements: atomic numbers (n,).
        coords: fractional coordinates (n, 3).
        lengths: angstrom (3,).
        angles: degrees (3,).
        known: the operations, if they are known; then none are searched for.
    """
    unmoved = Symmetrized(coords, lengths, angles, Operations.identity(len(elements)), False)
    if not lattice_has_volume(angles):
        return unmoved  # pymatgen would silently make another cell
    cell = Lattice.from_parameters(*lengths.tolist(), *angles.tolist()).matrix
    gram = cell @ cell.T
    if known is None:
        found = _find_operations(elements, coords, cell)
    else:
        found = known.operations, known.translations
    if found is None:
        return unmoved
    operations, translations = found
    moved = coords + _mean_residuals(_residuals(coords, operations, translations), operations)
    moved_gram = (operations.gram_mean @ gram.ravel()).reshape(3, 3)
    if not operations.is_group():
        return unmoved
    if not _is_symmetric(moved, moved_gram, operations, translations):
        return unmoved
    moved_lengths, moved_angles = gram_parameters(torch.from_numpy(moved_gram))
    return Symmetrized(moved, moved_lengths.numpy(), moved_angles.numpy(), operations, True)


def _find_operations(
    elements: np.ndarray, coords: np.ndarray, cell: np.ndarray
) -> tuple[Operations, np.ndarray] | None:
    """Find the operations of a crystal within the tolerance, by spglib.

    Args:
        elements: atomic numbers (n,).
        coords: fractional coordinates (n, 3).
        cell: rows are the lattice vectors (3, 3), angstrom.

    Returns:
        The operations and their translations t (g, 3), or None if there are none or if an operation
        takes two atoms to the same atom.
    """
    found = or_none(
        spglib.get_symmetry,
        (cell, coords, elements),  # type: ignore[arg-type]  # its stub allows lists only
        symprec=TOLERANCE,
        angle_tolerance=ANGLE_TOLERANCE,
    )
    if found is None:
        return None
    rotations, translations = found["rotations"], found["translations"]
    images = _images(elements, coords, cell @ cell.T, rotations, translations)
    return None if images is None else (Operations(rotations, images), translations)


def _images(
    elements: np.ndarray,
    coords: np.ndarray,
    gram: np.ndarray,
    rotations: np.ndarray,
    translations: np.ndarray,
) -> np.ndarray | None:
    """Return the nearest atom to the image of each atom (g, n), or None if two atoms share one."""
    images = np.empty((len(rotations), len(elements)), dtype=int)
    different = elements[:, None] != elements
    for number, (rotation, translation) in enumerate(zip(rotations, translations, strict=True)):
        displacements = (coords @ rotation.T + translation)[:, None] - coords
        displacements -= displacements.round()
        squared_distances = ((displacements @ gram) * displacements).sum(-1)
        squared_distances[different] = np.inf
        images[number] = squared_distances.argmin(-1)
    is_permutation = (np.sort(images, axis=-1) == np.arange(len(elements))).all()
    return images if is_permutation else None


def _residuals(coords: np.ndarray, operations: Operations, translations: np.ndarray) -> np.ndarray:
    """Return the displacements R f_i + t - f_p(i) from atoms to images of atoms, (g, n, 3).

    The mean over the atoms is subtracted. It is the error of t, which is known within the tolerance
    only.
    """
    mapped = coords @ operations.rotations.transpose(0, 2, 1) + translations[:, None]
    residuals = mapped - coords[operations.images]
    residuals -= residuals.round()
    centered: np.ndarray = residuals - residuals.mean(axis=1, keepdims=True)
    return centered


def _mean_residuals(residuals: np.ndarray, operations: Operations) -> np.ndarray:
    """Return the mean residual at each atom over the operations that map an atom to it, (n, 3)."""
    means = np.zeros(residuals.shape[1:])
    for residual, image in zip(residuals, operations.images, strict=True):
        means[image] += residual / operations.order
    return means


def _is_symmetric(
    coords: np.ndarray, gram: np.ndarray, operations: Operations, translations: np.ndarray
) -> bool:
    """Return whether the atoms and the cell have every operation up to rounding."""
    residuals = _residuals(coords, operations, translations)
    squared_distances = np.einsum("gix,xy,giy->gi", residuals, gram, residuals)
    rotations = operations.rotations
    strains = rotations.transpose(0, 2, 1) @ gram @ rotations - gram
    return bool(squared_distances.max() < _EXACT**2 and np.abs(strains).max() < _EXACT)


@dataclass(frozen=True)
class SymmetricStart:
    """A start point with its space group.

    Attributes:
        point: the start point, moved onto the group.
        operations: the group, in the cell of `point`.
        is_determined: see `Symmetrized`.
    """

    point: StartPoint
    operations: Operations
    is_determined: bool


def symmetric_start(
    elements: np.ndarray,
    start: StartPoint,
    bounds: AngleBounds,
    known: KnownSymmetry | None = None,
) -> SymmetricStart:
    """Move a start point onto its space group.

    The symmetric cell can have an angle outside the bounds even if the start has none: hematite
    written with the lengths 5.03, 5.03, 5.0 and three angles of 60 degrees gets 59.8, 59.8 and 60.
    In this case the cell is Niggli-reduced, as that of a language model's crystal is.

    Args:
        elements: atomic numbers (n,).
        start: the start point without symmetry.
        bounds: degrees, of the logit of the angles.
        known: the group, if it is known. It is searched for in a cell that was reduced.

    Raises:
        RejectedCrystalError: the Niggli-reduced cell of the symmetric crystal has an angle outside
            the bounds, too.
    """
    lattice = torch.from_numpy(start.lattice).double()
    lengths, angles = lattice_parameters(lattice, bounds)
    in_cell = None if start.reduced else known
    found = symmetrize(elements, start.coords, lengths.numpy(), angles.numpy(), in_cell)
    if found.operations.order == 1:
        return SymmetricStart(start, found.operations, found.is_determined)
    crystal, is_reduced = _crystal_of(elements, found), start.reduced
    if not angles_within(crystal, bounds):
        reduced = bring_angles_within(crystal, bounds)
        found = symmetrize(
            elements,
            reduced.frac_coords.astype(np.float64),
            reduced.lengths.astype(np.float64),
            reduced.angles.astype(np.float64),
        )
        crystal, is_reduced = _crystal_of(elements, found), True
        if not angles_within(crystal, bounds):
            raise RejectedCrystalError("angles_out_of_bounds")
    point = StartPoint(np.mod(found.coords, 1.0), crystal_lattice(crystal, bounds), is_reduced)
    return SymmetricStart(point, found.operations, found.is_determined)


def _crystal_of(elements: np.ndarray, found: Symmetrized) -> Crystal:
    """Return a symmetrized crystal as a `Crystal`."""
    return Crystal.from_arrays(elements, found.coords, found.lengths, found.angles)
