"""The training loss, equation 8, and the statistics that standardize the network."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from flowllm.rfm.loader import PairBatch, PreparedPairs, size_groups
from flowllm.rfm.manifold import geodesic, target_velocity
from flowllm.rfm.network import Standardization

MIN_STD = 1e-3
"""Lower bound of standard deviations, for components that have one value in all pairs."""

_GROUP_ROWS = 4096
"""Pairs that the statistics read at once."""


class FlowLoss(nn.Module):
    """Both squared errors of equation 8, summed over the crystals of a batch.

    It is a module, so that a distributed strategy sees one forward pass per step.
    """

    def __init__(self, field: nn.Module) -> None:
        super().__init__()
        self.field = field

    def forward(self, batches: list[PairBatch], times: list[Tensor]) -> Tensor:
        """Return the sums over all crystals of |v_f - u_f|^2 / 3n and |v_l - u_l|^2 / 6, (2,).

        Velocities and targets are in their own units (fractions of the cell, angstrom, logit of the
        angles). The network's standardized output is scaled back first, as equation 8 is printed.

        Args:
            batches: groups of pairs, each with one number of atoms.
            times: t (B,) of each group.
        """
        if not batches:
            # A process without pairs returns zeros that depend on all parameters, because DDP needs
            # gradients from every process.
            total = torch.stack([p.sum() for p in self.field.parameters()]).sum()
            return total * total.new_zeros(2)
        parts = [squared_errors(self.field, *x) for x in zip(batches, times, strict=True)]
        return torch.stack([torch.stack(part).sum(-1) for part in parts]).sum(0)


class ConstantField(nn.Module):
    """The best constant field: atoms do not move, all lattices have the mean velocity.

    Its validation loss is the baseline for that of a trained field.
    """

    lattice_velocity: Tensor

    def __init__(self, standardization: Standardization) -> None:
        super().__init__()
        mean = torch.tensor(standardization.lattice_velocity_mean)
        self.register_buffer("lattice_velocity", mean)

    def forward(
        self, elements: Tensor, coords: Tensor, lattice: Tensor, time: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return velocities (B, n, 3) and (B, 6); for the arguments see `VelocityField`."""
        del elements, time
        return torch.zeros_like(coords), self.lattice_velocity.expand_as(lattice)


def squared_errors(field: nn.Module, batch: PairBatch, time: Tensor) -> tuple[Tensor, Tensor]:
    """Return |v_f - u_f|^2 / 3n and |v_l - u_l|^2 / 6 of each crystal, each (B,)."""
    start = batch.start_coords, batch.start_lattice
    target = target_velocity(start[0], batch.end_coords, start[1], batch.end_lattice)
    coords, lattice = geodesic(*start, target, time)
    found = field(batch.elements, coords, lattice, time)
    # The subtraction converts a field's bfloat16 output to the precision of the pairs.
    coords_error = (found[0] - target[0]).square().mean(dim=(-2, -1))
    return coords_error, (found[1] - target[1]).square().mean(dim=-1)


def standardization_of(pairs: PreparedPairs, rng: np.random.Generator) -> Standardization:
    """Compute means and standard deviations over one draw of all pairs, in one pass and float64.

    The lattice input is l_t = (1 - t) l0 + t l1 with t uniform, so its first two moments are
    (E l0 + E l1) / 2 and (E l0^2 + E l0 l1 + E l1^2) / 3. The target velocity of coordinates has
    zero mean by construction.
    """
    lattice_sums = np.zeros((4, 6))
    coords_sum, num_components = 0.0, 0
    for group in size_groups(pairs.num_atoms, _GROUP_ROWS):
        batch = pairs.draw(group, rng)
        l0, l1 = batch.start_lattice.double(), batch.end_lattice.double()
        coords, lattice = target_velocity(
            batch.start_coords.double(), batch.end_coords.double(), l0, l1
        )
        moments = [(l0 + l1) / 2, (l0**2 + l0 * l1 + l1**2) / 3, lattice, lattice**2]
        lattice_sums += torch.stack(moments).sum(1).numpy()
        coords_sum += float(coords.square().sum())
        num_components += coords.numel()
    mean, square, velocity_mean, velocity_square = lattice_sums / len(pairs)
    return Standardization(
        lattice_mean=mean.tolist(),
        lattice_std=_deviation(square, mean).tolist(),
        coords_velocity_std=max(math.sqrt(coords_sum / num_components), MIN_STD),
        lattice_velocity_mean=velocity_mean.tolist(),
        lattice_velocity_std=_deviation(velocity_square, velocity_mean).tolist(),
    )


def _deviation(square: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return standard deviations from first and second moments, at least `MIN_STD`."""
    deviation: np.ndarray = np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), MIN_STD)
    return deviation
