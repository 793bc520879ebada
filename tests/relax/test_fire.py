"""A step of FIRE for a whole batch against torch-sim, and its exponential against scipy."""

import numpy as np
import pytest
import torch
import torch_sim as ts
from scipy.linalg import expm, expm_frechet
from torch_sim.optimizers import frechet_cell_fire

from crystals import fcc, perovskite, rattled, rocksalt
from flowllm.relax.checked_model import CheckedModel
from flowllm.relax.fire import exponential_gradient, take_step
from flowllm.relax.models import load_potential
from flowllm.relax.relaxer import _at_rest


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.1, 3.0])
def test_the_gradient_of_the_exponential_is_that_of_scipy(size):
    """Also for a gradient whose elements are large beside the exponent's."""
    rng = np.random.default_rng(0)
    exponents = size * rng.normal(size=(4, 3, 3))
    gradients = rng.normal(size=(4, 3, 3)) * np.array([0.0, 1e-6, 1.0, 1e5])[:, None, None]
    found = exponential_gradient(torch.tensor(exponents), torch.tensor(gradients))
    for exponent, gradient, one in zip(exponents, gradients, found.numpy(), strict=True):
        expected = np.zeros((3, 3))
        for row, column in np.ndindex(3, 3):
            direction = np.zeros((3, 3))
            direction[row, column] = 1.0
            derivative = expm_frechet(exponent, direction, compute_expm=False)
            expected[row, column] = (derivative * gradient).sum()
        scale = np.abs(gradient).max() * np.abs(expm(exponent)).max()
        np.testing.assert_allclose(one, expected, atol=1e-13 * scale)


def test_steps_are_those_of_torch_sim():
    """Crystals that go downhill and uphill, whose cells deform."""
    model = CheckedModel(load_potential("chgnet", torch.device("cpu")).model)
    crystals = [rattled(rocksalt(a=5.0), 0.1, 1), rattled(perovskite(), 0.3, 2), fcc(a=4.2)]
    structures = [crystal.to_structure() for crystal in crystals]
    init, step = frechet_cell_fire(model, dt_start=0.1)
    ours, theirs = (
        _at_rest(init(ts.initialize_state(structures, torch.device("cpu"), torch.float64)))
        for _ in range(2)
    )
    uphill = False
    for _ in range(30):
        take_step(ours, model)
        theirs = step(theirs)
        uphill |= bool((ours.n_pos == 0).any())
        for name in ("positions", "cell", "forces", "cell_forces", "velocities", "dt", "alpha"):
            found, expected = getattr(ours, name), getattr(theirs, name)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert ours.n_pos.tolist() == theirs.n_pos.tolist()
    assert uphill
    assert (ours.cell_positions.abs().amax(dim=(1, 2)) > 0.05).all()
