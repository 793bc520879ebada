"""Equivalent descriptions of a crystal: a translated one, or one with its atoms in another order.

A crystal has no origin and no order of atoms (paper, section 3), but its text has both.
"""

from dataclasses import replace

import numpy as np

from flowllm.crystal import Crystal, wrap


def translated(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Shift all atoms by one vector, uniform over the cell; coordinates are wrapped to [0, 1)."""
    return replace(crystal, frac_coords=wrap(crystal.frac_coords + rng.random(3)))


def permuted(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Put the atoms into a random order; all orders have the same probability."""
    order = rng.permutation(crystal.num_atoms)
    return replace(
        crystal,
        atomic_numbers=crystal.atomic_numbers[order],
        frac_coords=crystal.frac_coords[order],
    )
