"""Import one shard of another model's samples into our tables, for evaluation like ours."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cyclopts.types import NonNegativeInt

from flowllm.config.sections.data import External
from flowllm.config.stage_settings import StageSettings
from flowllm.data.cif import Cell, crystal_in_cell
from flowllm.data.external import read_samples
from flowllm.data.rejected import RejectedError
from flowllm.data.sample_crystals import UnparsedSample
from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, required_crystal, write_table
from flowllm.runtime.log import log
from flowllm.runtime.provenance import stage_run
from flowllm.seeds import generator

MAX_REASONS = 10
"""Reasons of unreadable samples that the log names per shard."""


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    external: External


def run(settings: Settings, *, shard: NonNegativeInt, base: Path, out: Path) -> None:
    """Import one shard of another model's samples (a row of external_samples) for evaluation.

    A sample that cannot be read becomes a row with its error.

    Args:
        settings: the row `external`.
        shard: Number of the shard, from 0; the samples are divided into `external.shards` parts of
            consecutive samples.
        base: Shard to write in the place of base crystals, in the cell `external.cell`.
        out: Shard of generated crystals to write: the same crystals, with their source's
            names.

    Raises:
        FlowllmError: the file is missing or of an unknown format, contains fewer samples than
            shards, or none of its samples can be read.
    """
    row: External = settings.external
    if shard >= row.shards:
        raise FlowllmError(
            f"external_samples {row.name}: has shards 0 to {row.shards - 1}, not {shard}"
        )
    samples = Path(row.file)
    with stage_run(settings, inputs={"samples": samples}, output=out, work={"shard": shard}) as run:
        found = list(read_samples(samples, row.column, row.known_columns))
        used = drawn_samples(len(found), row, settings.seed)
        total = len(used)
        if total < row.shards:
            raise FlowllmError(
                f"{samples}: {total} samples, fewer than {row.shards} shards; lower "
                "external_samples.shards"
            )
        mine = used[total * shard // row.shards : total * (shard + 1) // row.shards]
        rows = [sample_row(f"{row.name}-{index:06d}", found[index]) for index in mine]
        failed = sum(one["status"] != "ok" for one in rows)
        if failed == len(rows) and not _any_readable(found):
            raise FlowllmError(
                f"{samples}: none of its {total} samples can be read ({rows[0]['error']})"
            )
        run.count(rows_in=len(rows), rows_out=len(rows) - failed, rows_failed=failed)
        _log_reasons(samples, rows)
        bases = [in_cell_of_flow(one, row.cell) for one in rows]
        write_table(base, bases, schemas.BASE, run.metadata())
        steps = [one | {"num_steps": 0} for one in rows]
        schema = schemas.SAMPLES_WITH_ENERGIES if row.known_columns else schemas.IMPORTED
        write_table(out, steps, schema, run.metadata())


def drawn_samples(total: int, row: External, seed: int) -> list[int]:
    """Return the indices of the samples that are used, in the order of the file.

    A larger `max_crystals` keeps the samples of a smaller one.
    """
    if row.max_crystals is None or row.max_crystals >= total:
        return list(range(total))
    order = generator(seed, "import_samples", row.name).permutation(total)
    return sorted(order[: row.max_crystals].tolist())


def _log_reasons(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Log how many samples cannot be read, by reason, the most frequent reasons first."""
    failed = [row for row in rows if row["status"] != "ok"]
    reasons = Counter(_reason(row) for row in failed)
    for reason, count in reasons.most_common(MAX_REASONS):
        first = next(row for row in failed if _reason(row) == reason)
        log.warning(
            "%s: %d of %d samples cannot be read, first %s: %s",
            path,
            count,
            len(rows),
            first["source_name"],
            first["error"],
        )


def _reason(row: Mapping[str, Any]) -> str:
    """Return the error's type and the words before its first colon."""
    return ":".join(str(row["error"]).split(":")[:2])


def _any_readable(found: Sequence[UnparsedSample]) -> bool:
    """Return whether any sample of the file can be read, which shows that its format is known."""
    return any(sample_row("", sample)["status"] == "ok" for sample in found)


def in_cell_of_flow(row: Mapping[str, Any], cell: Cell | None) -> dict[str, Any]:
    """Return the row of `schemas.BASE` of a sample: its crystal in a cell that a flow starts from.

    Args:
        row: row of the sample, see `sample_row`.
        cell: the cell, that of the flow's training crystals; None keeps the sample's.
    """
    base = {**row, "attempts": 1}
    if cell is None or row["status"] != "ok":
        return base
    try:
        crystal = crystal_in_cell(required_crystal(row, Path(row["source_name"])), cell)
    except RejectedError as rejected:
        failed = {"status": rejected.reason, "error": str(rejected)}
        return base | crystal_columns(None) | failed
    return base | crystal_columns(crystal) | {"formula": crystal.formula}


def sample_row(name: str, sample: UnparsedSample) -> dict[str, Any]:
    """Return the row of a sample with the id `name`: its crystal, or why it cannot be read."""
    named = {"id": name, "source_name": sample.name, **sample.known}
    try:
        crystal = sample()
    except Exception as error:  # parsers raise many types; one sample must not stop the job
        said = f"{type(error).__name__}: {error}"
        return {**named, "status": "unreadable", "error": said}
    return {**named, **crystal_columns(crystal), "formula": crystal.formula, "status": "ok"}
