"""Regular expressions that hold generated text to the form of crystal text.

With structured decoding the engine lets through just the tokens that continue a match. That changes
the model's distribution, so it is an option. Numbers are bounded so that nearly every match is a
cell: lengths 1.0 to 99.9 angstrom, angles 60 to 120 degrees, as Niggli-reduced cells have them.
Angles can still span no volume (60, 60, 120); decoding turns these away.
"""

from collections.abc import Sequence
from itertools import groupby

from flowllm.llm.text import element_symbol

_LENGTH = r"[1-9][0-9]?\.[0-9]"
_ANGLE = r"(6[0-9]|[7-9][0-9]|1[01][0-9]|120)"
_COORDINATE = r"0\.[0-9][0-9]"


def crystal_regex(elements: Sequence[int], max_atoms: int) -> str:
    """Return the expression of any crystal text.

    Args:
        elements: atomic numbers that may occur.
        max_atoms: the most atoms of a cell.
    """
    symbols = "|".join(element_symbol(z) for z in sorted(elements))
    atom = rf"\n({symbols})\n{_three(_COORDINATE)}"
    return rf"{_lattice()}({atom}){{1,{max_atoms}}}"


def cell_regex(atomic_numbers: Sequence[int]) -> str:
    """Return the expression of a crystal text with exactly these atoms in this order."""
    parts = [_lattice()]
    for z, run in groupby(int(z) for z in atomic_numbers):
        atom = rf"(\n{element_symbol(z)}\n{_three(_COORDINATE)})"
        parts.append(rf"{atom}{{{len(list(run))}}}")
    return "".join(parts)


def _lattice() -> str:
    return rf"{_three(_LENGTH)}\n{_three(_ANGLE)}"


def _three(number: str) -> str:
    return " ".join([number] * 3)
