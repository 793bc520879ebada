"""Other descriptions of crystals: the axes of their cells in another order, some turned.

Which axis of a cell is the first, and which way it points, is a choice of the description: there
are 6 x 8 of them. They give the same crystal or, where the new axes are left-handed, its mirror
image, which has the same energy. The network does not know that they are one (appendix B treats
permutations of atoms and translations alike, and no more); training on all of them teaches it.
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
    """New axes of B cells: the old ones in an order, turned or not.

    Attributes:
        orders: of which old axis each new one is, int64 (B, 3).
        signs: the new axes' directions, 1 or -1 (B, 3).
    """

    orders: Tensor
    signs: Tensor

    def coords(self, coords: Tensor) -> Tensor:
        """Fractional coordinates (B, n, 3) by the new axes, in [0, 1)."""
        along = coords.gather(2, self.orders[:, None].expand_as(coords))
        return torus_exp(along * self.signs[:, None], along.new_zeros(()))

    def lattice(self, lattice: Tensor) -> Tensor:
        """Lattices l (B, 6) by the new axes, where the angles' bounds lie even about 90 degrees.

        Where one of the two axes of an angle is turned, the angle becomes its supplement, which is
        its negative on the line that the angles are mapped to.
        """
        # The angle of an axis is that between the other two.
        turned = self.signs.prod(dim=1, keepdim=True) * self.signs
        lengths, angles = (part.gather(1, self.orders) for part in lattice.split(3, dim=1))
        return torch.cat([lengths, turned * angles], dim=1)


def random_axes(count: int, rng: np.random.Generator, share: slice = slice(None)) -> Axes:
    """Draw axes of `count` cells, each description as likely as the others.

    Args:
        count: number of cells.
        rng: decides.
        share: the part of the cells whose axes are wanted.
    """
    orders, signs = rng.integers(len(_ORDERS), size=count), rng.choice([-1, 1], size=(count, 3))
    mine = _ORDERS[orders[share]], signs[share].astype(np.float32)
    return Axes(*map(torch.from_numpy, mine))
