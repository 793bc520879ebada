"""The formula and Z of a CIF, and whether the atoms of a cell agree with them."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from pymatgen.core import Composition, Element

from flowllm.data.cif_blocks import Block, parse_number
from flowllm.data.rejected import RejectedError

FORMULA_TOLERANCE = 0.01
"""Relative difference of a count from the formula, which may be rounded; the same as pymatgen's."""

_CAPITALS = re.compile(r"[A-Z0-9. ]+")
_SYMBOLS = re.compile(rf"((?:{'|'.join(one.symbol for one in Element)})[0-9. ]*)+")


@dataclass(frozen=True)
class Formula:
    """The number of atoms per cell, as far as a CIF gives it.

    Attributes:
        counts: atomic number to count in `_chemical_formula_sum`, None where it is missing.
        units: `_cell_formula_units_Z`, None where it is missing.
    """

    counts: dict[int, float] | None
    units: int | None

    def fits(self, found: Counter[int]) -> bool:
        """Whether the atoms of a cell are the formula times Z, or the formula itself.

        The formula itself counts only where Z divides it: some programs write all atoms of the
        cell as the formula, with Z as the common divisor of the counts.
        """
        if self.counts is None:
            return self.units is None or all(n % self.units == 0 for n in found.values())
        if self.counts.keys() != found.keys():
            return False
        if self.units is None:
            return _is_multiple(found, sum(found.values()) / sum(self.counts.values()), self.counts)
        whole = all(_is_close(count % self.units, 0) for count in self.counts.values())
        return _is_multiple(found, self.units, self.counts) or (
            whole and _is_multiple(found, 1, self.counts)
        )

    def confirms(self, found: Counter[int]) -> bool:
        """Whether the CIF gives the number of atoms per cell, and the cell has these."""
        if self.counts is None:
            return False
        return self.fits(found) and (self.units is not None or _is_multiple(found, 1, self.counts))

    def __str__(self) -> str:
        """Return the formula and Z for a message."""
        counts = "no formula" if self.counts is None else formula_text(self.counts)
        return f"{counts}, Z {'not given' if self.units is None else self.units}"


def read_formula(block: Block) -> Formula:
    """Return the formula and Z of a CIF.

    Raises:
        RejectedError: bad_cif or no_element, where one of them cannot be read.
    """
    text = block.first("_chemical_formula_sum")
    return Formula(None if text is None else _counts(text), _units(block))


def formula_text(counts: Mapping[int, float]) -> str:
    """Return counts by atomic number as a formula."""
    return " ".join(f"{Element.from_Z(z).symbol}{count:g}" for z, count in counts.items())


def _units(block: Block) -> int | None:
    text = block.first("_cell_formula_units_z")
    if text is None:
        return None
    number = parse_number(text, "_cell_formula_units_Z")
    if number < 1 or number != int(number):
        raise RejectedError("bad_cif", f"_cell_formula_units_Z is {text}, expected 1, 2, ...")
    return int(number)


def _counts(text: str) -> dict[int, float]:
    """Return the counts of a formula by atomic number."""
    if _CAPITALS.fullmatch(text) and not _SYMBOLS.fullmatch(text):
        text = text.title()
    try:
        found = Composition(text)
    except Exception as error:
        # pymatgen raises many kinds of error on a malformed formula.
        raise RejectedError("bad_cif", f"_chemical_formula_sum {text!r}: {error}") from error
    counts: dict[int, float] = {}
    for element, count in found.items():
        if not isinstance(element, Element):
            raise RejectedError("no_element", f"{element} in _chemical_formula_sum {text!r}")
        # Hydrogen and deuterium have one atomic number.
        counts[element.Z] = counts.get(element.Z, 0) + count
    return counts


def _is_multiple(found: Counter[int], factor: float, counts: Mapping[int, float]) -> bool:
    return all(_is_close(found[z], factor * count) for z, count in counts.items())


def _is_close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=FORMULA_TOLERANCE, abs_tol=1e-6) and (
        abs(one - other) < 0.5
    )
