"""The space group of a start point: the start is moved onto it, and velocities keep it.

A field that treats all descriptions of a crystal alike keeps the space group of c0: it moves an
atom and its images alike, and an atom on a fixed point of an operation stays there. The network
treats permutations and translations alike, but not rotations of the cell (appendix B): its velocity
at a symmetric crystal has a part that breaks the symmetry, and after training on few pairs that
part is not small. It is projected out here, as ASE's FixSymmetry does with forces.

Text rounds a crystal, so that its atoms and cell fulfill the operations only within a tolerance.
The projection removes every motion that breaks the symmetry, also the one that would undo the
rounding. Therefore the start itself is first moved onto the group (`symmetrize`).

An operation (R, t) maps fractional coordinates f to R f + t and takes atom i to atom p(i).
Equivariant velocities have v_p(i) = R v_i, and an invariant lattice has R^T G R = G for its Gram
matrix G. A mean over the group projects onto either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import spglib
import torch
from pymatgen.core import Lattice
from torch import Tensor

from flowllm.crystal import MIN_SQUARED_VOLUME, Crystal, lattice_has_volume
from flowllm.rfm.base_distribution import (
    RejectedCrystalError,
    StartPoint,
    angles_within,
    bring_angles_within,
    crystal_lattice,
)
from flowllm.rfm.manifold import (
    AngleBounds,
    gram_matrix,
    lattice_parameters,
    lattice_vector,
)

TOLERANCE = 0.1
"""Angstrom within which operations map atoms onto atoms: text rounds coordinates to 0.01 of a cell,
lengths to 0.1 angstrom."""

ANGLE_TOLERANCE = 1.5
"""Degrees within which operations map the cell's angles onto each other: text rounds each of the
three by up to 0.5. Of 972 crystals written as text, spglib's default (-1, from `TOLERANCE`) found
135 with fewer operations than before, this one 115, and both 21 with more."""

ANGLE_MARGIN = 1e-3
"""Degrees by which a lattice that is stepped back stays inside the open bounds of the angles."""

_EXACT = 1e-6
"""Angstrom and square angstrom that an operation may miss by after the move; rounding is 1e-14."""

_BISECTIONS = 30


@dataclass(frozen=True)
class Operations:
    """The operations of a space group, by what they do to one cell's axes and atoms.

    Attributes:
        rotations: R of fractional coordinates, integers (g, 3, 3).
        images: the atom p(i) that each operation takes each atom to, (g, n).
    """

    rotations: np.ndarray
    images: np.ndarray

    @classmethod
    def identity(cls, num_atoms: int) -> "Operations":
        """The group that keeps everything as it is."""
        return cls(np.eye(3, dtype=int)[None], np.arange(num_atoms)[None])

    @property
    def order(self) -> int:
        """Number of operations, the cell's own translations not counted."""
        return len(self.rotations)

    @property
    def coords_mean(self) -> np.ndarray:
        """Mean over the group of what it makes of coordinates' velocities, (3 n, 3 n)."""
        num_atoms = self.images.shape[1]
        by_atoms = np.zeros((num_atoms, num_atoms, 3, 3))
        for rotation, image in zip(self.rotations, self.images, strict=True):
            by_atoms[image, np.arange(num_atoms)] += rotation / self.order
        return by_atoms.transpose(0, 2, 1, 3).reshape(3 * num_atoms, -1)

    @property
    def gram_mean(self) -> np.ndarray:
        """Mean over the group of what it makes of Gram matrices, (9, 9)."""
        mean = np.einsum("gki,glj->ijkl", self.rotations, self.rotations) / self.order
        return mean.reshape(9, 9)

    def is_group(self) -> bool:
        """Whether both means are projections, as those over a group are.

        What a mean leaves unchanged is left unchanged by each of its operations, so that the means
        of operations without this property would shrink velocities instead of projecting them.
        """
        means = (self.coords_mean, self.gram_mean)
        return all(np.allclose(mean @ mean, mean, atol=1e-9) for mean in means)


@dataclass(frozen=True)
class Symmetrized:
    """A crystal moved onto its space group.

    Attributes:
        coords: fractional coordinates (n, 3), which may leave [0, 1); their mean is that of before.
        lengths: angstrom (3,).
        angles: degrees (3,).
        operations: the group, the identity alone where none was found.
        is_determined: whether a group was found, be it the identity alone.
    """

    coords: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray
    operations: Operations
    is_determined: bool


def symmetrize(
    elements: np.ndarray, coords: np.ndarray, lengths: np.ndarray, angles: np.ndarray
) -> Symmetrized:
    """Find the space group of a crystal within the tolerance and move the crystal onto it.

    Where the angles span no volume, or spglib finds no operations, or operations that are no group
    or that the moved crystal does not have, the crystal stays as it is, with the identity alone.

    Args:
        elements: atomic numbers (n,).
        coords: fractional coordinates (n, 3).
        lengths: angstrom (3,).
        angles: degrees (3,).
    """
    unmoved = Symmetrized(coords, lengths, angles, Operations.identity(len(elements)), False)
    if not lattice_has_volume(angles):
        return unmoved  # pymatgen would make another cell of it
    cell = Lattice.from_parameters(*lengths.tolist(), *angles.tolist()).matrix
    found = spglib.get_symmetry(
        (cell, coords, elements), symprec=TOLERANCE, angle_tolerance=ANGLE_TOLERANCE
    )
    if found is None:
        return unmoved
    gram = cell @ cell.T
    images = _images(elements, coords, gram, found["rotations"], found["translations"])
    if images is None:
        return unmoved
    operations = Operations(found["rotations"], images)
    gram = (operations.gram_mean @ gram.ravel()).reshape(3, 3)
    translations = found["translations"]
    misses = _misses(coords, operations, translations)
    moved = coords + _mean_miss(misses, operations)
    if not operations.is_group() or not _is_exact(moved, gram, operations, translations):
        return unmoved
    parameters = (x.numpy() for x in _gram_parameters(torch.from_numpy(gram)))
    return Symmetrized(moved, *parameters, operations, True)


def _images(
    elements: np.ndarray,
    coords: np.ndarray,
    gram: np.ndarray,
    rotations: np.ndarray,
    translations: np.ndarray,
) -> np.ndarray | None:
    """The atom that each operation takes each atom nearest to (g, n); None where two share one."""
    images = np.empty((len(rotations), len(elements)), dtype=int)
    different = elements[:, None] != elements
    for number, (rotation, translation) in enumerate(zip(rotations, translations, strict=True)):
        ways = (coords @ rotation.T + translation)[:, None] - coords
        ways -= ways.round()
        distances = ((ways @ gram) * ways).sum(-1)
        distances[different] = np.inf
        images[number] = distances.argmin(-1)
    is_permutation = (np.sort(images, axis=-1) == np.arange(len(elements))).all()
    return images if is_permutation else None


def _misses(coords: np.ndarray, operations: Operations, translations: np.ndarray) -> np.ndarray:
    """The ways R f_i + t - f_p(i) by which atoms miss their images (g, n, 3).

    The mean over the atoms is taken off: it is the error of t, which the tolerance leaves too.
    """
    moved = coords @ operations.rotations.transpose(0, 2, 1) + translations[:, None]
    ways = moved - coords[operations.images]
    ways -= ways.round()
    return ways - ways.mean(axis=1, keepdims=True)


def _mean_miss(misses: np.ndarray, operations: Operations) -> np.ndarray:
    """The mean way from each atom to where the operations take it to from elsewhere (n, 3)."""
    means = np.zeros(misses.shape[1:])
    for way, image in zip(misses, operations.images, strict=True):
        means[image] += way / operations.order
    return means


def _is_exact(
    coords: np.ndarray, gram: np.ndarray, operations: Operations, translations: np.ndarray
) -> bool:
    """Whether the atoms and the cell fulfill every operation."""
    misses = _misses(coords, operations, translations)
    distances = np.einsum("gix,xy,giy->gi", misses, gram, misses)
    rotations = operations.rotations
    strains = rotations.transpose(0, 2, 1) @ gram @ rotations - gram
    return bool(distances.max() < _EXACT**2 and np.abs(strains).max() < _EXACT)


def _gram_parameters(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths (..., 3) and angles (..., 3) in degrees of Gram matrices (..., 3, 3)."""
    lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    a, b, c = lengths.unbind(-1)
    opposite = torch.stack([gram[..., 1, 2], gram[..., 0, 2], gram[..., 0, 1]], dim=-1)
    cosines = opposite / torch.stack([b * c, a * c, a * b], dim=-1)
    return lengths, cosines.acos().rad2deg()


@dataclass(frozen=True)
class SymmetricStart:
    """A start point with its space group.

    Attributes:
        point: the start, moved onto the group.
        operations: the group, in the cell of `point`.
        is_determined: see `Symmetrized`.
    """

    point: StartPoint
    operations: Operations
    is_determined: bool


def symmetric_start(elements: np.ndarray, start: StartPoint, bounds: AngleBounds) -> SymmetricStart:
    """Move a start point onto its space group.

    The symmetric cell may have an angle outside the bounds although the start has none: hematite
    written with the lengths 5.03, 5.03, 5.0 and three angles of 60 degrees gets 59.8, 59.8 and 60.
    It is Niggli-reduced then, as a cell of the language model with such an angle is.

    Args:
        elements: atomic numbers (n,).
        start: where the flow would start without symmetry.
        bounds: of the angles' logit, degrees.

    Raises:
        RejectedCrystalError: no cell of the symmetric crystal with angles within the bounds is
            found.
    """
    lattice = torch.from_numpy(start.lattice).double()
    lengths, angles = (x.numpy() for x in lattice_parameters(lattice, bounds))
    found = symmetrize(elements, start.coords, lengths, angles)
    if found.operations.order == 1:
        return SymmetricStart(start, found.operations, found.is_determined)
    crystal, is_reduced = _crystal_of(elements, found), start.reduced
    if not angles_within(crystal, bounds):
        reduced = bring_angles_within(crystal, bounds)
        parts = (reduced.frac_coords, reduced.lengths, reduced.angles)
        found = symmetrize(elements, *(part.astype(np.float64) for part in parts))
        crystal, is_reduced = _crystal_of(elements, found), True
        if not angles_within(crystal, bounds):
            raise RejectedCrystalError("angles_out_of_bounds")
    point = StartPoint(np.mod(found.coords, 1.0), crystal_lattice(crystal, bounds), is_reduced)
    return SymmetricStart(point, found.operations, found.is_determined)


def _crystal_of(elements: np.ndarray, found: Symmetrized) -> Crystal:
    return Crystal.from_arrays(elements, found.coords, found.lengths, found.angles)


class KeptSymmetry:
    """The projections of a batch of crystals of one number of atoms, in float64."""

    def __init__(
        self, groups: Sequence[Operations], bounds: AngleBounds, device: torch.device
    ) -> None:
        """Join the projections of B crystals; `bounds` are of the angles' logit."""
        coords, gram = ([g.coords_mean for g in groups], [g.gram_mean for g in groups])
        self._coords = torch.from_numpy(np.stack(coords)).to(device)
        self._gram = torch.from_numpy(np.stack(gram)).to(device)
        self._bounds = bounds

    def velocity(self, coords_velocity: Tensor) -> Tensor:
        """The equivariant part of coordinates' velocities (B, n, 3)."""
        flat = coords_velocity.double().flatten(1).unsqueeze(-1)
        return (self._coords @ flat).view_as(coords_velocity).to(coords_velocity.dtype)

    def lattice(self, previous: Tensor, lattice: Tensor) -> Tensor:
        """Make the lattices after a step symmetric: each becomes the mean of its images.

        The mean may have an angle outside the bounds though none of the lattice is. Then as much
        of the step is made as stays inside: Gram matrices between two invariant ones are
        invariant, whereas a cut of single angles would break the group. A lattice that is no
        cell (a length below zero, no volume) remains as it is in all later steps, so that the
        crystal fails with that reason.

        Args:
            previous: invariant lattices before the step (B, 6), inside the bounds.
            lattice: lattices after it (B, 6).
        """
        before, after = self._mean_image(previous), self._mean_image(lattice)
        inside = self._is_inside(after, 0.0)
        share = inside.to(after.dtype)
        if not inside.all():
            share = torch.where(inside, share, self._largest_share(before, after))
        gram = before + share[:, None, None] * (after - before)
        kept = lattice_vector(*_gram_parameters(gram), self._bounds).to(lattice.dtype)
        kept = torch.where((share > 0)[:, None], kept, previous)
        kept = torch.where(self._is_cell(lattice)[:, None], kept, lattice)
        return torch.where(self._is_cell(previous)[:, None], kept, previous)

    def _mean_image(self, lattice: Tensor) -> Tensor:
        """The invariant Gram matrices (B, 3, 3) nearest to lattices (B, 6)."""
        gram = gram_matrix(*lattice_parameters(lattice.double(), self._bounds))
        return (self._gram @ gram.flatten(1).unsqueeze(-1)).view_as(gram)

    def _is_inside(self, gram: Tensor, margin: float) -> Tensor:
        """Whether all angles of Gram matrices lie within the bounds (B,); false for NaN."""
        _, angles = _gram_parameters(gram)
        low, high = self._bounds
        return ((angles > low + margin) & (angles < high - margin)).all(-1)

    def _largest_share(self, before: Tensor, after: Tensor) -> Tensor:
        """The share of a step (B,) up to which the angles stay inside, by bisection."""
        low, high = before.new_zeros(len(before)), before.new_ones(len(before))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            between = before + middle[:, None, None] * (after - before)
            inside = self._is_inside(between, ANGLE_MARGIN)
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return low

    def _is_cell(self, lattice: Tensor) -> Tensor:
        """Whether lattices (B, 6) have positive lengths and a volume (B,); false for NaN."""
        lengths, angles = lattice_parameters(lattice.double(), self._bounds)
        volume = torch.linalg.det(gram_matrix(torch.ones_like(angles), angles))
        return (lengths > 0).all(-1) & (volume > MIN_SQUARED_VOLUME)
