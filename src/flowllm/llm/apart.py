"""Interface of the check that keeps the atoms of a crystal text apart while it is generated.

A `LineCheck` reads the finished lines of a text and says where an atom is nearer than the minimum
distance to one before it; `llm.redraws` then draws the text again from there. Each kind of crystal
text has its own.
"""

from typing import Protocol

import numpy as np

HUNDREDTHS = np.arange(100) / 100
"""All values of a coordinate."""


class LineCheck(Protocol):
    """Check of one text, whose lines are given in their order.

    A shallow copy reads lines without changing the check that it is a copy of.

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
