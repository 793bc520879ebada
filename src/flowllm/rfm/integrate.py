"""Integration of the learned velocity field from t = 0 to t = 1."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from flowllm.rfm.manifold import torus_exp

Point = tuple[Tensor, Tensor]
"""Coordinates (B, n, 3) and lattices (B, 6), of points or tangents."""

Velocity = Callable[[Tensor, Tensor, Tensor], Point]
"""Velocity field: from coordinates, lattices and times (B,) to tangents."""


@dataclass(frozen=True)
class Integrator:
    """An explicit Runge-Kutta method, given by its Butcher tableau.

    Attributes:
        stages: one row per stage, the coefficients of the earlier stages' velocities; the sum of a
            row is the stage's fraction of the step.
        weights: weights of the stages' velocities in the step.
    """

    stages: Sequence[Sequence[float]]
    weights: Sequence[float]


INTEGRATORS = {
    "euler": Integrator(stages=[[]], weights=[1.0]),
    "midpoint": Integrator(stages=[[], [1 / 2]], weights=[0.0, 1.0]),
    "heun": Integrator(stages=[[], [1.0]], weights=[1 / 2, 1 / 2]),
    "rk4": Integrator(
        stages=[[], [1 / 2], [0.0, 1 / 2], [0.0, 0.0, 1.0]], weights=[1 / 6, 1 / 3, 1 / 3, 1 / 6]
    ),
}
"""Integrators by their names in the configuration; their orders are 1, 2, 2 and 4."""


def anneal(velocity: Velocity, slope: float) -> Velocity:
    """Multiply the velocity of the coordinates by 1 + slope * t (anti-annealing, FlowMM)."""

    def annealed(coords: Tensor, lattice: Tensor, time: Tensor) -> Point:
        coords_velocity, lattice_velocity = velocity(coords, lattice, time)
        return (1 + slope * time)[:, None, None] * coords_velocity, lattice_velocity

    return annealed


def integrate(
    velocity: Velocity,
    coords: Tensor,
    lattice: Tensor,
    num_steps: int,
    integrator: Integrator,
    record: Callable[[int, Tensor, Tensor], None] | None = None,
    constrain: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Point:
    """Integrate a velocity field from t = 0 to t = 1 in steps of equal length.

    On the flat torus and in lattice space a step is the exponential map of the weighted velocity.

    Args:
        velocity: the field.
        coords: f0 (B, n, 3).
        lattice: l0 (B, 6).
        num_steps: number of steps; each evaluates the field once per stage.
        integrator: the Runge-Kutta method.
        record: called with the number of finished steps and the point, first with 0 steps.
        constrain: maps the lattices before and after a step to the lattices to continue from.

    Returns:
        Coordinates in [0, 1) and lattices at t = 1.
    """
    step = 1.0 / num_steps
    for index in range(num_steps):
        if record is not None:
            record(index, coords, lattice)
        tangents: list[Point] = []
        for coefficients in integrator.stages:
            point = _move((coords, lattice), tangents, coefficients, step)
            time = (index + sum(coefficients)) * step
            tangents.append(velocity(*point, coords.new_full((len(coords),), time)))
        coords, moved = _move((coords, lattice), tangents, integrator.weights, step)
        lattice = moved if constrain is None else constrain(lattice, moved)
    if record is not None:
        record(num_steps, coords, lattice)
    return coords, lattice


def _move(point: Point, tangents: Sequence[Point], weights: Sequence[float], step: float) -> Point:
    """Return the point that the step along the weighted tangents reaches."""
    coords, lattice = point
    for (coords_velocity, lattice_velocity), weight in zip(tangents, weights, strict=True):
        if weight:
            coords = coords + step * weight * coords_velocity
            lattice = lattice + step * weight * lattice_velocity
    return torus_exp(coords, coords.new_zeros(())), lattice
