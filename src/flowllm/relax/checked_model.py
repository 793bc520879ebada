"""The check around a potential: no crystal of a batch can break it for the others.

Before every evaluation each crystal's cell is looked at, and after it each number; what fails has a
reason and is left out.
"""

import torch
import torch_sim as ts
from torch_sim.models.interface import ModelInterface

from flowllm.relax.geometry import MIN_VOLUME, SEARCH_RADIUS, RelaxationFailure, cell_fault


class CheckedModel(ModelInterface):
    """A potential that no crystal of a batch can break for the others.

    Crystals that cannot be evaluated get zeros, and `failures` says why, by their place in the
    batch of the last call. States are in float64 whatever the potential computes in.
    """

    def __init__(self, model: ModelInterface) -> None:
        """Guard a potential."""
        super().__init__()
        self.model = model
        self._device, self._dtype = model.device, torch.float64
        self._compute_forces = self._compute_stress = True
        self._memory_scales_with = model.memory_scales_with
        self.failures: dict[int, RelaxationFailure] = {}

    def forward(self, state: ts.SimState) -> dict[str, torch.Tensor]:
        """Evaluate the crystals that can be; see `ModelInterface.forward`."""
        self.failures = geometry_failures(state)
        good = [place for place in range(state.n_systems) if place not in self.failures]
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
            good[place]: failure for place, failure in found.get("failures", {}).items()
        }
        systems = torch.tensor(good, device=self._device)
        output["energy"][systems] = found["energy"].to(self._dtype).reshape(-1)
        output["forces"][torch.isin(state.system_idx, systems)] = found["forces"].to(self._dtype)
        output["stress"][systems] = found["stress"].to(self._dtype).reshape(-1, 3, 3)
        self._drop_failed(state, output)
        return output

    def _drop_failed(self, state: ts.SimState, output: dict[str, torch.Tensor]) -> None:
        """Note the crystals with a NaN or an infinity, and zero what was found for all faulty."""
        bad = ~torch.isfinite(output["energy"]) | ~torch.isfinite(output["stress"]).all(dim=(1, 2))
        bad[state.system_idx[~torch.isfinite(output["forces"]).all(dim=1)]] = True
        for place in torch.where(bad)[0].tolist():
            failure = RelaxationFailure(
                "not_finite", "the potential gave a number that is not finite"
            )
            self.failures.setdefault(place, failure)
        failed = torch.tensor(sorted(self.failures), dtype=torch.long, device=self._device)
        output["energy"][failed] = 0.0
        output["stress"][failed] = 0.0
        output["forces"][torch.isin(state.system_idx, failed)] = 0.0


def _in_dtype(state: ts.SimState, dtype: torch.dtype) -> ts.SimState:
    """The atoms and cells of a state in another precision; torch-sim's `to` changes the given."""
    return ts.SimState(
        positions=state.positions.to(dtype),
        masses=state.masses.to(dtype),
        cell=state.cell.to(dtype),
        pbc=state.pbc,
        atomic_numbers=state.atomic_numbers,
        system_idx=state.system_idx,
    )


def geometry_failures(state: ts.SimState) -> dict[int, RelaxationFailure]:
    """Find the crystals whose cell no potential can be evaluated in, in time and memory.

    Returns:
        Faults by the crystal's place in the batch.
    """
    cells = state.row_vector_cell.detach()
    volumes = torch.linalg.det(cells)
    counts = torch.bincount(state.system_idx, minlength=state.n_systems)
    regular = torch.where((volumes > MIN_VOLUME)[:, None, None], cells, torch.eye(3).to(cells))
    # Distance between opposite faces of the cell: one over the length of the reciprocal vector.
    heights = 1 / torch.linalg.inv(regular).norm(dim=1)
    images = torch.prod(2 * torch.ceil(SEARCH_RADIUS / heights) + 1, dim=1)
    rows = zip(volumes.tolist(), counts.tolist(), images.tolist(), strict=True)
    found = {place: cell_fault(*row) for place, row in enumerate(rows)}
    return {place: failure for place, failure in found.items() if failure is not None}
