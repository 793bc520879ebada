"""What a draft must fulfill besides its atoms; a draft that does not is rejected."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd

import numpy as np

from flowllm.crystal import cell_formula
from flowllm.data.wishes import ElementsMode
from flowllm.llm.crystal_text import Decoded, Reason, Rejection, composition_of
from flowllm.llm.text_parts import element_symbol


@dataclass(frozen=True)
class Required:
    """Conditions of a wish that a draft shows; None is not asked.

    Attributes:
        formula: number of atoms of the reduced formula by atomic number.
        elements: atomic numbers.
        elements_mode: whether all of them must occur (exact), or at least one (subset).
        num_atoms: number of atoms per cell.
        space_group: number of the space group that the text names.
    """

    formula: Mapping[int, int] | None = None
    elements: frozenset[int] | None = None
    elements_mode: ElementsMode = "exact"
    num_atoms: int | None = None
    space_group: int | None = None

    def rejection(self, decoded: Decoded) -> Rejection | None:
        """Return the reason why a draft is rejected, None if it is not.

        A text that names no space group meets every one, since nothing is known of its group.
        """
        crystal = decoded.crystal
        found = frozenset(crystal.atomic_numbers.tolist())
        if self.formula is not None and reduced_formula(crystal.atomic_numbers) != self.formula:
            asked = cell_formula(np.repeat(list(self.formula), list(self.formula.values())))
            detail = f"{crystal.formula}, asked for cells of {asked}"
            return Rejection(Reason.FORMULA_MISMATCH, detail)
        if self.num_atoms not in (None, crystal.num_atoms):
            detail = f"{crystal.num_atoms} atoms, asked for {self.num_atoms}"
            return Rejection(Reason.ATOMS_MISMATCH, detail)
        if self.elements is not None:
            exact = self.elements_mode == "exact"
            if not found <= self.elements or (exact and found != self.elements):
                detail = f"{_symbols(found)}, asked for {_symbols(self.elements)}"
                return Rejection(Reason.ELEMENTS_MISMATCH, detail)
        if None not in (self.space_group, decoded.group) and self.space_group != decoded.group:
            detail = f"space group {decoded.group}, asked for {self.space_group}"
            return Rejection(Reason.GROUP_MISMATCH, detail)
        return None


ANY = Required()
"""No condition."""


def reduced_formula(atomic_numbers: np.ndarray) -> dict[int, int]:
    """Return the number of atoms of the reduced formula by atomic number."""
    counts = composition_of(atomic_numbers)
    divisor = gcd(*counts.values())
    return {number: count // divisor for number, count in counts.items()}


def _symbols(numbers: frozenset[int]) -> str:
    return ", ".join(element_symbol(z) for z in sorted(numbers))
