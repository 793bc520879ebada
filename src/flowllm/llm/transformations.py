"""Other descriptions of the same crystal: moved as a whole, or with its atoms in another order.

A crystal has no origin and its atoms no order (paper, section 3), but its text has both.
"""

from dataclasses import replace

import numpy as np

from flowllm.crystal import Crystal, wrap


def translated(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Move all atoms by one vector, uniform over the cell; what leaves the cell comes back in."""
    return replace(crystal, frac_coords=wrap(crystal.frac_coords + rng.random(3)))


def permuted(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Put the atoms into a random order, each order alike likely."""
    order = rng.permutation(crystal.num_atoms)
    return replace(
        crystal,
        atomic_numbers=crystal.atomic_numbers[order],
        frac_coords=crystal.frac_coords[order],
    )
