"""The crystals of a batch in main memory, copied from the device in two transfers."""

from dataclasses import dataclass

import numpy as np
import torch
import torch_sim as ts

from flowllm.crystal import Crystal


@dataclass(frozen=True)
class BatchCopy:
    """Positions, cells and energies of a batch.

    Attributes:
        positions: angstrom (n_atoms, 3).
        cells: angstrom (n_systems, 3, 3), rows are the lattice vectors.
        energies: eV per cell (n_systems,).
        systems: index of the crystal of each atom (n_atoms,).
        atomic_numbers: (n_atoms,).
    """

    positions: np.ndarray
    cells: np.ndarray
    energies: np.ndarray
    systems: np.ndarray
    atomic_numbers: np.ndarray

    @classmethod
    def of(cls, state: ts.SimState) -> "BatchCopy":
        """Copy a state that has energies."""
        floats = [state.positions.ravel(), state.row_vector_cell.ravel(), state.energy]
        ends = np.cumsum([part.numel() for part in floats])[:-1]
        positions, cells, energies = np.split(torch.cat(floats).cpu().numpy(), ends)
        whole = torch.stack([state.system_idx, state.atomic_numbers]).cpu().numpy()
        return cls(positions.reshape(-1, 3), cells.reshape(-1, 3, 3), energies, *whole)

    def crystal(self, system: int) -> Crystal:
        """Return one crystal.

        Raises:
            FlowllmError: its cell has no volume.
        """
        atoms = self.systems == system
        cell = self.cells[system]
        lengths = np.linalg.norm(cell, axis=1)
        cosines = np.clip((cell @ cell.T) / np.outer(lengths, lengths), -1, 1)
        angles = np.degrees(np.arccos(cosines[[1, 0, 0], [2, 2, 1]]))
        frac_coords = np.linalg.solve(cell.T, self.positions[atoms].T).T
        return Crystal.from_arrays(self.atomic_numbers[atoms], frac_coords, lengths, angles)
