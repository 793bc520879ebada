"""Distances between the atoms of a crystal text, checked line by line while it is generated.

A `LineCheck` reads the finished lines of a text and says where an atom is nearer than the minimum
distance to one before it; `llm.redraws` then draws the text again from there. A crystal text of
another form has its own `LineCheck`, with `PeriodicPoints` for its geometry.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from flowllm.crystal import lattice_has_volume
from flowllm.llm.periodic_points import PeriodicPoints
from flowllm.llm.text import MAX_LENGTH, read_numbers

HUNDREDTHS = np.arange(100) / 100
"""All values of a coordinate."""


class LineCheck(Protocol):
    """Check of one text, whose lines are given in their order.

    Attributes:
        redraw_line: number (from 0) of the line at which the text is drawn again after `add` has
            returned True. The model's own choices before it stay.
    """

    redraw_line: int

    def add(self, line: str) -> bool:
        """Read the next line; return whether it brings two atoms nearer than the minimum.

        A line that is not of the text's form ends the check: decoding rejects the text.
        """
        ...

    def blocked(self, first: str) -> np.ndarray | None:
        """Return which of the last coordinates 0.00 to 0.99 of a line are too near (100,).

        Args:
            first: the first two coordinates of the line that is being written.

        Returns:
            None where the line is not one of coordinates, and where none or all are too near.
        """
        ...


def start_check(min_distance: float) -> LineCheck:
    """Return the check of a new text.

    Args:
        min_distance: minimum distance of two atoms, or of an atom and its image, in angstrom.
    """
    return CoordinateLines(min_distance)


class CoordinateLines:
    """A `LineCheck` of the text of `llm.text`: lengths, angles, and two lines per atom."""

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
        if not self._readable or (number >= 2 and number % 2 == 0):
            return False
        values = read_numbers(line)
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
        return not self._points.add(np.array([values]))

    def blocked(self, first: str) -> np.ndarray | None:
        """Return which last coordinates are too near; see `LineCheck.blocked`."""
        values = read_numbers(first + " 0")
        at_coordinates = self._num_lines > 2 and self._num_lines % 2 == 1
        if not self._readable or self._points is None or not at_coordinates or values is None:
            return None
        near = self._points.near_on_line(np.array(values), HUNDREDTHS)
        return near if near.any() and not near.all() else None

    def _has_room(self, angles: Sequence[float]) -> bool:
        """Start the cell; return whether its lattice has no vector that is too short."""
        lengths = self._lengths
        if (
            min(lengths) <= 0
            or max(lengths) >= MAX_LENGTH
            or not lattice_has_volume(np.array(angles))
        ):
            self._readable = False
            return True
        self._points = PeriodicPoints(lengths, angles, self._min_distance)
        return self._points.has_room
