"""Equivalent descriptions of crystals: the axes of a cell in another order, some of them reversed.

The order and the directions of a cell's axes are a choice, with 6 x 8 possibilities. All describe
the same crystal or, where the new axes are left-handed, its mirror image, which has the same
energy. The network is equivariant to permutations of atoms and to translations only (appendix B),
so training on all descriptions teaches it that they are equivalent.
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from flowllm.rfm.manifold import torus_exp

_ORDERS = np.array(list(permutations(range(3))))


@dataclass(frozen=True)
class Axes:
    """New axes of B cells: the old axes in another order, each reversed or not.

    Attributes:
        orders: index of the old axis of each new axis, int64 (B, 3).
        signs: direction of each new axis, 1 or -1 (B, 3).
    """

    orders: Tensor
    signs: Tensor

    def coords(self, coords: Tensor) -> Tensor:
        """Return fractional coordinates (B, n, 3) along the new axes, in [0, 1)."""
        along = coords.gather(2, self.orders[:, None].expand_as(coords))
        return torus_exp(along * self.signs[:, None], along.new_zeros(()))

    def lattice(self, lattice: Tensor) -> Tensor:
        """Return lattices l (B, 6) with the new axes.

        The bounds of the angles must be symmetric about 90 degrees. If one of the two axes of an
        angle is reversed, the angle becomes its supplement, whose logit is the negative.
        """
        # The angle with the index of an axis is the angle between the other two axes.
        angle_signs = self.signs.prod(dim=1, keepdim=True) * self.signs
        lengths, angles = (part.gather(1, self.orders) for part in lattice.split(3, dim=1))
        return torch.cat([lengths, angle_signs * angles], dim=1)


def random_axes(count: int, rng: np.random.Generator, share: slice = slice(None)) -> Axes:
    """Draw axes of cells uniformly from the 48 possibilities.

    Args:
        count: number of cells.
        rng: random generator; it advances by the draws of all `count` cells.
        share: the cells whose axes are returned.
    """
    orders, signs = rng.integers(len(_ORDERS), size=count), rng.choice([-1, 1], size=(count, 3))
    mine = _ORDERS[orders[share]], signs[share].astype(np.float32)
    return Axes(*map(torch.from_numpy, mine))
