"""The check of the text of coordinates while it is generated, atom by atom."""

from collections.abc import Sequence
from copy import copy

import numpy as np
from pymatgen.core import Lattice

from flowllm.crystal import lattice_has_volume
from flowllm.llm.apart import HUNDREDTHS
from flowllm.llm.crystal_text import HEADER_LINES, MAX_LENGTH
from flowllm.llm.periodic_points import PeriodicPoints
from flowllm.llm.text_parts import read_numbers


class CoordinateLines:
    """An `apart.LineCheck` of the text of `llm.text`: lengths, angles, and two lines per atom."""

    def __init__(self, min_distance: float) -> None:
        """Start a text.

        Args:
            min_distance: minimum distance of two atoms, or of an atom and its image, in angstrom.
        """
        self.redraw_line = 0
        self._min_distance = min_distance
        self._num_lines, self._readable = 0, True
        self._lengths: list[float] = []
        self._points: PeriodicPoints | None = None

    def add(self, line: str) -> bool:
        """Read the next line; see `LineCheck.add`.

        An atom's coordinates are drawn again and its element stays; where the lattice itself has
        too short a vector, the whole text is drawn again.
        """
        number, self._num_lines = self._num_lines, self._num_lines + 1
        if not self._readable or (number >= HEADER_LINES and number % 2 == 0):
            return False
        values = read_numbers(line, 3)
        if values is None:
            self._readable = False
            return False
        if number == 0:
            self._lengths = values
            return False
        if number == 1:
            return not self._has_room(values)
        assert self._points is not None
        self.redraw_line = number
        self._points = copy(self._points)
        return not self._points.add(np.array([values]))

    def blocked(self, first: str) -> np.ndarray | None:
        """Return which last coordinates are too near; see `LineCheck.blocked`."""
        values = read_numbers(first + " 0", 3)
        at_coordinates = self._num_lines > HEADER_LINES and self._num_lines % 2 == 1
        if not self._readable or self._points is None or not at_coordinates or values is None:
            return None
        near = self._points.near_on_line(np.array(values), HUNDREDTHS)
        return near if near.any() and not near.all() else None

    def _has_room(self, angles: Sequence[float]) -> bool:
        """Start the cell; return whether its lattice has no vector that is too short."""
        lengths = self._lengths
        of_a_cell = min(lengths) > 0 and max(lengths) < MAX_LENGTH
        if not of_a_cell or not lattice_has_volume(np.array(angles)):
            self._readable = False
            return True
        lattice = Lattice.from_parameters(*lengths, *angles)
        self._points = PeriodicPoints(lattice, self._min_distance)
        return self._points.has_room
