"""The space group of a start point, and velocities that keep it.

A field that treated all descriptions of a crystal alike would keep the space group of c0: what
moves one atom moves its images alike, and an atom on a fixed point of an operation stays there. The
network treats permutations and translations alike, but not rotations of the cell (appendix B): its
velocity at a symmetric crystal has a part that breaks the symmetry, and with few training pairs
that part is not small. Here it is projected out, as ASE's FixSymmetry does with forces.

An operation (R, t) maps fractional coordinates f to R f + t and takes atom i to atom p(i).
Equivariant velocities have v_p(i) = R v_i, an invariant lattice has R^T G R = G for its Gram matrix
G; a mean over the group projects onto either.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import spglib
import torch
from pymatgen.core import Lattice
from torch import Tensor

from flowllm.rfm.manifold import (
    AngleBounds,
    gram_matrix,
    lattice_parameters,
    lattice_vector,
)

TOLERANCE = 0.1
"""Angstrom within which operations map atoms onto atoms: text rounds coordinates to 0.01 of a cell,
lengths to 0.1 angstrom."""

ANGLE_MARGIN = 1e-3
"""Degrees by which a lattice is kept inside of the open bounds of the angles."""


@dataclass(frozen=True)
class Symmetry:
    """Projections onto what the operations of one crystal leave as it is.

    Attributes:
        coords: of coordinates' velocities, float32 (3 n, 3 n), atoms first.
        gram: of Gram matrices, float32 (9, 9).
    """

    coords: np.ndarray
    gram: np.ndarray


def find_symmetry(
    elements: np.ndarray, coords: np.ndarray, lengths: np.ndarray, angles: np.ndarray
) -> Symmetry:
    """Find the operations of a crystal and the projections that they make.

    Where spglib finds none, or one that does not map the atoms onto each other, there is the
    identity alone, which keeps everything.

    Args:
        elements: atomic numbers (n,).
        coords: fractional coordinates (n, 3).
        lengths: angstrom (3,).
        angles: degrees (3,).
    """
    cell = Lattice.from_parameters(*lengths.tolist(), *angles.tolist()).matrix
    found = spglib.get_symmetry((cell, coords, elements), symprec=TOLERANCE)
    rotations, images = np.eye(3)[None], np.arange(len(elements))[None]
    if found is not None:
        permutations = _images(elements, coords, found["rotations"], found["translations"])
        if permutations is not None:
            rotations, images = found["rotations"], permutations
    num_atoms, order = len(elements), len(rotations)
    by_atoms = np.zeros((num_atoms, num_atoms, 3, 3))
    for rotation, image in zip(rotations, images, strict=True):
        by_atoms[image, np.arange(num_atoms)] += rotation / order
    gram = np.einsum("gki,glj->ijkl", rotations, rotations) / order
    return Symmetry(
        by_atoms.transpose(0, 2, 1, 3).reshape(3 * num_atoms, -1).astype(np.float32),
        gram.reshape(9, 9).astype(np.float32),
    )


def _images(
    elements: np.ndarray, coords: np.ndarray, rotations: np.ndarray, translations: np.ndarray
) -> np.ndarray | None:
    """The atom p(i) that each operation takes each atom to (g, n); None where one fails to."""
    moved = coords @ rotations.transpose(0, 2, 1) + translations[:, None]
    ways = moved[:, :, None] - coords
    distances = ((ways - ways.round()) ** 2).sum(-1) + (elements[:, None] != elements)
    images = distances.argmin(-1)
    is_permutation = (np.sort(images, axis=-1) == np.arange(len(elements))).all()
    return images if is_permutation else None


class KeptSymmetry:
    """The projections of a batch of crystals of one number of atoms."""

    def __init__(
        self, symmetries: Sequence[Symmetry], bounds: AngleBounds, device: torch.device
    ) -> None:
        """Join the projections of B crystals; `bounds` are of the angles' logit."""
        self._coords = torch.from_numpy(np.stack([s.coords for s in symmetries])).to(device)
        self._gram = torch.from_numpy(np.stack([s.gram for s in symmetries])).to(device)
        self._bounds = bounds

    def velocity(self, coords_velocity: Tensor) -> Tensor:
        """The equivariant part of coordinates' velocities (B, n, 3)."""
        flat = coords_velocity.flatten(1).unsqueeze(-1)
        return (self._coords @ flat).view_as(coords_velocity)

    def lattice(self, lattice: Tensor) -> Tensor:
        """The invariant lattices nearest to lattices l (B, 6): the mean of their images."""
        gram = gram_matrix(*lattice_parameters(lattice, self._bounds))
        gram = (self._gram @ gram.flatten(1).unsqueeze(-1)).view_as(gram)
        lengths = gram.diagonal(dim1=-2, dim2=-1).sqrt()
        a, b, c = lengths.unbind(-1)
        opposite = torch.stack([gram[:, 1, 2], gram[:, 0, 2], gram[:, 0, 1]], dim=-1)
        cosines = opposite / torch.stack([b * c, a * c, a * b], dim=-1)
        low, high = self._bounds
        angles = cosines.acos().rad2deg().clamp(low + ANGLE_MARGIN, high - ANGLE_MARGIN)
        return lattice_vector(lengths, angles, self._bounds)
