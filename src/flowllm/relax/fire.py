"""A step of FIRE with the Frechet cell filter, for a whole batch at once.

The algorithm is ASE's, except that the share of the forces decays before it is used, as in
torch-sim. The states are those of torch-sim's `frechet_cell_fire`. Version 0.3 of torch-sim, the
last one for Python 3.11, computes the forces on the cells crystal by crystal, and its step reads
the values of dozens of tensors per crystal. On a GPU the program waits at each of them
(docs/performance.md has the counts). Here no operation depends on the number of crystals, and only
the matrix exponentials read values.
"""

import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface
from torch_sim.optimizers import FrechetCellFIREState

MAX_TIME_STEP = 1.0
"""Largest time step; this and the following are the defaults of ASE's FIRE."""

MIN_DOWNHILL = 5
"""Steps downhill after which the time step grows."""

GROWTH, DECAY = 1.1, 0.5
"""Factors of the time step downhill and uphill."""

MIXING, MIXING_DECAY = 0.1, 0.99
"""First share of the direction of the forces in the velocities, and its factor downhill."""

MAX_DISPLACEMENT = 0.2
"""Angstrom; the longest displacement of a crystal's atoms and cell together."""

_TINY = 1e-16
"""Added to norms that divide."""


def take_step(state: FrechetCellFIREState, model: ModelInterface) -> None:
    """Move the atoms and cells of a batch by one step, in place.

    Args:
        state: batch whose forces are those at its positions; velocities are finite.
        model: potential that gives the forces at the new positions.
    """
    systems = state.system_idx
    # As torch-sim's `deform_grad`, whose `solve` reads an error code.
    solved = torch.linalg.solve_ex(state.reference_row_vector_cell, state.row_vector_cell)
    deformation = solved.result.mT
    forces = torch.bmm(state.forces[:, None], deformation[systems])[:, 0]
    _accelerate(state, forces)
    atom_steps, cell_steps = _displacements(state)
    undeformed = torch.linalg.solve_ex(deformation[systems], state.positions[:, :, None]).result
    state.cell_positions = state.cell_positions + cell_steps
    log_deformation = state.cell_positions / state.cell_factor
    deformation = torch.matrix_exp(log_deformation)
    state.row_vector_cell = torch.bmm(state.reference_row_vector_cell, deformation.mT)
    moved = undeformed[:, :, 0] + atom_steps
    state.positions = torch.bmm(moved[:, None], deformation[systems].mT)[:, 0]
    found = model(state)
    state.forces, state.energy, state.stress = found["forces"], found["energy"], found["stress"]
    volumes = torch.linalg.det(state.cell)[:, None, None]
    inverse = torch.linalg.inv_ex(deformation.mT).inverse
    gradient = torch.bmm(-volumes * state.stress, inverse)
    state.cell_forces = exponential_gradient(log_deformation, gradient) / state.cell_factor


def exponential_gradient(exponent: Tensor, gradient: Tensor) -> Tensor:
    """Return the derivatives of the sum of G exp(L), element by element, with respect to L.

    They are the Frechet derivative of exp at the transpose of L in the direction G, which is a
    block of the exponential of a matrix of twice the size (Al-Mohy and Higham 2009).

    Args:
        exponent: L (B, 3, 3).
        gradient: G (B, 3, 3).
    """
    scale = gradient.abs().amax(dim=(1, 2), keepdim=True) + _TINY
    transposed = exponent.mT
    upper = torch.cat([transposed, gradient / scale], dim=2)
    lower = torch.cat([torch.zeros_like(transposed), transposed], dim=2)
    return torch.matrix_exp(torch.cat([upper, lower], dim=1))[:, :3, 3:] * scale


def _accelerate(state: FrechetCellFIREState, forces: Tensor) -> None:
    """Set the velocities, time steps and shares of the forces of the next displacement.

    Args:
        state: the batch.
        forces: forces on the atoms, in the undeformed cells (n_atoms, 3).
    """
    systems = state.system_idx
    power = _dot(state, (forces, state.velocities), (state.cell_forces, state.cell_velocities))
    downhill = power > 0
    long = downhill & (state.n_pos > MIN_DOWNHILL)
    grown = (state.dt * GROWTH).clamp(max=MAX_TIME_STEP)
    state.dt = torch.where(downhill, torch.where(long, grown, state.dt), state.dt * DECAY)
    mixing = torch.where(long, state.alpha * MIXING_DECAY, state.alpha)
    state.alpha = torch.where(downhill, mixing, MIXING)
    state.n_pos = torch.where(downhill, state.n_pos + 1, 0)
    of_velocities = _dot(state, (state.velocities,) * 2, (state.cell_velocities,) * 2).sqrt()
    of_forces = _dot(state, (forces,) * 2, (state.cell_forces,) * 2).sqrt()
    # Uphill the crystal stops, and starts again in the direction of the forces.
    kept = torch.where(downhill, 1 - state.alpha, 0.0)
    mixed = torch.where(downhill, state.alpha * (of_velocities / (of_forces + _TINY)), 0.0)
    toward = mixed + state.dt
    state.velocities = kept[systems, None] * state.velocities + toward[systems, None] * forces
    state.cell_velocities = (
        kept[:, None, None] * state.cell_velocities + toward[:, None, None] * state.cell_forces
    )


def _displacements(state: FrechetCellFIREState) -> tuple[Tensor, Tensor]:
    """Return the displacements of atoms (n_atoms, 3) and cells (n_systems, 3, 3)."""
    atoms = state.velocities * state.dt[state.system_idx, None]
    cells = state.cell_velocities * state.dt[:, None, None]
    length = _dot(state, (atoms, atoms), (cells, cells)).sqrt()
    factor = torch.where(length > MAX_DISPLACEMENT, MAX_DISPLACEMENT / (length + _TINY), 1.0)
    return atoms * factor[state.system_idx, None], cells * factor[:, None, None]


def _dot(
    state: FrechetCellFIREState, atoms: tuple[Tensor, Tensor], cells: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the scalar product over the atoms and the cell of each crystal (n_systems,)."""
    of_cells = (cells[0] * cells[1]).sum(dim=(1, 2))
    return of_cells.index_add(0, state.system_idx, (atoms[0] * atoms[1]).sum(dim=1))
