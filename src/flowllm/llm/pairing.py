"""Bringing the atoms of a draft and of its training crystal to one order."""

import numpy as np

from flowllm.crystal import Crystal


def by_species(crystal: Crystal) -> Crystal:
    """Return the crystal with its atoms by atomic number; within an element they keep their order.

    Two cells of the same composition then agree in `atomic_numbers`, atom by atom.
    """
    order = np.argsort(crystal.atomic_numbers, kind="stable")
    return Crystal(
        atomic_numbers=crystal.atomic_numbers[order],
        frac_coords=crystal.frac_coords[order],
        lengths=crystal.lengths,
        angles=crystal.angles,
    )
