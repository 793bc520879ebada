"""Parse, reduce and check the raw crystals, and write them by split."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
from cyclopts.types import PositiveInt
from pymatgen.core import Composition

from flowllm.config.sections.conditions import OwnProperty
from flowllm.config.sections.data import Prepare
from flowllm.config.stage_settings import StageSettings
from flowllm.data.cif import crystal_from_cif
from flowllm.data.manifest import SPLITS, read_manifest
from flowllm.data.properties import MISSING, parse_number, parse_property
from flowllm.data.rejected import RejectedError
from flowllm.data.rows import PROPERTY_COLUMNS, SourceRow, read_rows
from flowllm.data.splits import assign_splits
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.io.files import check_writable
from flowllm.io.tables import write_table
from flowllm.runtime.log import Progress, log
from flowllm.runtime.provenance import StageRun, stage_run

CHUNK_ROWS = 32
"""Rows per task of a worker process."""

DETAIL_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a source row: a row of CRYSTALS, or one of REJECTED if `reason` is set."""

    split: str | None
    row: Mapping[str, Any]
    reason: str | None = None


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    prepare: Prepare


def run(settings: Settings, *, manifest: Path, out: Path, workers: PositiveInt = 1) -> None:
    """Parse, reduce and check the raw crystals, and write one table per split.

    Args:
        settings: section `prepare`.
        manifest: The manifest.json of download; the files that it lists are beside it.
        out: Folder that receives train, val, test and rejected.parquet.
        workers: Number of worker processes; the result does not depend on it.

    Raises:
        FlowllmError: a file differs from the manifest or lacks a column, or a split is empty.
    """
    section: Prepare = settings.prepare
    with stage_run(
        settings, inputs={"manifest": manifest}, output=out, check=check_writable
    ) as run:
        rows = with_splits(read_source(manifest), section, settings.seed)
        check_columns(rows, section.properties)
        used = first_rows(rows, section.max_rows)
        outcomes = make_outcomes(used, section, workers)
        schema = schemas.CRYSTALS_WITH_PROPERTIES if section.properties else schemas.CRYSTALS
        run.count(rows_in=len(used), rows_unused=len(rows) - len(used))
        write_outcomes(outcomes, out, run, schema)


def read_source(manifest: Path) -> list[SourceRow]:
    """Read all rows of the files that a manifest lists, in its order."""
    files = read_manifest(manifest).files
    return [row for file in files for row in read_rows(manifest.with_name(file.name), file.split)]


def with_splits(rows: Sequence[SourceRow], section: Prepare, seed: int) -> list[SourceRow]:
    """Return the rows with a split each, drawn by `material_id` where the source gave none."""
    if all(row.split for row in rows):
        return list(rows)
    splits = assign_splits((row.material_id for row in rows), section.split_shares, seed)
    return [replace(row, split=splits[row.material_id]) for row in rows]


def first_rows(rows: Sequence[SourceRow], max_rows: int | None) -> list[SourceRow]:
    """Return the first rows of each split, in the source's order."""
    if max_rows is None:
        return list(rows)
    taken: Counter[str | None] = Counter()
    kept = []
    for row in rows:
        taken[row.split] += 1
        if taken[row.split] <= max_rows:
            kept.append(row)
    return kept


def make_outcomes(rows: Sequence[SourceRow], section: Prepare, workers: int) -> list[Outcome]:
    """Return the outcome of each row, in order; `workers` processes parse the crystals."""
    problems = form_problems(rows)
    good = [row for row, problem in zip(rows, problems, strict=True) if problem is None]
    parsed = _parse_all(good, section, workers)
    return [
        next(parsed) if problem is None else _rejected(row, *problem)
        for row, problem in zip(rows, problems, strict=True)
    ]


def form_problems(rows: Iterable[SourceRow]) -> list[tuple[str, str] | None]:
    """Return reason and detail of each row that is malformed or repeats an earlier id.

    A malformed row does not take its id from a later one: its cells may be those of other columns.
    A row whose crystal is rejected later does.
    """
    problems: list[tuple[str, str] | None] = []
    first: dict[str, SourceRow] = {}
    for row in rows:
        if row.problem:
            problems.append(("bad_row", row.problem))
        elif not row.material_id:
            problems.append(("no_material_id", "the cell is empty"))
        elif (earlier := first.setdefault(row.material_id, row)) is not row:
            problems.append(("duplicate_material_id", f"as {earlier.file}, row {earlier.row}"))
        else:
            problems.append(None)
    return problems


def parse_row(row: SourceRow, section: Prepare) -> Outcome:
    """Return a row's crystal with its properties, or the reason of its rejection."""
    try:
        properties = _properties(row)
        properties |= _own_properties(row, section.properties)
        crystal = crystal_from_cif(row.cells["cif"], section.cell, section.max_atoms)
    except RejectedError as error:
        return _rejected(row, error.reason, error.detail)
    columns = {
        "id": row.material_id,
        **tables.crystal_columns(crystal),
        "num_atoms": crystal.num_atoms,
        "formula": crystal.formula,
        "reduced_formula": _reduced_formula(crystal.formula),
        **properties,
    }
    return Outcome(row.split, columns)


def write_outcomes(
    outcomes: Iterable[Outcome], out: Path, run: StageRun, schema: pa.Schema = schemas.CRYSTALS
) -> None:
    """Write the three splits and the rejected rows, and count them.

    Args:
        outcomes: the outcome of each row.
        out: folder of the tables.
        run: run of the stage.
        schema: schema of the splits.

    Raises:
        FlowllmError: a split has no crystal.
    """
    by_split: dict[str, list[Mapping[str, Any]]] = {split: [] for split in SPLITS}
    rejected = []
    reasons: Counter[str] = Counter()
    for outcome in outcomes:
        if outcome.reason is None:
            assert outcome.split is not None  # `with_splits` has given one to each row
            by_split[outcome.split].append(outcome.row)
        else:
            reasons[outcome.reason] += 1
            rejected.append(outcome.row)
    write_table(out / "rejected.parquet", rejected, schemas.REJECTED, run.metadata())
    for reason, count in sorted(reasons.items()):
        example = next(row for row in rejected if row["reason"] == reason)
        where = f"{example['file']}, row {example['row']}, {example['material_id']}"
        log.info("prepare: %d rejected: %s (%s: %s)", count, reason, where, example["detail"])
    for split, rows in by_split.items():
        if not rows:
            raise FlowllmError(_empty_split(split, reasons, out))
        write_table(out / f"{split}.parquet", rows, schema, run.metadata())
    sizes = {split: len(rows) for split, rows in by_split.items()}
    run.count(rows_out=sum(sizes.values()), rows_failed=len(rejected), **sizes)
    run.count(rejected=dict(sorted(reasons.items())))


def _parse_all(rows: Sequence[SourceRow], section: Prepare, workers: int) -> Iterator[Outcome]:
    """Yield each row's outcome in order, with progress."""
    progress = Progress("prepare, crystals", len(rows))
    parse = partial(parse_row, section=section)
    if workers == 1:
        for outcome in map(parse, rows):
            progress.advance()
            yield outcome
        return
    # New interpreters, since a forked one inherits Arrow's threads in an undefined state.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for outcome in pool.map(parse, rows, chunksize=CHUNK_ROWS):
            progress.advance()
            yield outcome


def _properties(row: SourceRow) -> dict[str, float | int | None]:
    """Return a row's properties by our names; a missing column or value is null."""
    properties = {}
    for theirs, ours in PROPERTY_COLUMNS.items():
        try:
            properties[ours] = parse_property(ours, row.cells.get(theirs, ""))
        except ValueError as error:
            raise RejectedError("bad_number", f"{theirs} is {error}") from error
    return properties


def _own_properties(row: SourceRow, own: Mapping[str, OwnProperty]) -> dict[str, Any]:
    """Return a row's own properties as two columns of items; empty where there are none."""
    if not own:
        return {}
    numbers: list[tuple[str, float]] = []
    labels: list[tuple[str, str]] = []
    for name, about in own.items():
        text = row.cells.get(about.column, "").strip()
        if about.categories is None:
            try:
                value = parse_number(text)
            except ValueError as error:
                raise RejectedError("bad_number", f"{about.column} is {error}") from error
            numbers += [] if value is None else [(name, value)]
        elif text in about.categories:
            labels.append((name, text))
        elif text.lower() not in MISSING:
            expected = ", ".join(about.categories)
            detail = f"{about.column} is {text!r}, expected one of {expected}"
            raise RejectedError("unknown_category", detail)
    return {"numbers": numbers, "labels": labels}


def check_columns(rows: Sequence[SourceRow], own: Mapping[str, OwnProperty]) -> None:
    """Refuse own properties whose column is in no file of the source.

    Raises:
        FlowllmError: a column is missing; the message names it and those that there are.
    """
    found = dict.fromkeys(name for row in rows for name in row.cells)
    for name, about in own.items():
        if about.column not in found:
            raise FlowllmError(
                f"prepare.properties: {name} needs the column {about.column!r}, which no file of "
                f"the source has (found {', '.join(found)}); correct its name"
            )


def _reduced_formula(formula: str) -> str:
    with warnings.catch_warnings():
        # pymatgen warns that helium has no electronegativity, which is no problem of the row.
        warnings.simplefilter("ignore")
        return Composition(formula).reduced_formula


def _rejected(row: SourceRow, reason: str, detail: str) -> Outcome:
    columns = {
        "split": row.split,
        "file": row.file,
        "row": row.row,
        "material_id": row.material_id or None,
        "reason": reason,
        "detail": detail[:DETAIL_LENGTH],
    }
    return Outcome(row.split, columns, reason)


def _empty_split(split: str, reasons: Mapping[str, int], out: Path) -> str:
    counted = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    return (
        f"split {split} is empty ({counted or 'nothing'} rejected in all, "
        f"see {out / 'rejected.parquet'}); give a source with more usable rows, "
        "or change prepare.max_atoms, prepare.max_rows or prepare.split_shares"
    )
