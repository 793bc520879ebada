"""Constraints of a relaxation: the crystal's symmetry, and its cell.

A constraint is a projection of the forces and stresses of a batch. FIRE starts at rest and moves
atoms and cell only along linear combinations of them, so that projected forces keep the constraint,
and the convergence criterion sees the projected forces. The projections of the symmetry are those
of ASE's FixSymmetry.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch_sim as ts
from ase.spacegroup.symmetrize import get_symmetrized_atoms, prep_symmetry
from pymatgen.io.ase import AseAtomsAdaptor

from flowllm.crystal import Crystal
from flowllm.relax.failures import RelaxationFailure, crystal_failure

TOLERANCES = (0.1, 0.01, 0.001)
"""Angstrom, tried in this order. Generated crystals are near symmetric ones, not at them: 0.1 is
the Materials Project's tolerance. A smaller one is used where the group that spglib finds at the
larger one is not the group of the symmetrized crystal."""

_EXACT = 1e-3
"""Angstrom; a symmetrized crystal has its group within this, float32 coordinates included."""


@dataclass(frozen=True)
class Symmetry:
    """Symmetry operations of one crystal.

    Attributes:
        rotations: float64 (num_operations, 3, 3), in fractional coordinates.
        images: int64 (num_operations, num_atoms), the atom that each atom is mapped to.
    """

    rotations: np.ndarray
    images: np.ndarray


def symmetrized(crystal: Crystal) -> tuple[Crystal, Symmetry]:
    """Return a crystal moved to its exact symmetry, and its symmetry operations.

    A crystal whose group cannot be found is returned as it is, with the identity alone.
    """
    identity = Symmetry(np.eye(3)[None], np.arange(crystal.num_atoms)[None])
    if crystal_failure(crystal) is not None:
        return crystal, identity
    for tolerance in TOLERANCES:
        try:
            atoms = AseAtomsAdaptor.get_atoms(crystal.to_structure(), msonable=False)
            refined, _ = get_symmetrized_atoms(atoms, tolerance, _EXACT)
            exact = Crystal.from_structure(AseAtomsAdaptor.get_structure(refined))
            again = AseAtomsAdaptor.get_atoms(exact.to_structure(), msonable=False)
            rotations, _, images = prep_symmetry(again, _EXACT)
        # spglib and ASE raise many types where they find no group, or another one at each step.
        except Exception:  # noqa: S112
            continue
        return exact, Symmetry(np.array(rotations, dtype=np.float64), np.array(images))
    return crystal, identity


class Projection:
    """Projection of the forces and stresses of one batch."""

    def __init__(
        self, symmetries: Sequence[Symmetry] | None, *, fixed_cell: bool, device: torch.device
    ) -> None:
        """Prepare the projection.

        Args:
            symmetries: operations of each crystal in the order of the batch; None: the symmetry is
                not kept.
            fixed_cell: whether the stresses are set to zero.
            device: device of the batch.
        """
        self.fixed_cell = fixed_cell
        self._device = device
        self._has_symmetry = symmetries is not None
        if symmetries is not None:
            self._join(symmetries)

    def _join(self, symmetries: Sequence[Symmetry]) -> None:
        """Number the operations and atoms consecutively through the batch."""
        sources, targets, operations, systems, weights = [], [], [], [], []
        first_atom = first_operation = 0
        for system, symmetry in enumerate(symmetries):
            count, num_atoms = symmetry.images.shape
            targets.append((symmetry.images + first_atom).ravel())
            sources.append(np.tile(np.arange(num_atoms) + first_atom, count))
            operations.append(np.repeat(np.arange(count) + first_operation, num_atoms))
            systems.append(np.full(count, system))
            weights.append(np.full(count, 1 / count))
            first_atom += num_atoms
            first_operation += count
        self._rotations = self._tensor(np.concatenate([one.rotations for one in symmetries]))
        self._sources = self._tensor(np.concatenate(sources))
        self._targets = self._tensor(np.concatenate(targets))
        self._operations = self._tensor(np.concatenate(operations))
        self._systems = self._tensor(np.concatenate(systems))
        self._weights = self._tensor(np.concatenate(weights))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)

    def apply(
        self,
        state: ts.SimState,
        output: dict[str, torch.Tensor],
        failures: Mapping[int, RelaxationFailure],
    ) -> None:
        """Project the forces and stresses of `output` in place.

        Args:
            state: the batch.
            output: `forces` (n_atoms, 3) and `stress` (n_systems, 3, 3).
            failures: failures by index in the batch; their cells may have no volume.
        """
        if self._has_symmetry:
            cells = state.row_vector_cell.clone()
            if failures:
                cells[list(failures)] = torch.eye(3).to(cells)
            inverse = torch.linalg.inv_ex(cells).inverse  # `inv` would wait for the device
            output["forces"] = self._forces(output["forces"], cells, inverse, state.system_idx)
            output["stress"] = self._stress(output["stress"], cells, inverse)
        if self.fixed_cell:
            output["stress"] = torch.zeros_like(output["stress"])

    def _forces(
        self,
        forces: torch.Tensor,
        cells: torch.Tensor,
        inverse: torch.Tensor,
        system_idx: torch.Tensor,
    ) -> torch.Tensor:
        """Average each force over the operations, as a vector at the atom it is mapped to."""
        fractional = (forces[:, None] @ inverse[system_idx])[:, 0]
        rotations = self._rotations[self._operations]
        mapped = (rotations @ fractional[self._sources][:, :, None])[:, :, 0]
        mapped = mapped * self._weights[self._operations][:, None]
        averaged = torch.zeros_like(fractional).index_add_(0, self._targets, mapped)
        back: torch.Tensor = (averaged[:, None] @ cells[system_idx])[:, 0]
        return back

    def _stress(
        self, stress: torch.Tensor, cells: torch.Tensor, inverse: torch.Tensor
    ) -> torch.Tensor:
        """Average each stress over the operations of its crystal, as a tensor of rank 2."""
        scaled = (cells @ stress @ cells.mT)[self._systems]
        mapped = self._rotations.mT @ scaled @ self._rotations * self._weights[:, None, None]
        averaged = torch.zeros_like(stress).index_add_(0, self._systems, mapped)
        back: torch.Tensor = inverse @ averaged @ inverse.mT
        return back
