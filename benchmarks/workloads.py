"""Random crystals and flow networks that several benchmarks use."""

import torch

from flowllm.rfm.loader import PairBatch
from flowllm.rfm.model import build_field
from flowllm.rfm.network import NetworkSize, Standardization, VelocityField

BOUNDS = (59.9, 120.1)
"""Degrees, bounds of the angles."""

FULL_SIZE = NetworkSize(hidden_dim=512, num_layers=6, time_dim=256, num_frequencies=128)
"""The network of the paper, 14.2 million parameters."""

SMALL_SIZE = NetworkSize(hidden_dim=128, num_layers=3, time_dim=32, num_frequencies=32)
"""A network whose steps take milliseconds on a CPU."""


def random_field(size: NetworkSize) -> VelocityField:
    """Return a velocity field with random weights and the statistics of typical crystals."""
    scales = Standardization([6.0] * 3 + [0.0] * 3, [2.0] * 6, 0.05, [0.0] * 6, [0.1] * 6)
    return build_field(size, BOUNDS, scales)


def random_pairs(count: int, num_atoms: int, device: torch.device) -> PairBatch:
    """Return random pairs of crystals in cells of 5 angstrom to 7 angstrom."""
    start, end = torch.rand(2, count, num_atoms, 3)
    lattices = torch.cat([5 + 2 * torch.rand(2, count, 3), torch.zeros(2, count, 3)], dim=-1)
    elements = torch.randint(1, 90, (count, num_atoms))
    return PairBatch(elements, start, end, *lattices).to(device)
