"""Temporary: the interface of cond's modules with today's conditions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition, Element

from flowllm.config.sections.llm import CONDITIONS, Prompts
from flowllm.crystal import cell_formula
from flowllm.data.csv_file import read_csv
from flowllm.data.properties import parse_property
from flowllm.errors import FlowllmError
from flowllm.llm.crystal_text import composition_of
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.model_record import ModelRecord
from flowllm.llm.prompts import Conditions, prompt_formula
from flowllm.llm.redraws import Form
from flowllm.llm.sampling import DrawRequest

MAX_ATOMS_ASKED = 1000
Words = Mapping[str, str]


@dataclass(frozen=True)
class Target:
    words: Words
    conditions: Conditions
    numbers: np.ndarray | None


def target_of(prompts: Prompts, record: ModelRecord, words: Words) -> Target:
    try:
        values = _values(words, record.max_atoms)
    except ValueError as error:
        raise FlowllmError(f"conditions {dict(words)}: {error}") from error
    numbers = values.pop("formula", None)
    if numbers is not None:
        values["formula"] = prompt_formula(prompts, numbers)
    numbers = None if prompts.formula_style == "reduced" else numbers
    return Target(words, Conditions(**values), numbers)


def request_of(
    target: Target,
    prompts: Prompts,
    record: ModelRecord,
    structured: bool,
    seed: Callable[[int], int],
) -> DrawRequest:
    numbers = target.numbers
    form: Form | None = None
    if structured:
        text = crystal_text(prompts.crystal_text)
        form = (
            partial(text.grammar, record.elements, record.max_atoms, record.max_length)
            if numbers is None
            else partial(text.cell_grammar, numbers.tolist(), record.max_length)
        )
    return DrawRequest(
        conditions=target.conditions,
        composition=None if numbers is None else composition_of(numbers),
        form=form,
        seed=seed,
    )


def read_wishes(path: Path) -> list[Words]:
    """Read a CSV file with one column per condition and one row per set of conditions.

    An empty cell is a condition that is not given.

    Raises:
        FlowllmError: as `read_csv`, or a column is unknown, a row has more or fewer cells than the
            header or no condition, or there is no row; the message names the line.
    """
    lines = read_csv(path)
    columns = [name.strip() for name in next(lines)[1]]
    if unknown := sorted(set(columns) - set(CONDITIONS)):
        raise FlowllmError(f"{path}: unknown columns {unknown}; there are {', '.join(CONDITIONS)}")
    rows: list[Words] = []
    for line, cells in lines:
        if len(cells) != len(columns):
            raise FlowllmError(
                f"{path}, line {line}: {len(cells)} cells under {len(columns)} columns; put a cell "
                'that contains a comma in quotes: "Ga,As"'
            )
        words = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
        rows.append({name: word for name, word in words.items() if word})
        if not rows[-1]:
            raise FlowllmError(
                f"{path}, line {line}: no condition; delete the line, or run `flowllm generate` "
                "without --wishes"
            )
        try:
            _values(rows[-1], MAX_ATOMS_ASKED)
        except ValueError as error:
            raise FlowllmError(f"{path}, line {line}: {error}") from error
    if not rows:
        raise FlowllmError(
            f"{path}: contains no rows of conditions; add one row per set of conditions"
        )
    return rows


def _values(words: Words, max_atoms: int) -> dict[str, Any]:
    """Return the values of conditions: atomic numbers of a formula, symbols of elements, numbers.

    Raises:
        ValueError: a condition is invalid; the message names it.
    """
    values: dict[str, Any] = {}
    for name, text in words.items():
        if name == "formula":
            values[name] = _atoms(text, max_atoms)
        elif name == "elements":
            values[name] = _elements(text, max_atoms)
        else:
            values[name] = _number(name, text)
    return values


def _number(name: str, text: str) -> float | int:
    try:
        value = parse_property(name, text)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from error
    if value is None:
        raise ValueError(
            f"{name} is {text!r}, expected a number; leave it out if any value is acceptable"
        )
    return value


def _atoms(formula: str, max_atoms: int) -> np.ndarray:
    """Return the atomic numbers of a formula, by electronegativity as in training texts."""
    composition = Composition(formula)
    if strange := [str(one) for one in composition if not isinstance(one, Element)]:
        raise ValueError(f"formula {formula}: {strange[0]} is not an element")
    if not all(float(count).is_integer() for count in composition.values()):
        raise ValueError(f"formula {formula} has no whole numbers of atoms")
    if not composition.num_atoms:
        raise ValueError(f"formula {formula} has no atoms")
    if composition.num_atoms > max_atoms:
        raise ValueError(
            f"{formula} has {composition.num_atoms:.0f} atoms, but the model was trained on "
            f"crystals of at most {max_atoms}; ask for fewer, or fine-tune with a larger "
            "prepare.max_atoms"
        )
    numbers = [element.Z for element, count in composition.items() for _ in range(int(count))]
    in_order = Composition(cell_formula(np.array(numbers))).items()
    return np.array([element.Z for element, count in in_order for _ in range(int(count))])


def _elements(text: str, max_atoms: int) -> tuple[str, ...]:
    """Return the symbols of a list of elements, each once, by electronegativity."""
    symbols = text.replace(",", " ").split()
    for symbol in symbols:
        if not Element.is_valid_symbol(symbol):
            raise ValueError(f"elements {text!r}: {symbol!r} is not the symbol of an element")
    if not symbols:
        raise ValueError(f"elements {text!r} has no symbol of an element")
    return tuple(Composition(cell_formula(_atoms("".join(symbols), max_atoms))).as_dict())
