"""The manifolds against their definitions: inverses, shortest displacements, time derivatives."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pymatgen.core import Lattice

from flowllm.rfm.manifold import (
    angles_to_line,
    geodesic,
    gram_matrix,
    lattice_parameters,
    lattice_vector,
    line_to_angles,
    remove_mean,
    target_velocity,
    torus_exp,
    torus_log,
)

BOUNDS = (59.9, 120.1)
unit = st.floats(0, 1, exclude_max=True)
points = arrays(np.float64, (4, 3), elements=unit)


def on_circle(x):
    """Map a torus point to points of circles in the plane, where 0 and 1 coincide."""
    angle = 2 * math.pi * torch.as_tensor(x)
    return torch.stack([angle.cos(), angle.sin()])


@settings(deadline=None)
@given(points, points)
def test_exp_undoes_log(start, end):
    start, end = torch.tensor(start), torch.tensor(end)
    reached = torus_exp(start, torus_log(start, end))
    assert ((reached >= 0) & (reached < 1)).all()
    torch.testing.assert_close(on_circle(reached), on_circle(end), atol=1e-12, rtol=0)


@settings(deadline=None)
@given(points, arrays(np.float64, (4, 3), elements=st.floats(-0.499, 0.499)))
def test_log_undoes_exp(start, tangent):
    start, tangent = torch.tensor(start), torch.tensor(tangent)
    torch.testing.assert_close(
        torus_log(start, torus_exp(start, tangent)), tangent, atol=1e-12, rtol=0
    )


@settings(deadline=None)
@given(points, points)
def test_log_is_the_shortest_of_all_ways(start, end):
    """Return the displacements to the point itself and to its images in the neighboring cells."""
    images = (end - start)[..., None] + np.arange(-2, 3)
    shortest = np.abs(images).min(-1)
    way = torus_log(torch.tensor(start), torch.tensor(end)).numpy()
    np.testing.assert_allclose(np.abs(way), shortest, atol=1e-12)


@pytest.mark.parametrize("number_type", [torch.float32, torch.float64])
def test_crossing_the_boundary(number_type):
    start = torch.tensor([[0.95, 0.02, 0.5]], dtype=number_type)
    end = torch.tensor([[0.05, 0.98, 0.5]], dtype=number_type)
    way = torus_log(start, end)
    torch.testing.assert_close(way, torch.tensor([[0.1, -0.04, 0.0]], dtype=number_type))
    half = torus_exp(start, way / 2)
    torch.testing.assert_close(on_circle(half)[..., 0], on_circle(half * 0)[..., 0])


def test_exp_stays_below_one():
    """The largest float below zero wraps to 0, not to 1."""
    tiny = torch.tensor([-1e-12], dtype=torch.float32)
    assert torus_exp(torch.zeros(1), tiny).item() == 0.0


def test_angles_at_60_90_and_120():
    """Expected values: logit(0.1 / 60.2), 0, logit(60.1 / 60.2)."""
    edge = math.log(0.1 / 60.1)
    angles = torch.tensor([60.0, 90.0, 120.0], dtype=torch.float64)
    line = angles_to_line(angles, BOUNDS)
    torch.testing.assert_close(
        line, torch.tensor([edge, 0.0, -edge], dtype=torch.float64), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(line_to_angles(line, BOUNDS), angles)
    single = line_to_angles(angles_to_line(angles.float(), BOUNDS), BOUNDS)
    torch.testing.assert_close(single, angles.float(), atol=2e-4, rtol=0)


@settings(deadline=None)
@given(st.lists(st.floats(59.95, 120.05), min_size=3, max_size=3), st.floats(1, 30))
def test_lattice_vector_round_trip(angles, length):
    lengths = torch.tensor([length, 2 * length, 3.0], dtype=torch.float64)
    angles = torch.tensor(angles, dtype=torch.float64)
    found = lattice_parameters(lattice_vector(lengths, angles, BOUNDS), BOUNDS)
    torch.testing.assert_close(found[0], lengths)
    torch.testing.assert_close(found[1], angles)


@settings(deadline=None)
@given(st.lists(st.floats(61, 100), min_size=3, max_size=3))
def test_gram_matrix_against_pymatgen(angles):
    vectors = Lattice.from_parameters(3.0, 4.5, 6.0, *angles).matrix
    gram = gram_matrix(
        torch.tensor([3.0, 4.5, 6.0]).double(), torch.tensor(angles, dtype=torch.float64)
    )
    np.testing.assert_allclose(gram.numpy(), vectors @ vectors.T, atol=1e-9)


def test_target_is_equation_8_atom_by_atom():
    """u = -(log_f1(f0) - mean over atoms), computed with math.atan2."""
    rng = np.random.default_rng(0)
    start, end = rng.random((5, 3)), rng.random((5, 3))
    way = np.zeros((5, 3))
    for i in range(5):
        for d in range(3):
            omega = 2 * math.pi * (start[i, d] - end[i, d])
            way[i, d] = math.atan2(math.sin(omega), math.cos(omega)) / (2 * math.pi)
    expected = -(way - way.sum(axis=0) / 5)
    lattices = torch.tensor(rng.random((2, 6)))
    coords, lattice = target_velocity(torch.tensor(start), torch.tensor(end), *lattices)
    np.testing.assert_allclose(coords.numpy(), expected, atol=1e-12)
    torch.testing.assert_close(lattice, lattices[1] - lattices[0])


def test_target_is_the_time_derivative_of_the_path():
    """Central differences of the path, measured along the torus."""
    rng = torch.Generator().manual_seed(1)
    start, end = torch.rand(2, 7, 6, 3, generator=rng, dtype=torch.float64)
    l0, l1 = torch.rand(2, 7, 6, generator=rng, dtype=torch.float64)
    target = target_velocity(start, end, l0, l1)
    time = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    step = 1e-4
    before = geodesic(start, l0, target, time - step)
    after = geodesic(start, l0, target, time + step)
    torch.testing.assert_close(torus_log(before[0], after[0]) / (2 * step), target[0])
    torch.testing.assert_close((after[1] - before[1]) / (2 * step), target[1])


def test_path_ends_at_c1_up_to_a_translation():
    rng = torch.Generator().manual_seed(2)
    start = torch.rand(6, 3, generator=rng, dtype=torch.float64)
    end = torus_exp(start, 0.4 * torch.rand(6, 3, generator=rng, dtype=torch.float64))
    l0, l1 = torch.rand(2, 6, generator=rng, dtype=torch.float64)
    target = target_velocity(start, end, l0, l1)
    reached, lattice = geodesic(start, l0, target, torch.tensor(1.0, dtype=torch.float64))
    shift = torus_log(end, reached)
    torch.testing.assert_close(shift, shift[:1].expand_as(shift))
    torch.testing.assert_close(lattice, l1)


def test_removed_mean_is_gone_and_nothing_else():
    tangent = torch.rand(3, 5, 3, dtype=torch.float64)
    left = remove_mean(tangent)
    assert left.mean(dim=1).abs().max() < 1e-15
    taken = tangent - left
    torch.testing.assert_close(taken, taken[:, :1].expand_as(taken))
