"""Lines of crystal texts as their checks have read them.

The engine's mask and the redraws read the same text, and each redraw begins with lines that were
read before. What a check knows after some lines is therefore kept, so that a line is read once.
"""

from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from flowllm.config.sections.llm import CrystalTextName
from flowllm.llm.apart import LineCheck
from flowllm.llm.crystal_texts import crystal_text

KEPT_STATES = 8192
"""States that are kept: a batch of 128 texts of 20 atoms has 5,400 lines."""


@dataclass(frozen=True)
class ReadLines:
    """A check after some lines.

    Attributes:
        check: the check, which reads no more lines.
        is_near: whether the last line brings two atoms nearer than the minimum distance.
    """

    check: LineCheck
    is_near: bool


@lru_cache(KEPT_STATES)
def read_lines(text: CrystalTextName, min_distance: float, lines: tuple[str, ...]) -> ReadLines:
    """Read the first lines of a text.

    Args:
        text: kind of the text.
        min_distance: minimum distance of two atoms, or of an atom and its image, in angstrom.
        lines: the lines.
    """
    if not lines:
        return ReadLines(crystal_text(text).line_check(min_distance), is_near=False)
    check = copy(read_lines(text, min_distance, lines[:-1]).check)
    return ReadLines(check, check.add(lines[-1]))


@lru_cache(KEPT_STATES)
def blocked(
    text: CrystalTextName, min_distance: float, lines: tuple[str, ...], first: str
) -> np.ndarray | None:
    """Return which last coordinates are too near after some lines; see `LineCheck.blocked`."""
    return read_lines(text, min_distance, lines).check.blocked(first)
