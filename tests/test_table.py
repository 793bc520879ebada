"""Tables of trigonometric polynomials against their sums, term by term."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flow_pairs import BOUNDS
from flowllm.rfm import network, table
from flowllm.rfm.manifold import gram_matrix
from flowllm.rfm.model import build_field
from flowllm.rfm.network import NetworkSize, Standardization, VelocityNetwork

TOLERANCES = {torch.float32: 2e-5, torch.float64: 2e-12}
"""Relative to a typical value; float32 rounds x itself."""


def by_terms(x, cosine, sine):
    """Sum over directions and k of A cos(2 pi k x) + B sin(2 pi k x), in float64."""
    k = np.arange(1, cosine.shape[1] + 1)
    phases = 2 * math.pi * x[:, :, None] * k
    return np.einsum("edk,dkh->eh", np.cos(phases), cosine) + np.einsum(
        "edk,dkh->eh", np.sin(phases), sine
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 8, 40, 128]), st.sampled_from([*TOLERANCES]))
@example(1, 128, torch.float32)  # small negative numbers, whose digits must not be rounded away
def test_reads_the_polynomial(seed, num_frequencies, dtype):
    """Anywhere on the torus and on the grid points themselves."""
    rng = np.random.default_rng(seed)
    size = table.grid_size(num_frequencies)
    x = np.concatenate([rng.uniform(-1, 1, (20, 3)), rng.integers(-size, size, (20, 3)) / size])
    x = torch.tensor(x).to(dtype)
    cosine, sine = rng.normal(size=(2, 3, num_frequencies, 5))
    coefficients = torch.tensor(np.concatenate([cosine, sine], axis=1)).to(dtype)
    rows = (table.basis(num_frequencies, dtype) @ coefficients).flatten(0, 1)
    found = table.read(rows, table.window(x, num_frequencies))
    expected = by_terms(x.double().numpy(), cosine, sine)
    scale = math.sqrt(3 * num_frequencies)
    assert np.abs(found.double().numpy() - expected).max() < TOLERANCES[dtype] * scale


def test_gradient_of_reading():
    """By torch's numerical check, with rows that no edge reads and rows that many do."""
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 6, (9, 4), generator=rng).int()
    where = table.Window(rows, torch.rand(9, 4, generator=rng, dtype=torch.float64))
    values = torch.rand(8, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: table.read(t, where), (values,))


@pytest.mark.parametrize("dtype", [*TOLERANCES])
def test_network_by_table_and_by_products_agree(dtype, monkeypatch):
    """Outputs and gradients, at all of the paper's frequencies."""
    scales = Standardization([0.0] * 6, [1.0] * 6, 1.0, [0.0] * 6, [1.0] * 6)
    network = build_field(NetworkSize(32, 2, 8, 128), BOUNDS, scales, seed=1).network.to(dtype)
    rng = torch.Generator().manual_seed(1)
    elements = torch.randint(1, 90, (40, 8), generator=rng)
    coords = torch.rand(40, 8, 3, generator=rng, dtype=dtype)
    lattice = torch.randn(40, 6, generator=rng, dtype=dtype)
    gram = gram_matrix(5 + torch.rand(40, 3, generator=rng, dtype=dtype), torch.full((40, 3), 80.0))
    results = []
    for by_table in (True, False):
        monkeypatch.setattr(VelocityNetwork, "_table_pays", lambda *_, pays=by_table: pays)
        out = network(elements, coords, lattice, gram.to(dtype), torch.rand(40).to(dtype) * 0)
        sum(x.square().sum() for x in out).backward()
        results.append([*out, *(p.grad.clone() for p in network.parameters())])
        network.zero_grad()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= tolerance * max(other.abs().max(), 1e-2)


def test_frozen_weights_and_small_parts_change_nothing(monkeypatch):
    """Tables made once, edges read a crystal at a time, activations overwritten: the same."""
    scales = Standardization([6.0] * 6, [2.0] * 6, 0.05, [0.0] * 6, [0.1] * 6)
    size = NetworkSize(hidden_dim=16, num_layers=2, time_dim=8, num_frequencies=8)
    field = build_field(size, BOUNDS, scales).double()
    point = torch.rand(12, 5, 3).double(), torch.rand(12, 6).double() + 4
    elements, time = torch.randint(1, 90, (12, 5)), torch.rand(12).double()
    assert field.network._table_pays(point[0])
    expected = field(elements, *point, time)
    monkeypatch.setattr(network, "CACHED_EDGES", 20)
    field.network.freeze()
    with torch.no_grad():
        for _ in range(2):
            found = field(elements, *point, time)
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert all(layer.kept_grids is not None for layer in field.network.layers)
