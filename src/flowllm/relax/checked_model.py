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
        num_systems = len(state.cell)
        good = [index for index in range(num_systems) if index not in self.failures]
        if not good:
            return {
                "energy": state.cell.new_zeros(num_systems, dtype=self._dtype),
                "forces": torch.zeros_like(state.positions),
                "stress": torch.zeros_like(state.cell),
            }
        given = state if len(good) == num_systems else state[good]
        if given.positions.dtype != self.model.dtype:
            given = _in_dtype(given, self.model.dtype)
        found = self.model(given)
        self.failures |= {
            good[index]: failure for index, failure in found.get("failures", {}).items()
        }
        output = {
            "energy": found["energy"].to(self._dtype).reshape(-1),
            "forces": found["forces"].to(self._dtype),
            "stress": found["stress"].to(self._dtype).reshape(-1, 3, 3),
        }
        if len(good) < num_systems:
            output = self._spread(output, state, good)
        output = self._without_failed(output, state)
        if self.projection is not None:
            self.projection.apply(state, output, self.failures)
        return output

    def _spread(
        self, output: dict[str, torch.Tensor], state: ts.SimState, good: list[int]
    ) -> dict[str, torch.Tensor]:
        """Return the results of the whole batch, zeros for those that were not evaluated."""
        systems = torch.tensor(good, device=self._device)
        rows = {"energy": systems, "stress": systems}
        rows["forces"] = torch.isin(state.system_idx, systems).nonzero()[:, 0]
        counts = {"energy": len(state.cell), "stress": len(state.cell)}
        counts["forces"] = len(state.positions)
        return {
            name: value.new_zeros(counts[name], *value.shape[1:]).index_copy(0, rows[name], value)
            for name, value in output.items()
        }

    def _without_failed(
        self, output: dict[str, torch.Tensor], state: ts.SimState
    ) -> dict[str, torch.Tensor]:
        """Record the crystals with non-finite results, and return zeros for all failed ones."""
        finite = {
            name: torch.isfinite(value).flatten(1).all(dim=1)
            for name, value in output.items()
            if name != "energy"
        }
        bad = ~torch.isfinite(output["energy"]) | ~finite["stress"]
        bad_atoms = (~finite["forces"]).to(self._dtype)
        bad |= torch.zeros_like(output["energy"]).index_add_(0, state.system_idx, bad_atoms) > 0
        for index, is_bad in enumerate(bad.tolist()):
            if is_bad:
                failure = RelaxationFailure(
                    "not_finite", "the potential gave a non-finite energy, force or stress"
                )
                self.failures.setdefault(index, failure)
        if not self.failures:
            return output
        failed = torch.tensor([index in self.failures for index in range(len(bad))])
        failed = failed.to(self._device)
        return {
            "energy": output["energy"].masked_fill(failed, 0.0),
            "forces": output["forces"].masked_fill(failed[state.system_idx, None], 0.0),
            "stress": output["stress"].masked_fill(failed[:, None, None], 0.0),
        }


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
    ones = volumes.new_ones(len(state.system_idx))
    counts = torch.zeros_like(volumes).index_add_(0, state.system_idx, ones)
    unit = torch.eye(3, dtype=cells.dtype, device=cells.device)
    regular = torch.where((volumes > MIN_VOLUME)[:, None, None], cells, unit)
    # The distance between opposite faces is the inverse length of the reciprocal vector.
    heights = 1 / torch.linalg.inv_ex(regular).inverse.norm(dim=1)
    images = torch.prod(2 * torch.ceil(SEARCH_RADIUS / heights) + 1, dim=1)
    numbers = torch.stack([volumes, counts, images]).T.tolist()
    found = {
        index: cell_failure(volume, int(count), num_images)
        for index, (volume, count, num_images) in enumerate(numbers)
    }
    return {index: failure for index, failure in found.items() if failure is not None}
