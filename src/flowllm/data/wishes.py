"""Wishes: conditions on a crystal as users write them, one by one or in a CSV file.

A wish has conditions on the composition (formula, elements, number of atoms), the space group,
energies, the band gap, and the configuration's own properties (`prepare.properties`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from pymatgen.core import Composition, Element

from flowllm.config.sections.llm import CONDITIONS
from flowllm.crystal import MAX_ATOMIC_NUMBER, cell_formula
from flowllm.data.csv_file import read_csv
from flowllm.data.properties import LEAST, SPACE_GROUP, parse_number, parse_property
from flowllm.errors import FlowllmError

MAX_ATOMS_ASKED = 1000
"""Limit of the atoms in a wish while the model's own limit is not known yet."""

NUM_ATOMS = "num_atoms"
ELEMENTS_MODE = "elements_mode"

ElementsMode = Literal["exact", "subset"]
"""Whether all of the asked elements must occur, or at least one of them."""

WISHES = (*CONDITIONS, NUM_ATOMS)
"""Conditions that a wish can have besides the configuration's own properties."""

Words = Mapping[str, str]
"""A wish as the user writes it: name of the condition to its text."""

Own = Mapping[str, tuple[str, ...] | None]
"""The configuration's own properties: name to the categories, None for a number."""


@dataclass(frozen=True)
class Wish:
    """One set of conditions; None is not asked.

    Attributes:
        formula: atomic number of each atom of the cell, by electronegativity.
        elements: symbols of the elements, each once, by electronegativity.
        elements_mode: whether all of them must occur (exact), or at least one (subset).
        num_atoms: number of atoms per cell.
        space_group_number: number of the space group.
        energies: formation energy, band gap and energy above the hull in eV, by name.
        own: values of the configuration's own properties, by name.
    """

    formula: tuple[int, ...] | None = None
    elements: tuple[str, ...] | None = None
    elements_mode: ElementsMode = "exact"
    num_atoms: int | None = None
    space_group_number: int | None = None
    energies: tuple[tuple[str, float], ...] = ()
    own: tuple[tuple[str, float | str], ...] = ()

    def given(self) -> tuple[str, ...]:
        """Return the names of the conditions that are asked, in the order of `WISHES`."""
        named = dict(self.energies)
        asked = [name for name in WISHES if name in named or getattr(self, name, None) is not None]
        return (*asked, *(name for name, _ in self.own))


def parse_wish(words: Words, max_atoms: int = MAX_ATOMS_ASKED, own: Own | None = None) -> Wish:
    """Return the values of a wish.

    Args:
        words: the wish as text.
        max_atoms: most atoms per cell that can be asked for.
        own: the configuration's own properties.

    Raises:
        ValueError: a condition is invalid or contradicts another one; the message names it.
    """
    properties = own or {}
    if unknown := sorted(set(words) - {*WISHES, ELEMENTS_MODE, *properties}):
        known = ", ".join((*WISHES, *properties))
        raise ValueError(f"{unknown[0]} is not a condition; there are {known}")
    values: dict[str, Any] = {}
    if "formula" in words:
        values["formula"] = tuple(atoms_of(words["formula"], max_atoms).tolist())
    if "elements" in words:
        # A crystal of a subset of the elements may have fewer atoms than there are elements.
        is_subset = words.get(ELEMENTS_MODE) == "subset"
        values["elements"] = _elements(
            words["elements"], MAX_ATOMIC_NUMBER if is_subset else max_atoms
        )
    if ELEMENTS_MODE in words:
        values[ELEMENTS_MODE] = _elements_mode(words)
    if NUM_ATOMS in words:
        values[NUM_ATOMS] = _num_atoms(words[NUM_ATOMS], max_atoms)
    if SPACE_GROUP in words:
        values[SPACE_GROUP] = _known(SPACE_GROUP, words[SPACE_GROUP])
    wish = Wish(
        **values,
        energies=tuple((name, _known(name, words[name])) for name in LEAST if name in words),
        own=tuple(
            (name, _own_value(name, words[name], properties[name]))
            for name in properties
            if name in words
        ),
    )
    _check_agreement(wish, words)
    return wish


def read_wishes(path: Path, own: Own | None = None) -> list[Words]:
    """Read a CSV file with one column per condition and one row per wish.

    An empty cell is a condition that is not given.

    Raises:
        FlowllmError: as `read_csv`, or a column is unknown, a row has more or fewer cells than the
            header or no condition, or there is no row; the message names the line.
    """
    lines = read_csv(path)
    columns = [name.strip() for name in next(lines)[1]]
    if unknown := sorted(set(columns) - {*WISHES, ELEMENTS_MODE, *(own or {})}):
        known = ", ".join((*WISHES, ELEMENTS_MODE, *(own or {})))
        raise FlowllmError(f"{path}: unknown columns {unknown}; there are {known}")
    rows: list[Words] = []
    for line, cells in lines:
        if len(cells) != len(columns):
            raise FlowllmError(
                f"{path}, line {line}: {len(cells)} cells under {len(columns)} columns; put a cell "
                'that contains a comma in quotes: "Ga,As"'
            )
        words = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
        rows.append({name: word for name, word in words.items() if word})
        if not rows[-1].keys() - {ELEMENTS_MODE}:
            raise FlowllmError(f"{path}, line {line}: no condition; delete the line")
        try:
            parse_wish(rows[-1], own=own)
        except ValueError as error:
            raise FlowllmError(f"{path}, line {line}: {error}") from error
    if not rows:
        raise FlowllmError(
            f"{path}: contains no rows of conditions; add one row per set of conditions"
        )
    return rows


def wish_of_draw(wishes: Sequence[Words], draw: int) -> Words:
    """Return the wish of a draw: the wishes in turn, whatever the shards are."""
    return wishes[draw % len(wishes)]


def atoms_of(formula: str, max_atoms: int) -> np.ndarray:
    """Return the atomic numbers of a formula, by electronegativity as in training texts.

    Raises:
        ValueError: the formula is not one of a cell of at most `max_atoms` atoms.
    """
    composition = Composition(formula)
    if strange := [str(one) for one in composition if not isinstance(one, Element)]:
        raise ValueError(f"formula {formula}: {strange[0]} is not an element")
    if not all(float(count).is_integer() for count in composition.values()):
        raise ValueError(f"formula {formula} has no whole numbers of atoms")
    if not composition.num_atoms:
        raise ValueError(f"formula {formula} has no atoms")
    if composition.num_atoms > max_atoms:
        raise ValueError(_too_many(formula, composition.num_atoms, max_atoms))
    numbers = [element.Z for element, count in composition.items() for _ in range(int(count))]
    in_order = Composition(cell_formula(np.array(numbers))).items()
    return np.array([element.Z for element, count in in_order for _ in range(int(count))])


def _too_many(what: str, num_atoms: float, max_atoms: int) -> str:
    return (
        f"{what} has {num_atoms:.0f} atoms, but the model was trained on crystals of at most "
        f"{max_atoms}; ask for fewer, or fine-tune with a larger prepare.max_atoms"
    )


def _elements(text: str, max_atoms: int) -> tuple[str, ...]:
    """Return the symbols of a list of elements, each once, by electronegativity."""
    symbols = text.replace(",", " ").split()
    for symbol in symbols:
        if not Element.is_valid_symbol(symbol):
            raise ValueError(f"elements {text!r}: {symbol!r} is not the symbol of an element")
    if not symbols:
        raise ValueError(f"elements {text!r} has no symbol of an element")
    once = "".join(dict.fromkeys(symbols))
    return tuple(Composition(cell_formula(atoms_of(once, max_atoms))).as_dict())


def _elements_mode(words: Words) -> ElementsMode:
    mode = words[ELEMENTS_MODE]
    if mode not in get_args(ElementsMode):
        raise ValueError(f"elements_mode is {mode!r}, expected exact or subset")
    if "elements" not in words:
        raise ValueError("elements_mode is given without elements; give both, or neither")
    return cast(ElementsMode, mode)


def _num_atoms(text: str, max_atoms: int) -> int:
    number = parse_number(text)
    if number is None or number < 1 or not number.is_integer():
        raise ValueError(f"num_atoms is {text!r}, expected a whole number of at least 1")
    if number > max_atoms:
        raise ValueError(_too_many(f"num_atoms {text}", number, max_atoms))
    return int(number)


def _known(name: str, text: str) -> Any:
    """Return the value of a built-in property."""
    try:
        value = parse_property(name, text)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from error
    if value is None:
        raise ValueError(_unknown_value(name, text))
    return value


def _own_value(name: str, text: str, categories: tuple[str, ...] | None) -> float | str:
    """Return the value of an own property: one of its categories, or a number."""
    if categories is not None:
        if text not in categories:
            raise ValueError(f"{name} is {text!r}, expected one of {', '.join(categories)}")
        return text
    try:
        value = parse_number(text)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from error
    if value is None:
        raise ValueError(_unknown_value(name, text))
    return value


def _unknown_value(name: str, text: str) -> str:
    return f"{name} is {text!r}, expected a number; leave it out if any value is acceptable"


def _check_agreement(wish: Wish, words: Words) -> None:
    """Refuse conditions that no crystal meets together."""
    if wish.formula is not None:
        found = tuple(Composition(cell_formula(np.array(wish.formula))).as_dict())
        if wish.num_atoms not in (None, len(wish.formula)):
            raise ValueError(
                f"formula {words['formula']} has {len(wish.formula)} atoms, but num_atoms is "
                f"{wish.num_atoms}; give one of them"
            )
        asked = set(wish.elements or found)
        if not set(found) <= asked or (wish.elements_mode == "exact" and asked != set(found)):
            raise ValueError(
                f"formula {words['formula']} has other elements than {words['elements']}; give one "
                "of the two conditions"
            )
    few = wish.num_atoms is not None and wish.num_atoms < len(wish.elements or ())
    if few and wish.elements_mode == "exact":
        raise ValueError(
            f"num_atoms {wish.num_atoms} is less than the {len(wish.elements or ())} elements that "
            "must occur; ask for more atoms, or set elements_mode: subset"
        )
