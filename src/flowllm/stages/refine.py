"""Refine base crystals: integrate the learned velocity field from each of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowllm import tables
from flowllm.config import Refine, Setting, StageSettings
from flowllm.crystal import Crystal
from flowllm.device import pick_device
from flowllm.errors import FlowllmError
from flowllm.rfm.integrate import INTEGRATORS, anneal, integrate
from flowllm.rfm.manifold import lattice_parameters
from flowllm.rfm.model import load_model
from flowllm.rfm.network import MAX_ATOMS, VelocityField
from flowllm.rfm.pairs import RejectedCrystalError, bring_angles_within, crystal_lattice
from flowllm.runlog import Progress, stage_run
from flowllm.tables import crystal_columns, crystal_of, read_table, write_table

Row = dict[str, Any]


def run(settings: StageSettings, *, base: Path, model: Path, out: Path) -> None:
    """Refine one shard of base crystals; every base row becomes one row.

    The order and content of the rows do not depend on how crystals are batched, but for the
    rounding of floating-point sums.

    Args:
        settings: section `refine` and the row `setting`.
        base: shard of `tables.BASE`.
        model: folder of the trained flow.
        out: shard of `tables.GENERATED` to write.
    """
    section: Refine = settings.refine
    setting: Setting = settings.setting
    with stage_run(settings, inputs={"base": base, "model": model}, output=out) as run:
        given = read_table(base, tables.BASE).to_pylist()
        if setting.num_steps == 0:
            rows = [_outcome(row, crystal_of(row), 0) for row in given]
        else:
            field = load_model(model, pick_device())
            rows = refine_rows(given, field, section, setting.num_steps)
        failed = sum(row["status"] != "ok" for row in rows)
        run.count(rows_in=len(rows), rows_out=len(rows) - failed, rows_failed=failed)
        write_table(out, rows, tables.GENERATED, run.metadata())


def refine_rows(
    given: Sequence[Mapping[str, Any]], field: VelocityField, section: Refine, num_steps: int
) -> list[Row]:
    """Refine the crystals of base rows; rows come back in the given order.

    Args:
        given: rows of `tables.BASE`; failed ones stay failed with their reason.
        field: the velocity field.
        section: batch size and annealing.
        num_steps: integration steps.
    """
    rows: list[Row | None] = [None] * len(given)
    starts: dict[int, Crystal] = {}
    for index, row in enumerate(given):
        crystal = crystal_of(row)
        try:
            if crystal is not None and crystal.num_atoms > MAX_ATOMS:
                raise RejectedCrystalError("too_many_atoms")
            if crystal is not None:
                starts[index] = bring_angles_within(crystal, field.bounds)
            else:
                rows[index] = _outcome(row, None, num_steps)
        except RejectedCrystalError as rejected:
            rows[index] = _failure(row, str(rejected), "the flow cannot start from it", num_steps)
    progress = Progress("refine: crystals", len(starts))
    for members in _batches_by_size(starts, section.batch_size):
        crystals = [starts[index] for index in members]
        for index, end in zip(
            members, refine_batch(crystals, field, section, num_steps), strict=True
        ):
            row = given[index]
            if isinstance(end, Crystal):
                rows[index] = _outcome(row, end, num_steps)
            else:
                rows[index] = _failure(row, "not_physical", end, num_steps)
        progress.advance(len(members))
    return [row for row in rows if row is not None]


def refine_batch(
    crystals: Sequence[Crystal], field: VelocityField, section: Refine, num_steps: int
) -> Iterator[Crystal | str]:
    """Integrate crystals of one number of atoms; each gives a crystal or what is wrong with it."""
    device = field.lattice_mean.device
    elements = torch.from_numpy(np.stack([c.atomic_numbers for c in crystals])).long().to(device)
    coords = torch.from_numpy(np.stack([c.frac_coords for c in crystals])).to(device)
    lattices = np.stack([crystal_lattice(c, field.bounds) for c in crystals])
    with torch.inference_mode():
        ends = integrate(
            anneal(
                lambda f, lattice, time: field(elements, f, lattice, time), section.anneal_slope
            ),
            coords,
            torch.from_numpy(lattices).to(device),
            num_steps,
            INTEGRATORS[section.integrator],
        )
        coords, (lengths, angles) = ends[0], lattice_parameters(ends[1], field.bounds)
    arrays = (x.cpu().numpy() for x in (coords, lengths, angles))
    for crystal, *end in zip(crystals, *arrays, strict=True):
        try:
            yield Crystal.from_arrays(crystal.atomic_numbers, *end)
        except FlowllmError as error:
            yield str(error)


def _batches_by_size(crystals: Mapping[int, Crystal], batch_size: int) -> Iterator[list[int]]:
    """Indices of crystals in batches of one number of atoms, small ones first."""
    sizes = sorted({crystal.num_atoms for crystal in crystals.values()})
    for size in sizes:
        members = [index for index, crystal in crystals.items() if crystal.num_atoms == size]
        yield from (members[i : i + batch_size] for i in range(0, len(members), batch_size))


def _outcome(row: Mapping[str, Any], crystal: Crystal | None, num_steps: int) -> Row:
    """A generated row: a crystal, or the base row's own failure."""
    kept = {name: row[name] for name in ("id", "formula", "status", "error")}
    return {**kept, **crystal_columns(crystal), "num_steps": num_steps}


def _failure(row: Mapping[str, Any], status: str, error: str, num_steps: int) -> Row:
    return {**_outcome(row, None, num_steps), "status": status, "error": error}
