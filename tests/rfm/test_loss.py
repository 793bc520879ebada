"""The loss against equation 8 in a plain loop, and the statistics against their definition."""

import math

import numpy as np
import pytest
import torch

from flow_pairs import BOUNDS, OPTIONS, open_pairs, prototypes, statistics, write_pairs
from flowllm.rfm.loader import PairBatch, size_groups
from flowllm.rfm.loss import ConstantField, FlowLoss, squared_errors
from flowllm.rfm.manifold import geodesic, target_velocity
from flowllm.rfm.model import build_field
from flowllm.rfm.network import NetworkSize, Standardization
from flowllm.rfm.pairs import prepare_shard

SIZE = NetworkSize(hidden_dim=16, num_layers=2, time_dim=8, num_frequencies=4)


@pytest.fixture
def pairs(tmp_path):
    write_pairs(tmp_path / "shard.parquet", prototypes()[:25], seed=1, draws_each=3)
    prepare_shard(tmp_path / "shard.parquet", tmp_path / "a", OPTIONS)
    return open_pairs([tmp_path / "a"])


def doubled(batch: PairBatch) -> PairBatch:
    elements, *rest = vars(batch).values()
    return PairBatch(elements, *(x.double() for x in rest))


def equation_8(velocity_f, velocity_l, f0, f1, l0, l1, lambda_f, lambda_l):
    """Return the term of one crystal, atom by atom and component by component, as printed."""
    n = len(f0)
    log = [[0.0] * 3 for _ in range(n)]
    for i in range(n):
        for d in range(3):
            omega = 2 * math.pi * (f0[i][d] - f1[i][d])
            log[i][d] = math.atan2(math.sin(omega), math.cos(omega)) / (2 * math.pi)
    coords = 0.0
    for i in range(n):
        for d in range(3):
            mean = sum(log[k][d] for k in range(n)) / n
            coords += (velocity_f[i][d] + log[i][d] - mean) ** 2
    lattice = 0.0
    for k in range(6):
        lattice += (velocity_l[k] + l0[k] - l1[k]) ** 2
    return lambda_f / (3 * n) * coords + lambda_l / 6 * lattice


def test_loss_is_equation_8_by_a_slow_loop(pairs):
    standardization = statistics(pairs)
    field = build_field(SIZE, BOUNDS, standardization, seed=1).double()
    batches = [doubled(pairs.batch(group)) for group in size_groups(pairs.num_atoms, 7)]
    times = [torch.rand(len(batch), dtype=torch.float64) for batch in batches]
    sums = FlowLoss(field)(batches, times)
    found = (200 * sums[0] + 1 * sums[1]).item() / len(pairs)
    expected = 0.0
    for batch, time in zip(batches, times, strict=True):
        start = batch.start_coords, batch.start_lattice
        target = target_velocity(start[0], batch.end_coords, start[1], batch.end_lattice)
        velocity = field(batch.elements, *geodesic(*start, target, time), time)
        rows = [*velocity, start[0], batch.end_coords, start[1], batch.end_lattice]
        for row in zip(*(x.tolist() for x in rows), strict=True):
            expected += equation_8(*row, lambda_f=200, lambda_l=1) / len(pairs)
    assert found == pytest.approx(expected, rel=1e-10)


def test_standardized_outputs_become_velocities_in_the_target_units(pairs):
    """A network of zero output moves lattices by their mean velocity, and no atom."""
    standardization = statistics(pairs)
    field = build_field(SIZE, BOUNDS, standardization, seed=1)
    for parameter in field.parameters():
        parameter.data.zero_()
    errors = []
    for group in size_groups(pairs.num_atoms, 100):
        batch = pairs.batch(group)
        errors.append(torch.stack(squared_errors(field, batch, torch.rand(len(batch)))))
    coords, lattice = torch.cat(errors, dim=1).mean(dim=1).tolist()
    per_crystal = np.array(standardization.lattice_velocity_std) ** 2
    assert lattice == pytest.approx(per_crystal.mean(), rel=1e-4)
    # The deviation weighs components equally, the loss crystals, so both are only similar.
    assert coords == pytest.approx(standardization.coords_velocity_std**2, rel=0.5)


def test_statistics_by_sampling_the_path(pairs):
    """Means and deviations of l_t over many times, and of the velocities over the pairs."""
    found = statistics(pairs)
    rng = np.random.default_rng(0)
    lattices, velocities, coords = [], [], []
    for group in size_groups(pairs.num_atoms, 1):
        batch = pairs.batch(group)
        l0, l1 = batch.start_lattice.double().numpy(), batch.end_lattice.double().numpy()
        times = (np.arange(2000) + rng.random(2000))[:, None] / 2000
        lattices.append((1 - times) * l0 + times * l1)
        velocities.append(l1 - l0)
        way = (batch.end_coords - batch.start_coords).double().numpy()[0]
        way -= np.round(way)
        coords.append((way - way.mean(axis=0)).ravel())
    lattices, velocities = np.concatenate(lattices), np.concatenate(velocities)
    np.testing.assert_allclose(found.lattice_mean, lattices.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.lattice_std, lattices.std(axis=0), rtol=1e-3)
    np.testing.assert_allclose(found.lattice_velocity_mean, velocities.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.lattice_velocity_std, velocities.std(axis=0), rtol=1e-6)
    deviation = math.sqrt(np.mean(np.concatenate(coords) ** 2))
    assert found.coords_velocity_std == pytest.approx(deviation, rel=1e-6)


def test_the_constant_field_misses_by_the_velocities_own_variance(pairs):
    statistics_of_all = statistics(pairs)
    batches = [pairs.batch(group) for group in size_groups(pairs.num_atoms, 7)]
    times = [torch.zeros(len(batch)) for batch in batches]
    coords, lattice = FlowLoss(ConstantField(statistics_of_all))(batches, times) / len(pairs)
    ways = [
        target_velocity(b.start_coords, b.end_coords, b.start_lattice, b.end_lattice)[0]
        for b in batches
    ]
    per_crystal = torch.cat([way.square().mean(dim=(1, 2)) for way in ways])
    assert coords.item() == pytest.approx(per_crystal.mean().item(), rel=1e-5)
    variances = np.square(statistics_of_all.lattice_velocity_std)
    assert lattice.item() == pytest.approx(variances.mean(), rel=1e-4)


def test_pairs_of_one_value_are_not_divided_by_zero(tmp_path):
    """A single cubic crystal that is its own draft has deviations of zero."""
    from flow_pairs import pair_row
    from flowllm.io import schemas, tables

    cubic = next(c for c in prototypes() if np.ptp(c.angles) == 0)
    rows = [pair_row(cubic, cubic, 0)]
    tables.write_table(tmp_path / "shard.parquet", rows, schemas.PAIRS, {})
    prepare_shard(tmp_path / "shard.parquet", tmp_path / "a", OPTIONS)
    found = statistics(open_pairs([tmp_path / "a"]))
    assert isinstance(found, Standardization)
    assert min(found.lattice_std) > 0
    assert found.coords_velocity_std > 0
