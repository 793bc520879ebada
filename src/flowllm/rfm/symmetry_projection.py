"""The projection of an integration onto the space groups of its crystals.

A field that is equivariant to all descriptions of a crystal keeps the space group of c0: it moves
an atom and its images alike, and an atom on a fixed point of an operation stays there. The network
is equivariant to permutations and translations, but not to rotations of the cell (appendix B). Its
velocity at a symmetric crystal has a part that breaks the symmetry, and after training on few pairs
this part is large. This module removes it, as ASE's FixSymmetry does with forces.

With the operations (R, p) of `symmetry.Operations`, equivariant velocities have v_p(i) = R v_i, and
an invariant lattice has R^T G R = G for its Gram matrix G. The mean over the group projects onto
either.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flowllm.crystal import MIN_SQUARED_VOLUME
from flowllm.rfm.manifold import (
    AngleBounds,
    gram_matrix,
    gram_parameters,
    lattice_parameters,
    lattice_vector,
)
from flowllm.rfm.symmetry import Operations

ANGLE_MARGIN = 1e-3
"""Degrees; distance from the bounds of the angles that a shortened step keeps."""

_BISECTIONS = 30


class SymmetryProjection:
    """Projection of a batch of crystals with the same number of atoms, in float64."""

    def __init__(
        self, groups: Sequence[Operations], bounds: AngleBounds, device: torch.device
    ) -> None:
        """Join the projections of B crystals.

        Args:
            groups: the space group of each crystal.
            bounds: degrees, of the logit of the angles.
            device: device of the batch.
        """
        coords_means = np.stack([group.coords_mean for group in groups])
        gram_means = np.stack([group.gram_mean for group in groups])
        self._coords_means = torch.from_numpy(coords_means).to(device)
        self._gram_means = torch.from_numpy(gram_means).to(device)
        self._bounds = bounds

    def velocity(self, coords_velocity: Tensor) -> Tensor:
        """Return the equivariant part of the velocities of coordinates (B, n, 3)."""
        flat = coords_velocity.double().flatten(1).unsqueeze(-1)
        return (self._coords_means @ flat).view_as(coords_velocity).to(coords_velocity.dtype)

    def lattice(self, previous: Tensor, lattice: Tensor) -> Tensor:
        """Make the lattices after a step symmetric: each becomes the mean of its images.

        The mean can have an angle outside the bounds even if the lattice has none. Then the step is
        shortened until its angles are inside: Gram matrices between two invariant ones are
        invariant, whereas clipping single angles would break the symmetry. A lattice that is no
        cell (a length below zero, no volume) stays as it is in all later steps, so that the crystal
        fails for this reason.

        Args:
            previous: invariant lattices before the step (B, 6), angles inside the bounds.
            lattice: lattices after the step (B, 6).
        """
        before, after = self._mean_gram(previous), self._mean_gram(lattice)
        inside = self._is_inside(after, 0.0)
        fraction = inside.to(after.dtype)
        if not inside.all():
            fraction = torch.where(inside, fraction, self._largest_fraction(before, after))
        gram = before + fraction[:, None, None] * (after - before)
        projected = lattice_vector(*gram_parameters(gram), self._bounds).to(lattice.dtype)
        projected = torch.where((fraction > 0)[:, None], projected, previous)
        projected = torch.where(self._is_cell(lattice)[:, None], projected, lattice)
        return torch.where(self._is_cell(previous)[:, None], projected, previous)

    def _mean_gram(self, lattice: Tensor) -> Tensor:
        """Return the mean over the group of the Gram matrices of lattices (B, 6), (B, 3, 3)."""
        gram = gram_matrix(*lattice_parameters(lattice.double(), self._bounds))
        return (self._gram_means @ gram.flatten(1).unsqueeze(-1)).view_as(gram)

    def _is_inside(self, gram: Tensor, margin: float) -> Tensor:
        """Return whether all angles of Gram matrices are within the bounds (B,); false for NaN."""
        _, angles = gram_parameters(gram)
        low, high = self._bounds
        return ((angles > low + margin) & (angles < high - margin)).all(-1)

    def _largest_fraction(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the fraction of a step (B,) up to which the angles are inside, by bisection."""
        low, high = before.new_zeros(len(before)), before.new_ones(len(before))
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            between = before + middle[:, None, None] * (after - before)
            inside = self._is_inside(between, ANGLE_MARGIN)
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return low

    def _is_cell(self, lattice: Tensor) -> Tensor:
        """Return whether lattices (B, 6) have positive lengths and a volume (B,); false for NaN."""
        lengths, angles = lattice_parameters(lattice.double(), self._bounds)
        volume = torch.linalg.det(gram_matrix(torch.ones_like(angles), angles))
        is_cell: Tensor = (lengths > 0).all(-1) & (volume > MIN_SQUARED_VOLUME)
        return is_cell
