"""Batched relaxation of arbitrary crystals: each ends relaxed, or failed with a reason.

FIRE with the Frechet cell filter (`fire`) moves the atoms and the cells of a batch. Waiting
crystals replace those that have finished. A crystal that `checked_model` rejects leaves the batch
with its reason, and the others continue.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch_sim as ts
from pymatgen.core.periodic_table import Element
from torch_sim.autobatching import determine_max_batch_size
from torch_sim.models.interface import ModelInterface
from torch_sim.optimizers import FrechetCellFIREState, frechet_cell_fire

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.relax.batch_copy import BatchCopy
from flowllm.relax.checked_model import CheckedModel
from flowllm.relax.constraints import Projection, Symmetry, symmetrized
from flowllm.relax.failures import RelaxationFailure
from flowllm.relax.fire import take_step
from flowllm.relax.models import LoadedPotential
from flowllm.runtime.log import log

CPU_BATCH_LOAD = 10_000.0
"""Load of a batch on the CPU (see `_load`), about 16 MP-20 crystals. An evaluation took 42 ms per
crystal alone, 28 ms in batches of 16, and 35 ms in batches of 32, whose activations exceed the
caches (one thread, busy machine). On a GPU torch-sim measures the batch size that fits."""

MIN_FINAL_DISTANCE = 0.5
"""Angstrom; a relaxed crystal with nearer atoms is outside the potential's training data, so its
energy is meaningless (the same bound as that of structural validity)."""

_DT_START = 0.1
"""First time step of FIRE, the default of ASE."""


@dataclass(frozen=True)
class Relaxation:
    """Result of the relaxation of one crystal.

    Attributes:
        crystal: the relaxed crystal, None if it failed.
        failure: the reason of the failure, None if there was none.
        initial_energy_per_atom: eV.
        final_energy_per_atom: eV.
        max_force: largest force on an atom at the end, eV/angstrom.
        num_steps: number of energies that chgnet's relaxer records, which is the number of
            optimizer steps plus 2: it also records the first state, and the last state twice.
        converged: whether the forces on atoms and cell are below the threshold.
        seconds: the crystal's share of the wall time of its batches.
    """

    crystal: Crystal | None = None
    failure: RelaxationFailure | None = None
    initial_energy_per_atom: float | None = None
    final_energy_per_atom: float | None = None
    max_force: float | None = None
    num_steps: int | None = None
    converged: bool | None = None
    seconds: float = 0.0

    @property
    def delta_energy_per_atom(self) -> float | None:
        """Initial minus final energy, eV per atom; None for a crystal that failed."""
        if self.initial_energy_per_atom is None or self.final_energy_per_atom is None:
            return None
        return self.initial_energy_per_atom - self.final_energy_per_atom

    @property
    def delta_energy_per_cell(self) -> float | None:
        """Initial minus final energy, eV per cell; None for a crystal that failed."""
        if self.delta_energy_per_atom is None or self.crystal is None:
            return None
        return self.delta_energy_per_atom * self.crystal.num_atoms


@dataclass(frozen=True)
class _Limits:
    """Limits that end a relaxation: eV/angstrom, optimizer steps, seconds."""

    max_force: float
    max_steps: int
    max_seconds: float


@dataclass(frozen=True)
class _Work:
    """A list of crystals to relax, and the results so far by the crystal's index in the list.

    `symmetries` are those of the crystals, None where they are not kept.
    """

    model: CheckedModel
    crystals: Sequence[Crystal]
    symmetries: Sequence[Symmetry] | None
    fixed_cell: bool
    limits: _Limits
    advance: Callable[[int], None]
    results: dict[int, Relaxation]


@dataclass
class _Running:
    """State of one crystal in the batch.

    Attributes:
        index: index in the list of crystals.
        num_atoms: number of atoms.
        load: see `_load`.
        initial_energy: eV per cell.
        steps: optimizer steps so far.
        seconds: share of the wall time so far.
    """

    index: int
    num_atoms: int
    load: float
    initial_energy: float
    steps: int = 0
    seconds: float = 0.0


def _ignore_progress(_: int) -> None:
    """Do nothing."""


def relax(
    potential: LoadedPotential,
    crystals: Sequence[Crystal],
    *,
    max_force: float,
    max_steps: int,
    max_seconds: float,
    keep_symmetry: bool = False,
    fixed_cell: bool = False,
    advance: Callable[[int], None] = _ignore_progress,
) -> list[Relaxation]:
    """Relax cells and positions by FIRE.

    Args:
        potential: source of energies, forces and stresses.
        crystals: any crystals; the result of one that cannot be relaxed has a failure.
        max_force: eV/angstrom, threshold on the forces on atoms and on the cell, projected onto the
            constraints; with a fixed cell on the atoms alone.
        max_steps: optimizer steps per crystal.
        max_seconds: wall time per crystal, whose share of a batch's time is its share of the atoms.
        keep_symmetry: whether each crystal is moved to its exact symmetry and keeps its space
            group; the initial energy is that of the symmetric crystal.
        fixed_cell: whether only the atoms move.
        advance: called with the number of crystals that have just finished.

    Returns:
        One `Relaxation` per crystal, in the given order. A crystal that is not converged after
        `max_steps` has no failure.
    """
    limits = _Limits(max_force, max_steps, max_seconds)
    symmetries = None
    if keep_symmetry:
        pairs = [symmetrized(crystal) for crystal in crystals]
        crystals, symmetries = [one for one, _ in pairs], [found for _, found in pairs]
    model = CheckedModel(potential.model)
    work = _Work(model, crystals, symmetries, fixed_cell, limits, advance, results={})
    for index, crystal in enumerate(crystals):
        failure = _known_failure(potential, crystal)
        if failure is not None:
            work.results[index] = Relaxation(failure=failure)
    advance(len(work.results))
    _relax_or_halve(work, [index for index in range(len(crystals)) if index not in work.results])
    return [work.results[index] for index in range(len(crystals))]


def _known_failure(potential: LoadedPotential, crystal: Crystal) -> RelaxationFailure | None:
    """Return the failure that is known before any evaluation, or None."""
    unknown = sorted(set(crystal.atomic_numbers.tolist()) - potential.known_elements)
    if unknown:
        symbols = ", ".join(Element.from_Z(number).symbol for number in unknown)
        return RelaxationFailure("unknown_element", f"the potential was not fitted to {symbols}")
    return None


def _relax_or_halve(work: _Work, indices: list[int]) -> None:
    """Relax crystals together; on an exception relax the halves, down to the failing crystal."""
    if not indices:
        return
    try:
        _relax_together(work, indices)
    # One crystal can make the potential raise any exception (out of memory, an assertion in a
    # library). The other crystals must still be relaxed; the failing one gets the reason.
    except Exception as error:
        left = [index for index in indices if index not in work.results]
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        if len(left) == 1:
            work.results[left[0]] = Relaxation(failure=RelaxationFailure("failed", reason))
            work.advance(1)
            return
        log.warning("relaxation: %s; relaxing the %d crystals in two halves", reason, len(left))
        middle = len(left) // 2
        _relax_or_halve(work, left[:middle])
        _relax_or_halve(work, left[middle:])


def _relax_together(work: _Work, indices: list[int]) -> None:
    """Relax the crystals of the given indices in one batch; waiting ones replace finished ones."""
    model, crystals = work.model, work.crystals
    model.projection = None  # torch-sim measures the batch size with other crystals
    init, _ = frechet_cell_fire(model, dt_start=_DT_START)
    queue = deque(indices)
    limit = _batch_limit(model, crystals[indices[0]])
    state: FrechetCellFIREState | None = None
    running: list[_Running] = []
    projection: Projection | None = None
    while queue or running:
        clock = time.perf_counter()
        taken = _take(queue, crystals, limit - sum(one.load for one in running), not running)
        if taken:
            model.projection = _projection(work, taken)
            fresh = _at_rest(init(_state_of([crystals[index] for index in taken], model)))
            failures = {len(running) + new: failure for new, failure in model.failures.items()}
            state = fresh if state is None else ts.concatenate_states([state, fresh])
            running += [
                _Running(index, crystals[index].num_atoms, _load(crystals[index]), energy)
                for index, energy in zip(taken, fresh.energy.tolist(), strict=True)
            ]
        else:
            model.projection = projection
            take_step(state, model)
            failures = model.failures
            for one in running:
                one.steps += 1
        elapsed = time.perf_counter() - clock
        assert state is not None
        for one in running:
            one.seconds += elapsed * one.num_atoms / state.n_atoms
        finished = _finished(work, state, running, failures)
        if finished:
            for system, result in finished.items():
                work.results[running[system].index] = result
            kept = [system for system in range(len(running)) if system not in finished]
            running = [running[system] for system in kept]
            state = state[kept] if kept else None
            work.advance(len(finished))
        if taken or finished:
            projection = _projection(work, [one.index for one in running])


def _projection(work: _Work, indices: Sequence[int]) -> Projection | None:
    """Return the projection of the crystals of the given indices, None without constraints."""
    symmetries = work.symmetries
    if not indices or (symmetries is None and not work.fixed_cell):
        return None
    kept = None if symmetries is None else [symmetries[index] for index in indices]
    return Projection(kept, fixed_cell=work.fixed_cell, device=work.model.device)


def _batch_limit(model: CheckedModel, example: Crystal) -> float:
    """Return the largest load of a batch: fixed on the CPU, measured by torch-sim on a GPU."""
    if model.device.type == "cpu":
        return CPU_BATCH_LOAD
    copies: int = determine_max_batch_size(_state_of([example], model), model)
    return 0.8 * copies * _load(example)  # a margin: cells shrink and gain neighbors


def _load(crystal: Crystal) -> float:
    """Return a measure of memory and time: atoms times atoms per nm^3, so the neighbor pairs."""
    return 1000 * crystal.num_atoms**2 / max(_volume(crystal), 1e-9)


def _volume(crystal: Crystal) -> float:
    """Return the volume of the cell in cubic angstrom."""
    return float(crystal.to_structure().lattice.volume)


def _take(queue: deque[int], crystals: Sequence[Crystal], room: float, alone: bool) -> list[int]:
    """Take crystals off the queue while their load fits; if `alone`, take the first in any case."""
    taken: list[int] = []
    while queue:
        load = _load(crystals[queue[0]])
        if load > room and not (alone and not taken):
            break
        room -= load
        taken.append(queue.popleft())
    return taken


def _state_of(crystals: Sequence[Crystal], model: ModelInterface) -> ts.SimState:
    """Make one torch-sim state of the crystals."""
    structures = [crystal.to_structure() for crystal in crystals]
    return ts.initialize_state(structures, model.device, model.dtype)


def _at_rest(state: FrechetCellFIREState) -> FrechetCellFIREState:
    """Replace torch-sim's NaN velocities of a new state by zeros.

    Zero velocities halve the first time step, which is therefore doubled to follow ASE's FIRE.
    """
    state.velocities = torch.zeros_like(state.velocities)
    state.cell_velocities = torch.zeros_like(state.cell_velocities)
    state.dt = torch.full_like(state.dt, 2 * _DT_START)
    return state


def _finished(
    work: _Work,
    state: FrechetCellFIREState,
    running: list[_Running],
    failures: Mapping[int, RelaxationFailure],
) -> dict[int, Relaxation]:
    """Return the results of the crystals that have finished, by their index in the batch."""
    atom_forces = state.forces.norm(dim=1)
    zeros = atom_forces.new_zeros(len(running))
    of_atoms = zeros.scatter_reduce(0, state.system_idx, atom_forces, "amax")
    of_cells = state.cell_forces.norm(dim=2).amax(dim=1)
    max_forces, cell_forces = torch.stack([of_atoms, of_cells]).tolist()
    limits = work.limits
    copy: BatchCopy | None = None
    finished: dict[int, Relaxation] = {}
    for system, one in enumerate(running):
        converged = max(max_forces[system], cell_forces[system]) < limits.max_force
        if system in failures:
            finished[system] = Relaxation(failure=failures[system], seconds=one.seconds)
        elif converged or one.steps >= limits.max_steps:
            copy = copy or BatchCopy.of(state)
            finished[system] = _result(work, copy, system, one, max_forces[system], converged)
        elif one.seconds > limits.max_seconds:
            detail = f"stopped after {one.steps} steps at max_seconds {limits.max_seconds:g}"
            finished[system] = Relaxation(
                failure=RelaxationFailure("too_slow", detail), seconds=one.seconds
            )
    return finished


def _result(
    work: _Work,
    copy: BatchCopy,
    system: int,
    one: _Running,
    max_force: float,
    converged: bool,
) -> Relaxation:
    """Return the relaxed crystal with its energies, or the failure of its final state."""
    crystal = work.crystals[one.index]
    if one.steps:
        try:
            crystal = copy.crystal(system)
        except FlowllmError as error:
            return Relaxation(
                failure=RelaxationFailure("no_volume", str(error)), seconds=one.seconds
            )
    nearest = _nearest_distance(crystal)
    if nearest < MIN_FINAL_DISTANCE:
        detail = f"atoms are {nearest:.2f} angstrom apart, limit {MIN_FINAL_DISTANCE:g}"
        return Relaxation(
            failure=RelaxationFailure("overlapping_atoms", detail), seconds=one.seconds
        )
    return Relaxation(
        crystal=crystal,
        initial_energy_per_atom=one.initial_energy / one.num_atoms,
        final_energy_per_atom=float(copy.energies[system]) / one.num_atoms,
        max_force=max_force,
        num_steps=one.steps + 2,
        converged=converged,
        seconds=one.seconds,
    )


def _nearest_distance(crystal: Crystal) -> float:
    """Return the smallest distance between two atoms, periodic images included, in angstrom."""
    structure = crystal.to_structure()
    nearest = min(structure.lattice.abc)
    if crystal.num_atoms > 1:
        distances = structure.distance_matrix[np.triu_indices(crystal.num_atoms, k=1)]
        nearest = min(nearest, float(distances.min()))
    return nearest
