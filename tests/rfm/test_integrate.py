"""Integrators: they reach c1 along an exact field, and their errors have the expected order."""

import math

import pytest
import torch

from flow_pairs import BOUNDS
from flowllm.rfm.integrate import INTEGRATORS, anneal, integrate
from flowllm.rfm.manifold import lattice_parameters, target_velocity, torus_exp, torus_log

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}
DTYPE = torch.float64


def points(seed):
    """Return random points of 5 pairs of crystals with 4 atoms."""
    rng = torch.Generator().manual_seed(seed)
    coords = torch.rand(2, 5, 4, 3, generator=rng, dtype=DTYPE)
    lattice = torch.randn(2, 5, 6, generator=rng, dtype=DTYPE)
    return coords, lattice


@pytest.mark.parametrize("name", INTEGRATORS)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_constant_velocity_reaches_c1_exactly(name, num_steps):
    """The conditional path is straight: any method with any number of steps is exact."""
    (f0, f1), (l0, l1) = points(0)
    target = target_velocity(f0, f1, l0, l1)
    coords, lattice = integrate(lambda *_: target, f0, l0, num_steps, INTEGRATORS[name])
    shift = torus_log(f1, coords)
    assert ((coords >= 0) & (coords < 1)).all()
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-12, rtol=0)
    torch.testing.assert_close(lattice, l1, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", INTEGRATORS)
def test_error_falls_at_the_order_of_the_method(name):
    """For a field with a known flow, half the step size divides the error by 2^order.

    Coordinates: f' = a(t) g(f - c) with g(x) = sin(2 pi x) / 2 pi, whose flow is
    tan(pi x_t) = tan(pi x_0) exp(A(t)). Lattice: l' = -2 t l + t, whose flow leads to 1/2.
    """
    (f0, _), (l0, _) = points(1)
    center = 0.3

    def velocity(coords, lattice, time):
        rate = (1 + time.cos())[:, None, None]
        swirl = torch.sin(2 * math.pi * (coords - center)) / (2 * math.pi)
        return rate * swirl, (-2 * lattice + 1) * time[:, None]

    growth = math.exp(1 + math.sin(1))
    x0 = torus_log(torch.full_like(f0, center), f0)
    f1 = torus_exp(
        torch.full_like(f0, center), torch.atan(torch.tan(math.pi * x0) * growth) / math.pi
    )
    l1 = 0.5 + (l0 - 0.5) * math.exp(-1)
    errors = []
    for num_steps in (16, 32):
        coords, lattice = integrate(velocity, f0, l0, num_steps, INTEGRATORS[name])
        errors.append((torus_log(f1, coords).abs().max(), (lattice - l1).abs().max()))
    for coarse, fine in zip(*errors, strict=True):
        assert fine > 0
        assert math.log2(coarse / fine) == pytest.approx(ORDERS[name], abs=0.35)


@pytest.mark.parametrize("name", INTEGRATORS)
def test_lattice_moves_freely_and_its_angles_stay_within_the_bounds(name):
    """The velocity is constant along each path, so any method is exact."""
    (f0, _), (l0, _) = points(2)

    def velocity(coords, lattice, _):
        return torch.zeros_like(coords), 50 * lattice.sign()

    _, lattice = integrate(velocity, f0, l0, 10, INTEGRATORS[name])
    torch.testing.assert_close(lattice, l0 + 50 * l0.sign(), atol=1e-12, rtol=0)
    _, angles = lattice_parameters(lattice, BOUNDS)
    assert ((angles >= BOUNDS[0]) & (angles <= BOUNDS[1])).all()


def test_annealing_multiplies_the_way_of_coordinates_only():
    """Integral of 1 + slope t over [0, 1] is 1 + slope / 2; the midpoint rule is exact for it."""
    (f0, _), (l0, l1) = points(3)
    way = 0.05 * torch.ones_like(f0)
    field = anneal(lambda *_: (way, l1 - l0), slope=3.0)
    coords, lattice = integrate(field, f0, l0, 4, INTEGRATORS["midpoint"])
    torch.testing.assert_close(torus_log(f0, coords), 2.5 * way)
    torch.testing.assert_close(lattice, l1)


def test_tableaus_are_consistent():
    for integrator in INTEGRATORS.values():
        assert sum(integrator.weights) == pytest.approx(1)
        assert [len(row) for row in integrator.stages] == list(range(len(integrator.weights)))
