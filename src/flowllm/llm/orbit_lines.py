"""The check of the symmetric text while it is generated, orbit by orbit."""

from copy import copy

import numpy as np
from pymatgen.core import Lattice

from flowllm.crystal import lattice_has_volume
from flowllm.data.wyckoff import (
    FREE_PARAMETERS,
    NUM_GROUPS,
    ON_SITE,
    SAME_POINT,
    Site,
    SpaceGroup,
    space_group,
)
from flowllm.llm.apart import HUNDREDTHS
from flowllm.llm.crystal_text import HEADER_LINES, MAX_LENGTH
from flowllm.llm.periodic_points import PeriodicPoints
from flowllm.llm.text_parts import read_numbers


class OrbitLines:
    """An `apart.LineCheck` of the text of `llm.symmetric_text`.

    An orbit whose atoms coincide, since its representative is on a site of fewer atoms, is too near
    to itself. A site that the group lacks and a point that is not on its site are drawn again, too.
    """

    def __init__(self, min_distance: float) -> None:
        """Start a text.

        Args:
            min_distance: minimum distance of two atoms, or of an atom and its image, in angstrom.
        """
        self.redraw_line = 0
        self._min_distance = min_distance
        self._num_lines, self._readable = 0, True
        self._group: SpaceGroup | None = None
        self._site: Site | None = None
        self._points: PeriodicPoints | None = None

    def add(self, line: str) -> bool:
        """Read the next line; see `LineCheck.add`.

        The coordinates of an orbit are drawn again, or its site where that fixes the coordinates.
        Where the lattice itself has too short a vector, the whole text is drawn again.
        """
        number, self._num_lines = self._num_lines, self._num_lines + 1
        if not self._readable:
            return False
        if number == 0:
            self._read_group(line)
            return False
        if number == 1:
            return not self._has_room(line)
        if number % 2 == 0:
            return not self._read_site(number, line)
        return not self._add_orbit(number, line)

    def blocked(self, first: str) -> np.ndarray | None:
        """Return which last coordinates are too near; see `LineCheck.blocked`."""
        values = read_numbers(first + " 0", 3)
        at_coordinates = self._num_lines > HEADER_LINES and self._num_lines % 2 == 1
        group, site, points = self._group, self._site, self._points
        if not self._readable or not at_coordinates or values is None:
            return None
        if group is None or site is None or points is None or not site.projector[2].any():
            return None
        candidates = np.array(values) + HUNDREDTHS[:, None] * np.array([0, 0, 1])
        moved, distances = site.nearest(candidates)
        on_site = distances <= ON_SITE
        near = ~on_site
        orbits = group.orbits(site, moved[on_site])
        near[on_site] = points.near_orbits(orbits @ self._to_primitive)
        depends = np.abs(site.projector[:, 2] - [0, 0, 1]).max() > SAME_POINT
        if depends and near[distances.argmin()]:
            # A grammar allows only the value that follows from the first two coordinates (x, x, x).
            return None
        return near if near.any() and not near.all() else None

    def _read_group(self, line: str) -> None:
        values = read_numbers(line, 1)
        if values is None or values[0] not in range(1, NUM_GROUPS + 1):
            self._readable = False
            return
        self._group = space_group(int(values[0]))
        self._to_primitive = np.linalg.inv(self._group.primitive)

    def _has_room(self, line: str) -> bool:
        """Start the cell; return whether its lattice has no vector that is too short."""
        assert self._group is not None
        values = read_numbers(line, len(FREE_PARAMETERS[self._group.system]))
        if values is None:
            self._readable = False
            return True
        lengths, angles = self._group.cell(np.array(values))
        if min(lengths) <= 0 or max(lengths) >= MAX_LENGTH or not lattice_has_volume(angles):
            self._readable = False
            return True
        conventional = Lattice.from_parameters(*lengths, *angles).matrix
        lattice = Lattice(self._group.primitive @ conventional)
        self._points = PeriodicPoints(lattice, self._min_distance)
        return self._points.has_room

    def _read_site(self, number: int, line: str) -> bool:
        """Read the element and site of an orbit; return whether the group has the site."""
        assert self._group is not None
        words = line.split()
        self._readable = len(words) == 2
        if not self._readable:
            return True
        self.redraw_line = number
        self._site = self._group.sites.get(words[1])
        return self._site is not None

    def _add_orbit(self, number: int, line: str) -> bool:
        """Add the orbit of a line; return whether its atoms are apart."""
        values = read_numbers(line, 3)
        assert self._group is not None
        assert self._site is not None
        assert self._points is not None
        if values is None:
            self._readable = False
            return True
        moved = self._group.on_site(self._site, np.array(values))
        is_fixed = moved is not None and not self._site.has_freedom
        self.redraw_line = number - 1 if is_fixed else number
        if moved is None:
            return False
        orbit = self._group.orbit(moved)
        self._points = copy(self._points)
        is_whole = len(orbit) == self._site.num_atoms
        return is_whole and self._points.add_orbit(orbit @ self._to_primitive)
