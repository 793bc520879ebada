"""From drafts to judged crystals in one process, by the functions of the pipeline's stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.commands.generate_run import ChainSettings, FinishedRun
from flowllm.evaluate.hull import HullFile, read_hull
from flowllm.evaluate.samples import join_rows, without_implausible
from flowllm.io import schemas
from flowllm.io.tables import crystal_of
from flowllm.relax.models import load_potential
from flowllm.relax.second_potential import SecondPotential
from flowllm.rfm.model import load_model
from flowllm.runtime.device import pick_device
from flowllm.runtime.log import Progress
from flowllm.runtime.malloc import keep_freed_memory
from flowllm.stages.metrics import judge
from flowllm.stages.prerelax import energy_label, relax_rows
from flowllm.stages.refine import generated_rows
from flowllm.stages.second_energies import second_rows
from flowllm.stages.stability import (
    check_same_energies,
    check_same_judge,
    stability_rows,
    with_energy,
)

Row = dict[str, Any]

UNUSED_PATH = Path("generated crystals")
"""Name of the generated crystals in messages; they are in no file."""


@dataclass(frozen=True)
class Followed:
    """What became of one draft, as rows of the stages' tables.

    Attributes:
        draft: row of `schemas.BASE`.
        generated: row of `schemas.GENERATED`.
        relaxed: row of `schemas.RELAXED`.
        stability: row of `schemas.STABILITY`.
        judged: row of `schemas.METRICS_PER_CRYSTAL` without coverage.
    """

    draft: Row
    generated: Row
    relaxed: Row
    stability: Row
    judged: Row


def open_hull(run: FinishedRun) -> HullFile:
    """Read the run's hull, and refuse one that is not of the run's potential and criterion.

    Raises:
        FlowllmError: the hull cannot be read, or its energies cannot be compared.
    """
    reference = read_hull(run.hull, "potential", run.second_hull)
    label = energy_label(run.chain_settings().prerelax)
    check_same_energies({label}, reference.sources, run.hull)
    return reference


def follow(drafts: Sequence[Row], run: FinishedRun, hull: HullFile) -> list[Followed]:
    """Refine, relax, place and judge drafts; the results are in the order of the drafts.

    Args:
        drafts: rows of `schemas.REQUESTED_BASE`, or of `schemas.BASE`.
        run: the run, whose flow and training crystals are used.
        hull: its hull, see `open_hull`.

    Raises:
        FlowllmError: the flow or a table of known crystals cannot be read.
    """
    keep_freed_memory()
    settings = run.chain_settings()
    rows = as_read(drafts, schemas.REQUESTED_BASE)
    flow = None if run.flow is None else load_model(run.flow, pick_device())
    generated, _, _ = generated_rows(rows, flow, settings.refine, None)
    generated = as_read(generated, schemas.GENERATED)
    relaxed = as_read(_relaxed(generated, settings), schemas.RELAXED)
    with_energies = _with_second([with_energy(row) for row in relaxed], settings)
    check_same_judge(with_energies, hull)
    placed = stability_rows(with_energies, hull, settings.stability.stability)
    relaxed = [dict(without_implausible(*two)) for two in zip(relaxed, placed, strict=True)]
    samples = [
        join_rows(*four, None, dict(four[0]["asked"] or ()) or None)
        for four in zip(rows, generated, relaxed, placed, strict=True)
    ]
    judged, _ = judge(samples, run.splits, settings.metrics.metrics, workers=1)
    return [Followed(*five) for five in zip(rows, generated, relaxed, placed, judged, strict=True)]


def _relaxed(rows: Sequence[Row], settings: ChainSettings) -> list[Row]:
    section = settings.prerelax.prerelax
    label = energy_label(settings.prerelax)
    potential = load_potential(settings.prerelax.potential.name, pick_device())
    progress = Progress("relaxation, crystals", len(rows))
    relaxed: list[Row] = []
    for start in range(0, len(rows), section.chunk_size):
        chunk = rows[start : start + section.chunk_size]
        relaxed += relax_rows(chunk, UNUSED_PATH, label, potential, section, progress.advance)
    return relaxed


def _with_second(rows: Sequence[Row], settings: ChainSettings) -> list[Row]:
    """Return relaxed rows with their energies by the second potential, if there is one."""
    name = settings.second.potential.check
    if name is None:
        return list(rows)
    crystals = [(row["id"], crystal_of(row)) for row in rows]
    found = second_rows(crystals, SecondPotential(name, pick_device()))
    return [{**second, **row} for second, row in zip(found, rows, strict=True)]


def as_read(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> list[Row]:
    """Return rows as they would be read from a table of this schema: missing columns are null."""
    found: list[Row] = pa.Table.from_pylist(list(rows), schema=schema).to_pylist()
    return found
