"""Numbers and symbols in crystal texts."""

import re
from collections.abc import Sequence
from functools import cache

from pymatgen.core.periodic_table import Element

from flowllm.crystal import MAX_ATOMIC_NUMBER
from flowllm.llm.crystal_text import Reason, RejectedTextError

_NUMBER = re.compile(r"[+-]?[0-9]{1,12}(\.[0-9]{1,12})?")
"""Numbers that are read: decimal numbers only. Python would also accept inf, nan, 1e9 and 1_0."""


def coordinate(value: float) -> str:
    """Return a coordinate with two decimal places, in [0, 1)."""
    text = f"{value % 1.0:.2f}"
    return "0.00" if text == "1.00" else text


@cache
def element_symbol(atomic_number: int) -> str:
    """Return an element's symbol."""
    return Element.from_Z(atomic_number).symbol


@cache
def _atomic_numbers() -> dict[str, int]:
    """Return the atomic number of each symbol."""
    return {element_symbol(number): number for number in range(1, MAX_ATOMIC_NUMBER + 1)}


def numbers_of_line(lines: Sequence[str], line: int, count: int) -> list[float]:
    """Return the numbers of a line, which is counted from 0.

    Raises:
        RejectedTextError: the line has another number of values, or a value is not a number.
    """
    words = lines[line].split()
    if len(words) != count:
        values = f"{len(words)} values, expected {count}"
        detail = f"line {line + 1} has {values}: {excerpt(lines[line])}"
        raise RejectedTextError(Reason.WRONG_COUNT, detail)
    for word in words:
        if _NUMBER.fullmatch(word) is None:
            detail = f"line {line + 1}: {excerpt(word)} is not a number"
            raise RejectedTextError(Reason.BAD_NUMBER, detail)
    return [float(word) for word in words]


def read_numbers(line: str, count: int) -> list[float] | None:
    """Return the numbers of a line, None if it does not have exactly `count` numbers."""
    try:
        return numbers_of_line([line], 0, count)
    except RejectedTextError:
        return None


def element_of(symbol: str, line: int) -> int:
    """Return the atomic number of a symbol in a line, which is counted from 0.

    Raises:
        RejectedTextError: the symbol is not an element's.
    """
    if symbol not in _atomic_numbers():
        detail = f"line {line + 1}: {excerpt(symbol)} is no element"
        raise RejectedTextError(Reason.UNKNOWN_ELEMENT, detail)
    return _atomic_numbers()[symbol]


def excerpt(text: str) -> str:
    """Return a quoted text, truncated to 40 characters."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
