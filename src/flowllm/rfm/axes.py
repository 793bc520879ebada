"""Other descriptions of a pair of crystals: the axes of its cells in another order, some turned.

Which axis of a cell is the first, and which way it points, is a choice of the description: there
are 6 x 8 of them. They give the same crystal or, where the new axes are left-handed, its mirror
image, which has the same energy. The network does not know that they are one (appendix B treats
permutations of atoms and translations alike, and no more); training on all of them teaches it.
"""

from dataclasses import replace
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from flowllm.rfm.loader import PairBatch

_ORDERS = np.array(list(permutations(range(3))))


def random_axes(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw orders of the axes (count, 3), and their directions, 1 or -1 (count, 3)."""
    return _ORDERS[rng.integers(6, size=count)], rng.choice([-1, 1], size=(count, 3))


def with_axes(batch: PairBatch, orders: np.ndarray, signs: np.ndarray) -> PairBatch:
    """Describe both crystals of each pair by new axes, which are the old ones in an order, turned.

    The angles' line must be symmetric about 90 degrees: where one of the two axes of an angle is
    turned, the angle becomes its supplement, which is its negative on that line.

    Args:
        batch: B pairs.
        orders: of which old axis each new one is (B, 3).
        signs: the new axes' directions (B, 3).
    """
    order = torch.from_numpy(orders).to(batch.elements.device)
    sign = torch.from_numpy(signs).to(batch.start_lattice)
    # The angle of axis i is that between the other two.
    turned = sign.prod(dim=1, keepdim=True) * sign

    def coords(old: Tensor) -> Tensor:
        new = old.gather(2, order[:, None].expand_as(old)) * sign[:, None]
        return torch.remainder(new, 1.0)

    def lattice(old: Tensor) -> Tensor:
        lengths, angles = old[:, :3].gather(1, order), old[:, 3:].gather(1, order)
        return torch.cat([lengths, turned * angles], dim=1)

    return replace(
        batch,
        start_coords=coords(batch.start_coords),
        end_coords=coords(batch.end_coords),
        start_lattice=lattice(batch.start_lattice),
        end_lattice=lattice(batch.end_lattice),
    )
