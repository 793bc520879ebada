"""Relaxation of a batch of crystals whatever they are: each ends relaxed, or with a reason.

torch-sim's FIRE with the Frechet cell filter moves the atoms and the cells of a batch; what has
finished makes room for what waits. What `checked_model` rejects is taken out with its reason while
the others go on.
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
from flowllm.relax.checked_model import CheckedModel
from flowllm.relax.geometry import RelaxationFailure
from flowllm.relax.models import LoadedPotential
from flowllm.runtime.log import log

CPU_BATCH_LOAD = 10_000.0
"""Load of a batch on the CPU, about 16 MP-20 crystals: an evaluation took 42 ms a crystal alone, 28
ms in batches of 16 and 35 ms in batches of 32, whose activations no cache holds (one thread, busy
machine). On a GPU torch-sim measures what fits."""

MIN_FINAL_DISTANCE = 0.5
"""Angstrom; a relaxed crystal with nearer atoms has left what the potential was fitted to, and its
energy means nothing (the same bound as structural validity's)."""

_DT_START = 0.1
"""FIRE's first time step, ASE's default."""


@dataclass(frozen=True)
class Relaxation:
    """What became of one crystal.

    Attributes:
        crystal: the relaxed crystal, None where it failed.
        failure: why it failed, None where it did not.
        initial_energy_per_atom: eV.
        final_energy_per_atom: eV.
        max_force: largest force on an atom at the end, eV/angstrom.
        num_steps: recorded energies as chgnet's relaxer counts them: optimiser steps plus 2, since
            it records the first state before them and the last state once more.
        converged: whether the forces on atoms and cell are below the threshold.
        seconds: wall time of its share of the batches it was in.
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
        """Initial less final energy, eV per atom; None for a crystal that failed."""
        if self.initial_energy_per_atom is None or self.final_energy_per_atom is None:
            return None
        return self.initial_energy_per_atom - self.final_energy_per_atom

    @property
    def delta_energy_per_cell(self) -> float | None:
        """The same for the whole cell, eV."""
        if self.delta_energy_per_atom is None or self.crystal is None:
            return None
        return self.delta_energy_per_atom * self.crystal.num_atoms


@dataclass(frozen=True)
class _Limits:
    """When a relaxation ends: eV/angstrom, optimiser steps, seconds."""

    max_force: float
    max_steps: int
    max_seconds: float


@dataclass(frozen=True)
class _Work:
    """What is to be relaxed, with what, and what has come of it by place among the crystals."""

    model: CheckedModel
    crystals: Sequence[Crystal]
    limits: _Limits
    advance: Callable[[int], None]
    results: dict[int, Relaxation]


@dataclass
class _Running:
    """A crystal in the batch."""

    index: int
    num_atoms: int
    load: float
    initial_energy: float
    steps: int = 0
    seconds: float = 0.0


def _nothing(_: int) -> None:
    """Nobody to tell of progress."""


def single_points(
    potential: LoadedPotential,
    crystals: Sequence[Crystal],
    advance: Callable[[int], None] = _nothing,
) -> list[Relaxation]:
    """Evaluate crystals as they are: `relax` without a step, the crystals come back as given."""
    infinite = float("inf")
    return relax(
        potential,
        crystals,
        max_force=infinite,
        max_steps=0,
        max_seconds=infinite,
        advance=advance,
    )


def relax(
    potential: LoadedPotential,
    crystals: Sequence[Crystal],
    *,
    max_force: float,
    max_steps: int,
    max_seconds: float,
    advance: Callable[[int], None] = _nothing,
) -> list[Relaxation]:
    """Relax cells and positions by FIRE.

    Args:
        potential: gives energies, forces and stresses.
        crystals: any crystals; one that cannot be relaxed is given back with its failure.
        max_force: eV/angstrom; the threshold on the forces on atoms and on the cell.
        max_steps: optimiser steps a crystal.
        max_seconds: wall time a crystal; of a batch's time it is charged its share of the atoms.
        advance: called with the number of crystals that have just finished.

    Returns:
        One `Relaxation` a crystal, in the given order. A crystal that is not converged after
        `max_steps` is no failure.
    """
    limits = _Limits(max_force, max_steps, max_seconds)
    work = _Work(CheckedModel(potential.model), crystals, limits, advance, results={})
    for index, crystal in enumerate(crystals):
        failure = _known_failure(potential, crystal)
        if failure is not None:
            work.results[index] = Relaxation(failure=failure)
    advance(len(work.results))
    _relax_or_halve(work, [index for index in range(len(crystals)) if index not in work.results])
    return [work.results[index] for index in range(len(crystals))]


def _known_failure(potential: LoadedPotential, crystal: Crystal) -> RelaxationFailure | None:
    """What can be said of a crystal before anything is computed."""
    unknown = sorted(set(crystal.atomic_numbers.tolist()) - potential.known_elements)
    if unknown:
        symbols = ", ".join(Element.from_Z(number).symbol for number in unknown)
        return RelaxationFailure("unknown_element", f"the potential was not fitted to {symbols}")
    return None


def _relax_or_halve(work: _Work, indices: list[int]) -> None:
    """Relax together; where that raises, relax the halves, down to the failing crystal."""
    if not indices:
        return
    try:
        _relax_together(work, indices)
    # Whatever one crystal makes the potential raise (out of memory, a library's assertion) must
    # not take the others with it; the reason becomes its row.
    except Exception as error:
        left = [index for index in indices if index not in work.results]
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        if len(left) == 1:
            work.results[left[0]] = Relaxation(failure=RelaxationFailure("failed", reason))
            work.advance(1)
            return
        log.warning("relaxation: %s; %d crystals are relaxed in halves", reason, len(left))
        middle = len(left) // 2
        _relax_or_halve(work, left[:middle])
        _relax_or_halve(work, left[middle:])


def _relax_together(work: _Work, indices: list[int]) -> None:
    """Relax the crystals of the given indices in one batch that is filled up as it empties."""
    model, crystals = work.model, work.crystals
    init, step = frechet_cell_fire(model, dt_start=_DT_START)
    queue = deque(indices)
    limit = _batch_limit(model, crystals[indices[0]])
    state: FrechetCellFIREState | None = None
    running: list[_Running] = []
    while queue or running:
        clock = time.perf_counter()
        taken = _take(queue, crystals, limit - sum(one.load for one in running), not running)
        if taken:
            fresh = _at_rest(init(_state_of([crystals[index] for index in taken], model)))
            failures = {len(running) + place: failure for place, failure in model.failures.items()}
            state = fresh if state is None else ts.concatenate_states([state, fresh])
            running += [
                _Running(index, crystals[index].num_atoms, _load(crystals[index]), float(energy))
                for index, energy in zip(taken, fresh.energy, strict=True)
            ]
        else:
            state = step(state)
            failures = model.failures
            for one in running:
                one.steps += 1
        elapsed = time.perf_counter() - clock
        for one in running:
            one.seconds += elapsed * one.num_atoms / state.n_atoms
        finished = _finished(work, state, running, failures)
        if finished:
            for place, result in finished.items():
                work.results[running[place].index] = result
            kept = [place for place in range(len(running)) if place not in finished]
            running = [running[place] for place in kept]
            state = state[kept] if kept else None
            work.advance(len(finished))


def _batch_limit(model: CheckedModel, example: Crystal) -> float:
    """Largest load of a batch: fixed on the CPU, what torch-sim finds to fit on a GPU."""
    if model.device.type == "cpu":
        return CPU_BATCH_LOAD
    copies = determine_max_batch_size(_state_of([example], model), model)
    return 0.8 * copies * _load(example)  # cells shrink on the way and neighbours become more


def _load(crystal: Crystal) -> float:
    """What a crystal takes in memory and time: atoms times atoms per nm^3, so its neighbours."""
    return 1000 * crystal.num_atoms**2 / max(_volume(crystal), 1e-9)


def _volume(crystal: Crystal) -> float:
    """Volume of the cell in cubic angstrom."""
    return float(crystal.to_structure().lattice.volume)


def _take(queue: deque[int], crystals: Sequence[Crystal], room: float, alone: bool) -> list[int]:
    """Take crystals off the queue while there is room; if `alone`, the first whatever its load."""
    taken: list[int] = []
    while queue:
        load = _load(crystals[queue[0]])
        if load > room and not (alone and not taken):
            break
        room -= load
        taken.append(queue.popleft())
    return taken


def _state_of(crystals: Sequence[Crystal], model: ModelInterface) -> ts.SimState:
    """The crystals as one torch-sim state."""
    structures = [crystal.to_structure() for crystal in crystals]
    return ts.initialize_state(structures, model.device, model.dtype)


def _at_rest(state: FrechetCellFIREState) -> FrechetCellFIREState:
    """Start with zero velocities instead of torch-sim's NaN.

    A NaN makes its step treat the whole batch as new, which would let a crystal that joins disturb
    those under way. Zero velocities halve the first time step, so it is doubled: ASE's course.
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
    """Results of the crystals that have come to an end, by their place in the batch."""
    atom_forces = state.forces.norm(dim=1)
    max_forces = torch.zeros(state.n_systems).to(atom_forces)
    max_forces = max_forces.scatter_reduce(0, state.system_idx, atom_forces, "amax").tolist()
    cell_forces = state.cell_forces.norm(dim=2).amax(dim=1).tolist()
    limits, finished = work.limits, {}
    for place, one in enumerate(running):
        converged = max(max_forces[place], cell_forces[place]) < limits.max_force
        if place in failures:
            finished[place] = Relaxation(failure=failures[place], seconds=one.seconds)
        elif converged or one.steps >= limits.max_steps:
            finished[place] = _result(work, state, place, one, max_forces[place], converged)
        elif one.seconds > limits.max_seconds:
            detail = f"stopped after {one.steps} steps at max_seconds {limits.max_seconds:g}"
            finished[place] = Relaxation(
                failure=RelaxationFailure("too_slow", detail), seconds=one.seconds
            )
    return finished


def _result(
    work: _Work,
    state: FrechetCellFIREState,
    place: int,
    one: _Running,
    max_force: float,
    converged: bool,
) -> Relaxation:
    """Take a crystal out of the batch: its record, or the failure of what it has become."""
    crystal = work.crystals[one.index]
    if one.steps:
        try:
            crystal = _crystal_of(state, place)
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
        final_energy_per_atom=float(state.energy[place]) / one.num_atoms,
        max_force=max_force,
        num_steps=one.steps + 2,
        converged=converged,
        seconds=one.seconds,
    )


def _crystal_of(state: FrechetCellFIREState, place: int) -> Crystal:
    """One crystal of a batch as our record."""
    atoms = state.system_idx == place
    cell = state.row_vector_cell[place].cpu().numpy()
    lengths = np.linalg.norm(cell, axis=1)
    cosines = np.clip((cell @ cell.T) / np.outer(lengths, lengths), -1, 1)
    angles = np.degrees(np.arccos(cosines[[1, 0, 0], [2, 2, 1]]))
    frac_coords = np.linalg.solve(cell.T, state.positions[atoms].cpu().numpy().T).T
    return Crystal.from_arrays(
        state.atomic_numbers[atoms].cpu().numpy(), frac_coords, lengths, angles
    )


def _nearest_distance(crystal: Crystal) -> float:
    """Smallest distance between two atoms, images included, in angstrom."""
    structure = crystal.to_structure()
    nearest = min(structure.lattice.abc)
    if crystal.num_atoms > 1:
        distances = structure.distance_matrix[np.triu_indices(crystal.num_atoms, k=1)]
        nearest = min(nearest, float(distances.min()))
    return nearest
