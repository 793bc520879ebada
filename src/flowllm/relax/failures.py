"""Failures of relaxations, and the checks that find them from a crystal's cell alone.

A cell fails where no potential and no neighbor search can handle it in reasonable time and memory.
The relaxer checks the cells before every evaluation, the fingerprints before the neighbor search.
"""

from dataclasses import dataclass

import numpy as np

from flowllm.crystal import Crystal

MAX_IMAGES = 20_000
"""Limit on the periodic images within `SEARCH_RADIUS`: above it the cell is too flat or too small
for a neighbor search."""

SEARCH_RADIUS = 6.0
"""Angstrom; the longest cutoff among the potentials."""

MAX_DENSITY = 1.0
"""Atoms per cubic angstrom; diamond has 0.18."""

MAX_VOLUME_PER_ATOM = 1000.0
"""Cubic angstrom; solid cesium has 110."""

MIN_VOLUME = 1e-9
"""Cubic angstrom; a cell with a smaller volume counts as one without volume."""


@dataclass(frozen=True)
class RelaxationFailure:
    """Reason why a crystal has no energy, or no fingerprint.

    Attributes:
        reason: short name, the status of the row.
        detail: explanation, the error of the row.
    """

    reason: str
    detail: str


def crystal_failure(crystal: Crystal) -> RelaxationFailure | None:
    """Return the failure of a crystal's cell, or None if the cell can be handled."""
    with np.errstate(all="ignore"):
        try:
            matrix = crystal.to_structure().lattice.matrix
            volume = float(np.linalg.det(matrix))
            # The distance between opposite faces is the inverse length of the reciprocal vector.
            heights = 1 / np.linalg.norm(np.linalg.inv(matrix), axis=0)
            images = float(np.prod(2 * np.ceil(SEARCH_RADIUS / heights) + 1))
        except (OverflowError, ValueError, np.linalg.LinAlgError) as error:
            return RelaxationFailure("no_volume", f"the cell has no volume ({error})")
    return cell_failure(volume, crystal.num_atoms, images)


def cell_failure(volume: float, num_atoms: int, num_images: float) -> RelaxationFailure | None:
    """Return the failure of one cell, or None if the cell can be handled.

    Args:
        volume: cubic angstrom.
        num_atoms: atoms per cell.
        num_images: periodic images within `SEARCH_RADIUS`.
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
