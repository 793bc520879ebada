"""Crystals on request (`flowllm sample`): any conditions that the model was trained on."""

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition

from flowllm.config import CONDITIONS, Prompts, StageSettings
from flowllm.crystal import cell_formula
from flowllm.errors import FlowllmError
from flowllm.llm.grammar import cell_regex, crystal_regex
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.model_record import ModelRecord
from flowllm.llm.prompts import Conditions, prompt_formula, prompt_text
from flowllm.llm.sampling import Task, base_row, write_samples
from flowllm.llm.text import composition_of
from flowllm.runlog import stage_run
from flowllm.seeds import derive
from flowllm.tables import BASE

Words = Mapping[str, str]
"""Conditions as a user writes them: name of the condition to its text."""


def sample(
    settings: StageSettings,
    *,
    model: Path,
    asked: Sequence[Words],
    count: int,
    out: Path,
    gpus: int,
) -> None:
    """Sample crystals for some conditions.

    Args:
        settings: of `sample_base`.
        model: folder of the merged model.
        asked: conditions as their words, see `read_conditions`.
        count: crystals for each of them.
        out: a table (`tables.BASE`); ids are `sample-{conditions}-{number}`.
        gpus: GPUs to use, 0 for the CPU.

    Raises:
        FlowllmError: conditions make no sense, or the model was not trained on such prompts.
    """
    opened = ModelFolder(model, settings.prompts)
    wishes = [_wish(settings.prompts, words, opened.record.max_atoms) for words in asked]
    sampler = opened.sampler(
        [conditions for conditions, _ in wishes],
        temperature=settings.base.temperature,
        top_p=settings.base.top_p,
        max_attempts=settings.sample_base.max_attempts,
        restrict_tokens=settings.sample_base.restrict_tokens,
        backend=settings.sample_base.backend,
        gpus=gpus,
    )
    numbers = [(i, j) for i in range(len(wishes)) for j in range(count)]

    def make_rows(items: range) -> list[dict[str, Any]]:
        chosen = [numbers[k] for k in items]
        tasks = [_task(settings, opened.record, wishes[i], i, j) for i, j in chosen]
        return [
            base_row(
                f"sample-{i:04d}-{j:06d}", outcome, prompt_text(settings.prompts, wishes[i][0])
            )
            for (i, j), outcome in zip(chosen, sampler.draw(tasks), strict=True)
        ]

    work = {"asked": [dict(words) for words in asked], "count": count}
    with stage_run(settings, inputs={"model": model}, output=out, work=work) as run:
        chunk = settings.sample_base.chunk_size
        write_samples(sampler, out, run, BASE, len(numbers), chunk, make_rows)


def read_conditions(path: Path) -> list[Words]:
    """Read a CSV file of conditions: a column each, a row for each wish, empty where not given.

    Raises:
        FlowllmError: the file is missing, empty, or has an unknown column.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{key: text for key, text in row.items() if text} for row in reader]
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError) as error:
        raise FlowllmError(f"{path}: {error}") from error
    if unknown := sorted(set(columns) - set(CONDITIONS)):
        raise FlowllmError(f"{path}: unknown columns {unknown}; there are {', '.join(CONDITIONS)}")
    if not rows:
        raise FlowllmError(f"{path}: holds no rows of conditions")
    return rows


Wish = tuple[Conditions, np.ndarray | None]
"""What the prompt gives, and the atoms that follow from it (none of a reduced formula)."""


def _wish(prompts: Prompts, words: Words, max_atoms: int) -> Wish:
    """Read one wish; `max_atoms` is the most that the model was trained on."""
    values: dict[str, Any] = {}
    try:
        for name in CONDITIONS[2:5]:
            if name in words:
                values[name] = float(words[name])
        if "space_group_number" in words:
            values["space_group_number"] = int(words["space_group_number"])
        numbers = None
        if "formula" in words:
            numbers = _atoms(words["formula"], max_atoms)
            values["formula"] = prompt_formula(prompts, numbers)
        if "elements" in words:
            symbols = words["elements"].replace(",", " ").split()
            values["elements"] = tuple(
                Composition(cell_formula(_atoms("".join(symbols), max_atoms))).as_dict()
            )
    except ValueError as error:
        raise FlowllmError(f"conditions {dict(words)}: {error}") from error
    return Conditions(**values), None if prompts.formula_style == "reduced" else numbers


def _atoms(formula: str, max_atoms: int) -> np.ndarray:
    """Atomic numbers of a formula's atoms, by electronegativity as in training texts."""
    composition = Composition(formula)
    if any(count != int(count) for count in composition.values()):
        raise ValueError(f"formula {formula} has no whole numbers of atoms")
    if composition.num_atoms > max_atoms:
        raise ValueError(
            f"{formula} has {composition.num_atoms:.0f} atoms, but the model was trained on "
            f"crystals of at most {max_atoms}; ask for fewer, or fine-tune with a larger "
            "prepare.max_atoms"
        )
    numbers = [element.Z for element, count in composition.items() for _ in range(int(count))]
    in_order = Composition(cell_formula(np.array(numbers))).items()
    return np.array([element.Z for element, count in in_order for _ in range(int(count))])


def _task(settings: StageSettings, record: ModelRecord, wish: Wish, i: int, j: int) -> Task:
    conditions, numbers = wish
    regex = None
    if settings.sample_base.structured:
        regex = (
            crystal_regex(record.elements, record.max_atoms, record.max_length)
            if numbers is None
            else cell_regex(numbers.tolist(), record.max_length)
        )
    return Task(
        conditions=conditions,
        composition=None if numbers is None else composition_of(numbers),
        regex=regex,
        seed=partial(derive, settings.seed, "sample", settings.base.name, i, j),
    )
