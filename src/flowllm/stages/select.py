"""Find the generated crystals that are not relaxed: known ones, and repetitions of a draft."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cyclopts.types import PositiveInt

from flowllm.config.sections.energies import Select
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.evaluate.parallel import ordered_map
from flowllm.evaluate.per_crystal import crystals_by_composition
from flowllm.evaluate.screening import Drafts, Excluded, exclude
from flowllm.evaluate.validity import Composition, reduced_composition
from flowllm.io import schemas, tables
from flowllm.io.shards import Shards
from flowllm.runtime.descent import GENERATED_KEY
from flowllm.runtime.provenance import digest, stage_run

_REASONS = {
    "known": "matches the known crystal {} as generated",
    "repeated": "matches the earlier draft {} as generated",
}


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    select: Select


def run(
    settings: Settings,
    *,
    generated: Shards,
    crystals: Sequence[Path],
    out: Path,
    workers: PositiveInt = 1,
) -> None:
    """Find the generated crystals of a method that are not relaxed.

    Args:
        settings: section `select`.
        generated: Shards of generated crystals: files, or FOLDER=COUNT. Repeat the option for each.
        crystals: Tables of known crystals: train.parquet, and that of metrics.known_crystals.
            Repeat the option for each.
        out: Table to write, one row per generated crystal, sorted by id.
        workers: Number of worker processes; the result does not depend on it.

    Raises:
        FlowllmError: a shard or a table of known crystals is missing or has another schema.
    """
    with stage_run(
        settings, inputs={"generated": generated, "crystals": crystals}, output=out
    ) as run:
        rows = tables.read_tables(generated, schemas.GENERATED).to_pylist()
        samples: dict[Composition, dict[str, Crystal]] = {}
        for row in rows:
            if row["status"] == "ok":
                crystal = tables.required_crystal(row, generated[0].parent)
                composition = reduced_composition(crystal.atomic_numbers)
                samples.setdefault(composition, {})[row["id"]] = crystal
        known = [crystals_by_composition(path, samples) for path in crystals]
        # Largest bucket first, so that no worker starts a large one at the end.
        order = sorted(samples, key=lambda one: (-len(samples[one]), one))
        found = ordered_map(
            partial(exclude, skip=settings.select.skip),
            [Drafts(samples[one], [table.get(one, {}) for table in known]) for one in order],
            workers=workers,
            what="select, compositions",
        )
        excluded = {name: one for part in found for name, one in part.items()}
        table = [_row(row, excluded.get(row["id"])) for row in rows]
        table.sort(key=lambda row: row["id"])
        digests = {GENERATED_KEY: sorted(digest(path) for path in generated)}
        tables.write_table(out, table, schemas.SELECTED, run.metadata() | digests)
        statuses = [one.status for one in excluded.values()]
        run.count(
            rows_in=len(rows),
            rows_out=len(rows),
            rows_failed=0,
            not_relaxed={name: statuses.count(name) for name in sorted(set(statuses))},
        )


def _row(row: dict[str, Any], excluded: Excluded | None) -> dict[str, Any]:
    """Return the row of one generated crystal; a failed one keeps its status and error."""
    kept = {name: row[name] for name in ("id", "formula", "status", "error")}
    if excluded is None:
        return kept
    reason = f"{_REASONS[excluded.status].format(excluded.matched)}; not relaxed (select.skip)"
    return kept | {"status": excluded.status, "error": reason, "matched_id": excluded.matched}
