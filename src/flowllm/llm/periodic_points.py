"""Points of a periodic cell that keep a minimum distance, added one after the other."""

import numpy as np
from pymatgen.core import Lattice

MARGIN = 1e-4
"""Angstrom that distances must have above the minimum. Crystals store float32 numbers, whose
distances differ from those of the text by less than this."""


class PeriodicPoints:
    """Points of a periodic cell that have at least a minimum distance from each other.

    Attributes:
        has_room: whether all nonzero vectors of the lattice have the minimum length, so that a
            point is not near its own images.
    """

    def __init__(self, lattice: Lattice, min_distance: float) -> None:
        """Reduce the cell, so that few images have to be compared.

        Args:
            lattice: a cell that has a volume; its matrix in angstrom.
            min_distance: minimum distance in angstrom; `MARGIN` is added to it.
        """
        self._limit = min_distance + MARGIN
        self._lattice = lattice
        reduced = self._lattice.get_lll_reduced_lattice().matrix
        self._to_reduced = self._lattice.lll_inverse
        self._points = np.zeros((0, 3))
        self.has_room = bool(np.linalg.norm(reduced, axis=1).min() >= self._limit)
        if not self.has_room:
            return
        # The heights of an LLL-reduced cell are at least a fixed share of its shortest vector, so
        # this number of images is small.
        heights = 1 / np.linalg.norm(np.linalg.inv(reduced), axis=0)
        sides = np.floor(self._limit / heights + 0.5).astype(int)
        grid = np.meshgrid(*(np.arange(-side, side + 1) for side in sides), indexing="ij")
        images = np.stack(grid, axis=-1).reshape(-1, 3)
        self._matrix, self._images = reduced, images @ reduced
        own = np.linalg.norm(self._images, axis=1)
        self.has_room = bool(own[images.any(axis=1)].min(initial=np.inf) >= self._limit)

    def add(self, frac_coords: np.ndarray) -> bool:
        """Add points; return whether all of them have the minimum distance.

        Args:
            frac_coords: (m, 3), fractional coordinates; they may be outside of [0, 1).

        Returns:
            False if one of the points is nearer to another one, to a point that was added before,
            or to an image of one of them.
        """
        before = self._points
        if self.has_room and self._add_each(frac_coords):
            return True
        self._points = before
        return False

    def add_orbit(self, orbit: np.ndarray) -> bool:
        """Add the points of an orbit; return whether all of them have the minimum distance.

        Args:
            orbit: (m, 3), fractional coordinates, which fulfill what `near_orbits` needs.
        """
        if self.near_orbits(orbit[None])[0]:
            return False
        self._points = np.vstack([self._points, orbit @ self._to_reduced])
        return True

    def near_orbits(self, orbits: np.ndarray) -> np.ndarray:
        """Return which of several orbits have points too near to another one, (k,).

        Each orbit is compared with itself and with the points that were added. Operations of a
        space group must map the points of each orbit to each other, and the added points to
        themselves, so that the distances of the orbit's first point are all that occur.

        Args:
            orbits: (k, m, 3), fractional coordinates.
        """
        if not self.has_room:
            return np.ones(len(orbits), dtype=bool)
        coords = orbits @ self._to_reduced
        added = np.broadcast_to(self._points, (len(coords), *self._points.shape))
        apart = np.concatenate([coords[:, 1:], added], axis=1) - coords[:, :1]
        vectors = (apart - np.round(apart)) @ self._matrix
        squares = ((vectors[:, :, None] + self._images) ** 2).sum(axis=-1)
        near: np.ndarray = squares.min(axis=(1, 2), initial=np.inf) < self._limit**2
        return near

    def _add_each(self, frac_coords: np.ndarray) -> bool:
        """Add points until one is too near; return whether none is."""
        for point in frac_coords @ self._to_reduced:
            apart = point - self._points
            vectors = (apart - np.round(apart)) @ self._matrix
            distances = np.linalg.norm(vectors[:, None] + self._images, axis=-1)
            if distances.min(initial=np.inf) < self._limit:
                return False
            self._points = np.vstack([self._points, point])
        return True

    def near_on_line(self, start: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return which points of a line along the third axis are too near to the points.

        Args:
            start: (3,), fractional coordinates of the line's start.
            steps: (k,), third coordinates that are added to it.
        """
        matrix = self._lattice.matrix
        length = np.linalg.norm(matrix[2])
        axis = matrix[2] / length
        flat = matrix[:2] - np.outer(matrix[:2] @ axis, axis)
        # Images of the plane across the axis whose distance can be below the limit.
        heights = np.sqrt(np.linalg.det(flat @ flat.T)) / np.linalg.norm(flat, axis=1)[::-1]
        sides = np.floor(self._limit / heights + 0.5).astype(int)
        grid = np.meshgrid(*(np.arange(-side, side + 1) for side in sides), indexing="ij")
        images = np.stack(grid, axis=-1).reshape(-1, 2)
        apart = start - self._lattice.get_frac_coords_from_lll(self._points)
        apart[:, :2] -= np.round(apart[:, :2])
        vectors = (apart @ matrix)[:, None] + images @ matrix[:2]
        vectors = vectors.reshape(-1, 3)
        along = vectors @ axis
        across = (vectors**2).sum(axis=1) - along**2
        hit = across < self._limit**2
        center, half = -along[hit] / length, np.sqrt(self._limit**2 - across[hit]) / length
        offset = steps[:, None] - center
        offset -= np.round(offset)
        near: np.ndarray = (np.abs(offset) < half).any(axis=1)
        return near
