"""Refine base crystals: integrate the learned velocity field from each of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowllm.config.sections.flow import Method, Refine
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.data.symmetry_operations import operations_of_row
from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, crystal_of, read_table, write_table
from flowllm.rfm.base_distribution import (
    BaseDistribution,
    LlmBaseDistribution,
    RejectedCrystalError,
    StartPoint,
    draw_start,
)
from flowllm.rfm.integrate import INTEGRATORS, anneal, integrate
from flowllm.rfm.manifold import AngleBounds, lattice_parameters
from flowllm.rfm.model import load_model
from flowllm.rfm.network import MAX_ATOMS, NetworkSize, VelocityField, bytes_per_crystal
from flowllm.rfm.symmetry import KnownSymmetry, Operations, SymmetricStart, symmetric_start
from flowllm.rfm.symmetry_projection import SymmetryProjection
from flowllm.runtime.device import pick_device
from flowllm.runtime.log import Progress
from flowllm.runtime.malloc import keep_freed_memory
from flowllm.runtime.provenance import stage_run
from flowllm.seeds import generator

Record = dict[str, Any]


@dataclass(frozen=True)
class RefinementInput:
    """A crystal to refine.

    Attributes:
        elements: atomic numbers (n,).
        start: where its integration starts.
        operations: the space group that its integration keeps, None where it keeps none.
        known: the space group that the text of the base crystal names, None where it names none.
    """

    elements: np.ndarray
    start: StartPoint
    operations: Operations | None = None
    known: KnownSymmetry | None = None


Snapshot = tuple[int, list[Crystal | str]]
"""Number of steps, and the crystal of each task after them or the reason why it has none."""


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    refine: Refine
    method: Method


def run(
    settings: Settings,
    *,
    base: Path,
    model: Path | None = None,
    out: Path,
    trajectories: Path | None = None,
) -> None:
    """Refine one shard of base crystals: integrate the learned velocity field from each of them.

    Every base row becomes one row. The order and content of the rows do not depend on the batches
    of the integration, except for the rounding of floating-point sums.

    Args:
        settings: section `refine` and the row `method`.
        base: Shard of base crystals.
        model: Folder of the method's flow, none where the method has no flow.
        out: Shard of generated crystals to write.
        trajectories: Shard of trajectories to write, if given.

    Raises:
        FlowllmError: the model is missing or is not a flow's.
    """
    section: Refine = settings.refine
    method: Method = settings.method
    inputs = {"base": base} if model is None else {"base": base, "model": model}
    with stage_run(settings, inputs=inputs, output=out) as run:
        given = read_table(base, schemas.BASE).to_pylist()
        flow = None
        if method.flow is not None:
            if model is None:
                raise FlowllmError(f"method {method.name}: needs --model, the folder of its flow")
            keep_freed_memory()
            flow = load_model(model, pick_device())
        every = None if trajectories is None else section.trajectory_every
        rows, frames, counts = generated_rows(given, flow, settings, every)
        failed = sum(row["status"] != "ok" for row in rows)
        run.count(rows_in=len(rows), rows_out=len(rows) - failed, rows_failed=failed, **counts)
        if trajectories is not None:
            write_table(trajectories, frames, schemas.TRAJECTORIES, run.metadata())
        write_table(out, rows, schemas.GENERATED, run.metadata())


def generated_rows(
    given: Sequence[Mapping[str, Any]],
    flow: tuple[VelocityField, BaseDistribution] | None,
    settings: Settings,
    every: int | None,
) -> tuple[list[Record], list[Record], Counter[str]]:
    """Refine the crystals of base rows; without a flow, keep them. See `refine_rows`."""
    if flow is None:
        return [_outcome(row, crystal_of(row), 0) for row in given], [], Counter()
    return refine_rows(given, *flow, settings, every)


def refine_rows(
    given: Sequence[Mapping[str, Any]],
    field: VelocityField,
    start: BaseDistribution,
    settings: Settings,
    every: int | None,
) -> tuple[list[Record], list[Record], Counter[str]]:
    """Refine the crystals of base rows; rows come back in the given order.

    Args:
        given: rows of `schemas.BASE`; failed ones keep their status and error.
        field: the velocity field.
        start: the base distribution that it was trained on.
        settings: of the stage.
        every: number of steps between two recorded snapshots, None for no snapshots.

    Returns:
        Rows of `schemas.GENERATED` and of `schemas.TRAJECTORIES`; how many starts were moved onto
        which kind of space group, with `keep_symmetry`.
    """
    section: Refine = settings.refine
    method: Method = settings.method
    num_steps = method.num_steps
    kept = section.keep_symmetry if method.keep_symmetry is None else method.keep_symmetry
    rows = [_outcome(row, None, num_steps) for row in given]
    frames: list[list[Record]] = [[] for _ in given]
    tasks: dict[int, RefinementInput] = {}
    counts: Counter[str] = Counter()
    for index, row in enumerate(given):
        crystal = crystal_of(row)
        rng = generator(settings.seed, "refine", "start", row["id"])
        try:
            if crystal is not None:
                task = refinement_input(crystal, field, start, rng)
                task = replace(task, known=known_symmetry(crystal, row, start))
                tasks[index] = symmetric_task(task, field.bounds, counts) if kept else task
        except RejectedCrystalError as rejected:
            rows[index] = _failure(row, str(rejected), "the flow cannot start from it", num_steps)
    progress = Progress("refine: crystals", len(tasks))
    for members in _batches_by_size(tasks, section.batch_memory_mb, field.network.size):
        path = refine_batch([tasks[i] for i in members], field, section, num_steps, every)
        for step, ends in path:
            for index, end in zip(members, ends, strict=True):
                frames[index].append(_snapshot(given[index], end, step, num_steps))
        for index, end in zip(members, path[-1][1], strict=True):
            if isinstance(end, Crystal):
                rows[index] = _outcome(given[index], end, num_steps)
            else:
                rows[index] = _failure(given[index], "not_physical", end, num_steps)
        progress.advance(len(members))
    return rows, [frame for path in frames for frame in path if every is not None], counts


def refinement_input(
    crystal: Crystal, field: VelocityField, start: BaseDistribution, rng: np.random.Generator
) -> RefinementInput:
    """Draw the starting point of the integration of a base crystal.

    Raises:
        RejectedCrystalError: the flow cannot start from it.
    """
    if crystal.num_atoms > MAX_ATOMS:
        raise RejectedCrystalError("too_many_atoms")
    return RefinementInput(crystal.atomic_numbers, draw_start(start, crystal, field.bounds, rng))


def known_symmetry(
    crystal: Crystal, row: Mapping[str, Any], start: BaseDistribution
) -> KnownSymmetry | None:
    """Return the space group that the text of a base crystal names, None where there is none.

    A simple base has the atoms of the crystal alone, and thus not its symmetry.
    """
    operations = operations_of_row(row)
    if operations is None or not isinstance(start, LlmBaseDistribution):
        return None
    return KnownSymmetry.of_crystal(crystal, operations)


def symmetric_task(
    task: RefinementInput, bounds: AngleBounds, counts: Counter[str]
) -> RefinementInput:
    """Move a task's start onto its space group, which its integration keeps.

    Args:
        task: a task without a space group.
        bounds: bounds of the angles' logit in degrees.
        counts: counter in which one of these is increased: `starts_symmetric`,
            `starts_without_symmetry` (only the identity), or `starts_undetermined` (no group was
            found, and the start is unchanged).

    Raises:
        RejectedCrystalError: the symmetric cell cannot be brought within the bounds.
    """
    found = symmetric_start(task.elements, task.start, bounds, task.known)
    counts[_kind_of(found)] += 1
    return RefinementInput(task.elements, found.point, found.operations)


def _kind_of(found: SymmetricStart) -> str:
    if not found.is_determined:
        return "starts_undetermined"
    return "starts_symmetric" if found.operations.order > 1 else "starts_without_symmetry"


def refine_batch(
    tasks: Sequence[RefinementInput],
    field: VelocityField,
    section: Refine,
    num_steps: int,
    every: int | None,
) -> list[Snapshot]:
    """Integrate tasks of one number of atoms over all steps.

    Returns:
        Snapshots after every `every` steps from 0 on, and, as the last one, after all steps.
    """
    device, bounds = field.lattice_mean.device, field.bounds
    elements = torch.from_numpy(np.stack([task.elements for task in tasks])).long().to(device)
    coords = np.stack([task.start.coords for task in tasks]).astype(np.float32)
    lattices = np.stack([task.start.lattice for task in tasks])
    frames: list[Snapshot] = []

    def record(step: int, coords: Tensor, lattice: Tensor) -> None:
        if step == num_steps or (every is not None and step % every == 0):
            parameters = lattice_parameters(lattice, bounds)
            frames.append((step, _crystals(tasks, coords, *parameters)))

    groups = [task.operations for task in tasks if task.operations is not None]
    kept = SymmetryProjection(groups, bounds, device) if groups else None

    def velocity(coords: Tensor, lattice: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        coords_velocity, lattice_velocity = field(elements, coords, lattice, time)
        if kept is not None:
            coords_velocity = kept.velocity(coords_velocity)
        return coords_velocity, lattice_velocity

    with torch.inference_mode():
        integrate(
            anneal(velocity, section.anneal_slope),
            torch.from_numpy(coords).to(device),
            torch.from_numpy(lattices).to(device),
            num_steps,
            INTEGRATORS[section.integrator],
            record,
            None if kept is None else kept.lattice,
        )
    return frames


def _crystals(tasks: Sequence[RefinementInput], *points: Tensor) -> list[Crystal | str]:
    """Return the crystals of coordinates, lengths and angles, or why there is none."""
    arrays = [point.cpu().numpy() for point in points]
    found: list[Crystal | str] = []
    for task, *arrays_of_one in zip(tasks, *arrays, strict=True):
        try:
            found.append(Crystal.from_arrays(task.elements, *arrays_of_one))
        except FlowllmError as error:
            found.append(str(error))
    return found


def _batches_by_size(
    tasks: Mapping[int, RefinementInput], memory_mb: int, size: NetworkSize
) -> Iterator[list[int]]:
    """Yield the indices of tasks in batches of one number of atoms, small numbers first.

    A batch has as many tasks as the memory allows, but at least one.
    """
    for num_atoms in sorted({len(task.elements) for task in tasks.values()}):
        members = [index for index, task in tasks.items() if len(task.elements) == num_atoms]
        room = max(memory_mb * 10**6 // bytes_per_crystal(size, num_atoms), 1)
        yield from (members[i : i + room] for i in range(0, len(members), room))


def _outcome(row: Mapping[str, Any], crystal: Crystal | None, num_steps: int) -> Record:
    """Return a generated row: a crystal, or the failure of the base row."""
    kept = {name: row[name] for name in ("id", "formula", "status", "error")}
    return {**kept, **crystal_columns(crystal), "num_steps": num_steps}


def _failure(row: Mapping[str, Any], status: str, error: str, num_steps: int) -> Record:
    return {**_outcome(row, None, num_steps), "status": status, "error": error}


def _snapshot(row: Mapping[str, Any], crystal: Crystal | str, step: int, num_steps: int) -> Record:
    """Return a row of a trajectory, with null columns if the snapshot is not a valid crystal."""
    columns = crystal_columns(crystal if isinstance(crystal, Crystal) else None)
    return {"id": row["id"], **columns, "step": step, "time": step / num_steps}
