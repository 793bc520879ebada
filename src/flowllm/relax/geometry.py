"""Cells that nothing can be computed in, in time and memory: numbers alone, without a network.

The relaxer asks before every evaluation, and the fingerprints before they look for neighbors.
"""

from dataclasses import dataclass

import numpy as np

from flowllm.crystal import Crystal

MAX_IMAGES = 20_000
"""Cells within `SEARCH_RADIUS` of a cell; above it the cell is too flat or too small to search."""

SEARCH_RADIUS = 6.0
"""Angstrom, the longest cutoff among the potentials."""

MAX_DENSITY = 1.0
"""Atoms per cubic angstrom; diamond has 0.18."""

MAX_VOLUME_PER_ATOM = 1000.0
"""Cubic angstrom; solid caesium has 110."""

MIN_VOLUME = 1e-9
"""Cubic angstrom, below which a cell has no volume."""


@dataclass(frozen=True)
class RelaxationFailure:
    """Why a crystal has no energy, or no fingerprint.

    Attributes:
        reason: short name, the row's status.
        detail: the same in full.
    """

    reason: str
    detail: str


def crystal_fault(crystal: Crystal) -> RelaxationFailure | None:
    """Return the failure of a crystal's cell, None where there is none."""
    with np.errstate(all="ignore"):
        try:
            matrix = crystal.to_structure().lattice.matrix
            volume = float(np.linalg.det(matrix))
            # Distance between opposite faces: one over the length of the reciprocal vector.
            heights = 1 / np.linalg.norm(np.linalg.inv(matrix), axis=0)
            images = float(np.prod(2 * np.ceil(SEARCH_RADIUS / heights) + 1))
        except (OverflowError, ValueError, np.linalg.LinAlgError) as error:
            return RelaxationFailure("no_volume", f"the cell has no volume ({error})")
    return cell_fault(volume, crystal.num_atoms, images)


def cell_fault(volume: float, num_atoms: int, num_images: float) -> RelaxationFailure | None:
    """Return the failure of one cell, None where there is none.

    Args:
        volume: cubic angstrom.
        num_atoms: atoms in the cell.
        num_images: cells within the search radius.
    """
    if not MIN_VOLUME < volume < float("inf"):
        return RelaxationFailure("no_volume", f"the cell's volume is {volume:.3g} cubic angstrom")
    if volume / num_atoms > MAX_VOLUME_PER_ATOM:
        detail = f"{volume / num_atoms:.3g} cubic angstrom per atom, limit {MAX_VOLUME_PER_ATOM:g}"
        return RelaxationFailure("too_sparse", detail)
    if num_atoms / volume > MAX_DENSITY:
        detail = (
            f"{num_atoms} atoms in {volume:.3g} cubic angstrom, limit {MAX_DENSITY:g} atom per "
            "cubic angstrom"
        )
        return RelaxationFailure("too_dense", detail)
    if not num_images <= MAX_IMAGES:
        detail = f"{num_images:.0f} cells within {SEARCH_RADIUS:g} angstrom, limit {MAX_IMAGES}"
        return RelaxationFailure("flat_cell", detail)
    return None
