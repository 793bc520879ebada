"""Properties of crystals as text, in sources, files of requests and the command line."""

import math
import re

MAX_ENERGY = 1000.0
"""eV. A larger number has another unit, or a typing error in its exponent."""

LEAST = {"formation_energy_per_atom": -MAX_ENERGY, "band_gap": 0.0, "e_above_hull": -MAX_ENERGY}
"""Lowest value of each energy."""

SPACE_GROUP = "space_group_number"
NUM_SPACE_GROUPS = 230

MISSING = frozenset(
    ("", "?", ".", "-", "none", "na", "n/a", "<na>", "#n/a", "#na", "nan", "-nan", "null")
)
"""Words of pandas and CIF for an unknown value, in lower case."""

_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_property(name: str, text: str) -> float | int | None:
    """Return the value of a property, None where the text is a word for an unknown value.

    Args:
        name: an energy of `LEAST` in eV, or `space_group_number`.
        text: a decimal number; spaces around it do not matter.

    Returns:
        A finite float, or an int from 1 to 230.

    Raises:
        ValueError: the text is not such a number; the message begins with the text.
    """
    word, number = text.strip(), parse_number(text)
    if number is None:
        return None
    if name == SPACE_GROUP:
        if number not in range(1, NUM_SPACE_GROUPS + 1):
            raise ValueError(f"{word!r}, expected a whole number from 1 to 230")
        return int(number)
    if not LEAST[name] <= number <= MAX_ENERGY:
        raise ValueError(f"{word!r}, expected {LEAST[name]:g} to {MAX_ENERGY:g} eV")
    return number


def parse_number(text: str) -> float | None:
    """Return a finite decimal number, None where the text is a word for an unknown value.

    Raises:
        ValueError: the text is not such a number; the message begins with the text.
    """
    word = text.strip()
    if word.lower() in MISSING:
        return None
    if _DECIMAL.fullmatch(word) is None or not math.isfinite(float(word)):
        hint = " with a decimal point" if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", word) else ""
        raise ValueError(f"{word!r}, expected a number{hint}")
    # -0.0 becomes 0.0, since the two differ as text.
    return float(word) + 0.0
