"""Relax generated crystals with the potential: one row per crystal, relaxed or with a reason."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.config.sections.energies import Potential, Prerelax
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import potential_label
from flowllm.io import schemas, tables
from flowllm.relax.models import LABELS, LoadedPotential, load_potential
from flowllm.relax.relaxer import Relaxation, relax
from flowllm.runtime.descent import check_descends_from
from flowllm.runtime.device import pick_device
from flowllm.runtime.log import Progress
from flowllm.runtime.malloc import keep_freed_memory
from flowllm.runtime.provenance import stage_run
from flowllm.runtime.resume import make_parts

Record = Mapping[str, Any]


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    prerelax: Prerelax
    potential: Potential


def run(settings: Settings, *, generated: Path, out: Path, selection: Sequence[Path] = ()) -> None:
    """Relax one shard of generated crystals with the potential.

    Crystals that failed in an earlier stage keep their status and error. A table of wall times is
    written beside the output.

    Args:
        settings: sections `prerelax` and `potential`.
        generated: Shard of generated crystals.
        out: Shard of relaxed crystals to write, one row per generated crystal.
        selection: Table of select; crystals that it excludes are rows with its status.

    Raises:
        FlowllmError: the shard is missing or has another schema, the selection is of other
            crystals, or the potential cannot be loaded.
    """
    section: Prerelax = settings.prerelax
    keep_freed_memory()
    rows = tables.read_table(generated, schemas.GENERATED).to_pylist()
    for path in selection:
        check_descends_from(path, [generated])
        rows = with_selection(rows, path)
    inputs: dict[str, Path | Sequence[Path]] = {"generated": generated}
    if selection:
        inputs["selection"] = selection
    with stage_run(settings, inputs=inputs, output=out) as run:
        progress = Progress("prerelax", len(rows))
        potential, label = (
            load_potential(settings.potential.name, pick_device()),
            energy_label(settings),
        )

        def make_rows(items: range) -> list[dict[str, Any]]:
            chunk = [rows[item] for item in items]
            return relax_rows(chunk, generated, label, potential, section, progress.advance)

        schema = schemas.RELAXED.append(schemas.TIMES.field("seconds"))
        table = make_parts(out, run, schema, len(rows), section.chunk_size, make_rows)
        for path, part in ((times_path(out), schemas.TIMES), (out, schemas.RELAXED)):
            tables.write_table(path, table.select(part.names), part, run.metadata())
        run.count(**_counts(table))


def with_selection(rows: Sequence[Record], selection: Path) -> list[Record]:
    """Return rows of generated crystals with the status and error of the table of select.

    Raises:
        FlowllmError: the table has no row for a crystal.
    """
    columns = ("id", "status", "error")
    table = tables.read_table(selection, schemas.SELECTED, columns).to_pylist()
    found = {row["id"]: row for row in table}
    if missing := [row["id"] for row in rows if row["id"] not in found]:
        raise FlowllmError(
            f"{selection}: no row for id {missing[0]} and {len(missing) - 1} more; "
            "it was made from other crystals; run select again"
        )
    return [{**row, **found[row["id"]]} for row in rows]


def times_path(out: Path) -> Path:
    """Return the path of the wall times of a relaxed shard."""
    return out.with_name(f"_{out.name}.times")


def energy_label(settings: Settings) -> str:
    """Return the name of the stage's energies, which states the potential and the criterion."""
    section: Prerelax = settings.prerelax
    return potential_label(
        LABELS[settings.potential.name],
        section.max_force,
        section.max_steps,
        keep_symmetry=section.keep_symmetry,
        fixed_cell=section.fixed_cell,
    )


def relax_rows(
    rows: Sequence[Record],
    path: Path,
    label: str,
    potential: LoadedPotential,
    section: Prerelax,
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Relax the crystals of some rows; rows without a crystal keep their status and error.

    Args:
        rows: rows of `schemas.GENERATED`.
        path: their file, for messages.
        label: name of the energies, see `energy_label`.
        potential: the potential.
        section: section `prerelax`.
        advance: called with a number of crystals that are done.

    Returns:
        Rows of `schemas.RELAXED` in the given order, each also with `seconds`, its wall time.
    """
    places = [place for place, row in enumerate(rows) if row["status"] == "ok"]
    advance(len(rows) - len(places))
    relaxed = relax(
        potential,
        [tables.required_crystal(rows[place], path) for place in places],
        max_force=section.max_force,
        max_steps=section.max_steps,
        max_seconds=section.max_seconds,
        keep_symmetry=section.keep_symmetry,
        fixed_cell=section.fixed_cell,
        advance=advance,
    )
    results: list[Relaxation | None] = [None] * len(rows)
    for place, result in zip(places, relaxed, strict=True):
        results[place] = result
    return [_row(row, result, label) for row, result in zip(rows, results, strict=True)]


def _row(row: Record, result: Relaxation | None, label: str) -> dict[str, Any]:
    """Return the row of one crystal."""
    if result is None:
        status, error = row["status"], row["error"]
        result = Relaxation()
    elif result.failure is not None:
        status, error = result.failure.reason, result.failure.detail
    else:
        status, error = "ok", None
    return {
        "id": row["id"],
        **tables.crystal_columns(result.crystal),
        "formula": row["formula"],
        "potential": label,
        "initial_energy_per_atom": result.initial_energy_per_atom,
        "final_energy_per_atom": result.final_energy_per_atom,
        "delta_energy_per_atom": result.delta_energy_per_atom,
        "delta_energy_per_cell": result.delta_energy_per_cell,
        "max_force": result.max_force,
        "num_steps": result.num_steps,
        "converged": result.converged,
        "seconds": result.seconds,
        "status": status,
        "error": error,
    }


def _counts(table: pa.Table) -> dict[str, Any]:
    """Return the counts of a shard for its record: rows, failures by reason, convergence."""
    statuses = table.column("status").to_pylist()
    reasons = {name: statuses.count(name) for name in sorted(set(statuses)) if name != "ok"}
    return {
        "rows_in": len(statuses),
        "rows_out": len(statuses),
        "rows_failed": sum(reasons.values()),
        "reasons": reasons,
        "not_converged": table.column("converged").to_pylist().count(False),
    }
