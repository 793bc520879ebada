"""A wrapper around a potential that isolates the crystals that cannot be evaluated.

The cells are checked before every evaluation and the results after it. A crystal that fails a check
is left out with a reason; the other crystals of the batch are not affected.
"""

import torch
import torch_sim as ts
from torch_sim.models.interface import ModelInterface

from flowllm.relax.constraints import Projection
from flowllm.relax.failures import MIN_VOLUME, SEARCH_RADIUS, RelaxationFailure, cell_failure


class CheckedModel(ModelInterface):
    """A potential that evaluates a batch even if some of its crystals cannot be evaluated.

    Crystals that cannot be evaluated get zeros. States are in float64 whatever the precision of the
    potential.

    Attributes:
        model: the potential.
        failures: failures of the last call, by the crystal's index in the batch.
        projection: projection of forces and stresses onto constraints, of the crystals of the next
            call; None without constraints.
    """

    def __init__(self, model: ModelInterface) -> None:
        """Wrap a potential."""
        super().__init__()
        self.model = model
        self._device, self._dtype = model.device, torch.float64
        self._compute_forces = self._compute_stress = True
        self._memory_scales_with = model.memory_scales_with
        self.failures: dict[int, RelaxationFailure] = {}
        self.projection: Projection | None = None

    def forward(self, state: ts.SimState) -> dict[str, torch.Tensor]:
        """Evaluate the crystals that pass the checks; see `ModelInterface.forward`."""
        self.failures = cell_failures(state)
        good = [index for index in range(state.n_systems) if index not in self.failures]
        output = {
            "energy": torch.zeros(state.n_systems, dtype=self._dtype, device=self._device),
            "forces": torch.zeros_like(state.positions),
            "stress": torch.zeros_like(state.cell),
        }
        if not good:
            return output
        given = state if len(good) == state.n_systems else state[good]
        found = self.model(_in_dtype(given, self.model.dtype))
        self.failures |= {
            good[index]: failure for index, failure in found.get("failures", {}).items()
        }
        systems = torch.tensor(good, device=self._device)
        output["energy"][systems] = found["energy"].to(self._dtype).reshape(-1)
        output["forces"][torch.isin(state.system_idx, systems)] = found["forces"].to(self._dtype)
        output["stress"][systems] = found["stress"].to(self._dtype).reshape(-1, 3, 3)
        self._drop_failed(state, output)
        if self.projection is not None:
            self.projection.apply(state, output, self.failures)
        return output

    def _drop_failed(self, state: ts.SimState, output: dict[str, torch.Tensor]) -> None:
        """Record the crystals with non-finite results, and zero the results of all failed ones."""
        bad = ~torch.isfinite(output["energy"]) | ~torch.isfinite(output["stress"]).all(dim=(1, 2))
        bad_atoms = ~torch.isfinite(output["forces"]).all(dim=1)
        num_bad = torch.zeros_like(output["energy"])
        bad |= num_bad.index_add_(0, state.system_idx, bad_atoms.to(num_bad)) > 0
        for index in torch.where(bad)[0].tolist():
            failure = RelaxationFailure(
                "not_finite", "the potential gave a non-finite energy, force or stress"
            )
            self.failures.setdefault(index, failure)
        if not self.failures:
            return
        failed = torch.tensor(sorted(self.failures), dtype=torch.long, device=self._device)
        output["energy"][failed] = 0.0
        output["stress"][failed] = 0.0
        output["forces"][torch.isin(state.system_idx, failed)] = 0.0


def _in_dtype(state: ts.SimState, dtype: torch.dtype) -> ts.SimState:
    """Copy the atoms and cells of a state in another precision.

    torch-sim's `to` is not used because it changes the given state.
    """
    return ts.SimState(
        positions=state.positions.to(dtype),
        masses=state.masses.to(dtype),
        cell=state.cell.to(dtype),
        pbc=state.pbc,
        atomic_numbers=state.atomic_numbers,
        system_idx=state.system_idx,
    )


def cell_failures(state: ts.SimState) -> dict[int, RelaxationFailure]:
    """Find the crystals of a batch whose cells no potential can handle.

    Returns:
        Failures by the crystal's index in the batch.
    """
    cells = state.row_vector_cell.detach()
    volumes = torch.linalg.det(cells)
    counts = torch.bincount(state.system_idx, minlength=state.n_systems)
    regular = torch.where((volumes > MIN_VOLUME)[:, None, None], cells, torch.eye(3).to(cells))
    # The distance between opposite faces is the inverse length of the reciprocal vector.
    heights = 1 / torch.linalg.inv(regular).norm(dim=1)
    images = torch.prod(2 * torch.ceil(SEARCH_RADIUS / heights) + 1, dim=1)
    numbers = torch.stack([volumes, counts.to(volumes), images]).T.tolist()
    found = {
        index: cell_failure(volume, int(count), num_images)
        for index, (volume, count, num_images) in enumerate(numbers)
    }
    return {index: failure for index, failure in found.items() if failure is not None}
