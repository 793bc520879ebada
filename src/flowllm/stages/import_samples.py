"""Import one shard of another model's samples into our tables, for evaluation like ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cyclopts.types import NonNegativeInt

from flowllm.config.sections.data import External
from flowllm.config.stage_settings import StageSettings
from flowllm.data.external import read_samples
from flowllm.data.sample_crystals import UnparsedSample
from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, write_table
from flowllm.runtime.provenance import stage_run


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
        base: Shard to write in the place of base crystals.
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
        found = list(read_samples(samples, row.column))
        total = len(found)
        if total < row.shards:
            raise FlowllmError(
                f"{samples}: {total} samples, fewer than {row.shards} shards; lower "
                "external_samples.shards"
            )
        mine = range(total * shard // row.shards, total * (shard + 1) // row.shards)
        rows = [_row(f"{row.name}-{index:06d}", found[index]) for index in mine]
        failed = sum(one["status"] != "ok" for one in rows)
        if failed == len(rows) and not _any_readable(found):
            raise FlowllmError(
                f"{samples}: none of its {total} samples can be read ({rows[0]['error']})"
            )
        run.count(rows_in=len(rows), rows_out=len(rows) - failed, rows_failed=failed)
        write_table(base, [one | {"attempts": 1} for one in rows], schemas.BASE, run.metadata())
        steps = [one | {"num_steps": 0} for one in rows]
        write_table(out, steps, schemas.IMPORTED, run.metadata())


def _any_readable(found: Sequence[UnparsedSample]) -> bool:
    """Return whether any sample of the file can be read, which shows that its format is known."""
    return any(_row("", sample)["status"] == "ok" for sample in found)


def _row(name: str, sample: UnparsedSample) -> dict[str, Any]:
    named = {"id": name, "source_name": sample.name}
    try:
        crystal = sample()
    except Exception as error:  # parsers raise many types; one sample must not stop the job
        said = f"{type(error).__name__}: {error}"
        return {**named, "status": "unreadable", "error": said}
    return {**named, **crystal_columns(crystal), "formula": crystal.formula, "status": "ok"}
