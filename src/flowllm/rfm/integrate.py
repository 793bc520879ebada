"""Integration of the learned velocity field from t = 0 to t = 1."""

from collections.abc import Callable

from torch import Tensor

from flowllm.rfm.manifold import torus_exp

Velocity = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From coordinates (B, n, 3), lattices (B, 6) and times (B,) to their velocities."""


def integrate_euler(
    velocity: Velocity, coords: Tensor, lattice: Tensor, num_steps: int, anneal_slope: float
) -> tuple[Tensor, Tensor]:
    """Follow the velocity with Euler steps of equal length, on torus and lattice space.

    Args:
        velocity: the field.
        coords: f0 (B, n, 3).
        lattice: l0 (B, 6).
        num_steps: number of steps.
        anneal_slope: the coordinates' velocity is multiplied by 1 + slope * t (anti-annealing).

    Returns:
        Coordinates in [0, 1) and lattices at t = 1.
    """
    step = 1.0 / num_steps
    for index in range(num_steps):
        time = index * step
        moments = coords.new_full((len(coords),), time)
        coords_velocity, lattice_velocity = velocity(coords, lattice, moments)
        coords = torus_exp(coords, step * (1 + anneal_slope * time) * coords_velocity)
        lattice = lattice + step * lattice_velocity
    return coords, lattice
