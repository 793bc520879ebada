"""Order of the atoms of a draft and of its training crystal."""

import numpy as np

from flowllm.crystal import Crystal


def by_species(crystal: Crystal) -> Crystal:
    """Return the crystal with its atoms sorted by atomic number, stable within an element.

    Two cells of the same composition then have equal `atomic_numbers`.
    """
    order = np.argsort(crystal.atomic_numbers, kind="stable")
    return Crystal(
        atomic_numbers=crystal.atomic_numbers[order],
        frac_coords=crystal.frac_coords[order],
        lengths=crystal.lengths,
        angles=crystal.angles,
    )
