"""Sample crystals for given conditions that the model was trained on (`flowllm generate`)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveInt
from cyclopts.validators import Number
from pymatgen.core import Composition, Element

from flowllm.commands.options import DEFAULT_CONFIG, ConfigFiles, RowName
from flowllm.config.load import load_config
from flowllm.config.sections.llm import CONDITIONS, Base, Prompts, SampleBase
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import cell_formula
from flowllm.data.csv_file import read_csv
from flowllm.data.properties import parse_property
from flowllm.errors import FlowllmError
from flowllm.io.schemas import BASE
from flowllm.llm.crystal_text import composition_of
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.model_record import ModelRecord
from flowllm.llm.prompts import Conditions, prompt_formula, prompt_text
from flowllm.llm.redraws import Form
from flowllm.llm.sampling import DrawRequest, base_row, write_samples
from flowllm.runtime.log import setup_logging
from flowllm.runtime.provenance import stage_run
from flowllm.seeds import derive

MAX_ATOMS_ASKED = 1000
"""Limit of the atoms in a condition while the model's own limit is not known yet."""

SpaceGroup = Annotated[int, Parameter(validator=Number(gte=1, lte=230))]

Words = Mapping[str, str]
"""Conditions as the user writes them: name of the condition to its text."""


class Settings(StageSettings):
    """The settings of sampling, those of the stage `sample_base`."""

    sample_base: SampleBase
    prompts: Prompts
    base: Base


def run(
    *,
    model: Path,
    out: Path,
    formula: str | None = None,
    elements: str | None = None,
    formation_energy_per_atom: float | None = None,
    band_gap: float | None = None,
    e_above_hull: float | None = None,
    space_group_number: SpaceGroup | None = None,
    conditions: Path | None = None,
    count: PositiveInt = 1,
    gpus: NonNegativeInt = 0,
    config: ConfigFiles = None,
    name: RowName = None,
) -> None:
    """Sample crystals for given conditions, for a file of conditions, or without any.

    Args:
        model: Folder of the merged model.
        out: Table of crystals to write.
        formula: Formula of the cell, e.g. Na4Cl4.
        elements: Elements of the crystal, e.g. Na,Cl.
        formation_energy_per_atom: Formation energy in eV per atom.
        band_gap: Band gap in eV.
        e_above_hull: Energy above the hull in eV per atom.
        space_group_number: Number of the space group.
        conditions: CSV file with one column per condition and one row per set of conditions.
        count: Crystals per set of conditions.
        gpus: Number of GPUs, 0 for the CPU.
        config: See `options.ConfigFiles`.
        name: See `options.RowName`; a base.

    Raises:
        FlowllmError: conditions are invalid or given twice, or the model was not trained on them.
    """
    setup_logging(None)
    loaded = load_config(config or DEFAULT_CONFIG)
    settings = Settings.from_config("sample_base", loaded, name or loaded.bases[0].name)
    given = {
        "formula": formula,
        "elements": elements,
        "formation_energy_per_atom": formation_energy_per_atom,
        "band_gap": band_gap,
        "e_above_hull": e_above_hull,
        "space_group_number": space_group_number,
    }
    words = {key: str(value) for key, value in given.items() if value is not None}
    if conditions is not None and words:
        raise FlowllmError("Give conditions either as options or as a file, not both.")
    asked = read_conditions(conditions) if conditions else [words]
    generate(settings, model=model, asked=asked, count=count, out=out, gpus=gpus)


def generate(
    settings: Settings,
    *,
    model: Path,
    asked: Sequence[Words],
    count: int,
    out: Path,
    gpus: int,
) -> None:
    """Sample crystals for the given conditions.

    Args:
        settings: settings of `sample_base`.
        model: folder of the merged model.
        asked: sets of conditions as text, see `read_conditions`.
        count: crystals per set.
        out: table to write (`schemas.BASE`); ids are `sample-{conditions}-{number}`.
        gpus: GPUs to use, 0 for the CPU.

    Raises:
        FlowllmError: conditions are invalid, or the model was not trained on such prompts.
    """
    opened = ModelFolder(model, settings.prompts)
    targets = [_target(settings.prompts, words, opened.record.max_atoms) for words in asked]
    sampler = opened.sampler(
        [conditions for conditions, _ in targets],
        temperature=settings.base.temperature,
        top_p=settings.base.top_p,
        max_attempts=settings.sample_base.max_attempts,
        restrict_tokens=settings.sample_base.restrict_tokens,
        reject_close_atoms=settings.sample_base.reject_close_atoms,
        min_distance=settings.sample_base.min_distance,
        max_redraws=settings.sample_base.max_redraws,
        backend=settings.sample_base.backend,
        gpus=gpus,
    )
    numbers = [(i, j) for i in range(len(targets)) for j in range(count)]

    def make_rows(items: range) -> list[dict[str, Any]]:
        chosen = [numbers[k] for k in items]
        tasks = [_task(settings, opened.record, targets[i], i, j) for i, j in chosen]
        return [
            base_row(
                f"sample-{i:04d}-{j:06d}", outcome, prompt_text(settings.prompts, targets[i][0])
            )
            for (i, j), outcome in zip(chosen, sampler.draw(tasks), strict=True)
        ]

    work = {"asked": [dict(words) for words in asked], "count": count}
    with stage_run(settings, inputs={"model": model}, output=out, work=work) as run:
        chunk = settings.sample_base.chunk_size
        write_samples(sampler, out, run, BASE, len(numbers), chunk, make_rows)


def read_conditions(path: Path) -> list[Words]:
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
                "without --conditions"
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


Target = tuple[Conditions, np.ndarray | None]
"""The conditions of the prompt, and the atoms of its formula (None for a reduced formula)."""


def _target(prompts: Prompts, words: Words, max_atoms: int) -> Target:
    """Parse one set of conditions; `max_atoms` is the most atoms in the model's training."""
    try:
        values = _values(words, max_atoms)
    except ValueError as error:
        raise FlowllmError(f"conditions {dict(words)}: {error}") from error
    numbers = values.pop("formula", None)
    if numbers is not None:
        values["formula"] = prompt_formula(prompts, numbers)
    return Conditions(**values), None if prompts.formula_style == "reduced" else numbers


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


def _task(settings: Settings, record: ModelRecord, target: Target, i: int, j: int) -> DrawRequest:
    conditions, numbers = target
    form: Form | None = None
    if settings.sample_base.structured:
        text = crystal_text(settings.prompts.crystal_text)
        form = (
            partial(text.grammar, record.elements, record.max_atoms, record.max_length)
            if numbers is None
            else partial(text.cell_grammar, numbers.tolist(), record.max_length)
        )
    return DrawRequest(
        conditions=conditions,
        composition=None if numbers is None else composition_of(numbers),
        form=form,
        seed=partial(derive, settings.seed, "sample", settings.base.name, i, j),
    )
