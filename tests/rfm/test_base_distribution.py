"""Base distributions: draws are compared with the documented distributions."""

import json

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from scipy import stats

from flow_pairs import BOUNDS, failed_row, pair_row, prototypes, write_pairs
from flowllm.config.sections.flow import LlmFlow, SimpleFlow
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.rfm.base_distribution import (
    LlmBaseDistribution,
    RejectedCrystalError,
    SimpleBaseDistribution,
    base_distribution_from_record,
    base_distribution_of,
    base_distribution_record,
    bring_angles_within,
    crystal_lattice,
    draw_start,
    fit_simple_base_distribution,
)
from flowllm.rfm.manifold import lattice_parameters

FCC = Crystal.from_arrays([29, 29], [[0, 0, 0], [0.5, 0.25, 0.75]], [2.5, 3, 4], [60, 90, 120])


def draws(base_distribution, crystal, number):
    """Return coordinates (m, n, 3), lengths and angles (m, 3) of m draws."""
    rng = np.random.default_rng(0)
    points = [draw_start(base_distribution, crystal, BOUNDS, rng) for _ in range(number)]
    lattices = torch.from_numpy(np.stack([point.lattice for point in points])).double()
    lengths, angles = (x.numpy() for x in lattice_parameters(lattices, BOUNDS))
    return np.stack([point.coords for point in points]), lengths, angles


def test_angles_on_the_bounds_are_kept():
    crystal = Crystal.from_arrays([29], [[0, 0, 0]], [2.5, 2.5, 2.5], [60, 60, 60])
    assert bring_angles_within(crystal, BOUNDS) is crystal


@pytest.mark.parametrize("angles", [(59, 90, 90), (90, 130, 90), (100, 125, 75)])
def test_angles_out_of_bounds_are_reduced_to_the_same_crystal(angles):
    lattice = Lattice.from_parameters(4.0, 5.0, 6.0, *angles)
    structure = Structure(
        lattice, ["Na", "Cl", "Cl"], [[0, 0, 0], [0.3, 0.4, 0.6], [0.7, 0.2, 0.1]]
    )
    crystal = Crystal.from_structure(structure)
    reduced = bring_angles_within(crystal, BOUNDS)
    assert (reduced.angles > 59.9).all()
    assert (reduced.angles < 120.1).all()
    assert reduced.atomic_numbers.tolist() == crystal.atomic_numbers.tolist()
    matcher = StructureMatcher(primitive_cell=False, scale=False, ltol=0.01, stol=0.01, angle_tol=1)
    assert matcher.fit(reduced.to_structure(), structure)


def test_bounds_no_reduction_can_meet_reject():
    crystal = Crystal.from_arrays([29], [[0, 0, 0]], [3, 4, 5], [90, 90, 90])
    with pytest.raises(RejectedCrystalError, match="angles_out_of_bounds"):
        bring_angles_within(crystal, (60.0, 80.0))


def test_without_noise_the_start_is_the_crystal():
    point = draw_start(LlmBaseDistribution(0.0, 0.0, 0.0), FCC, BOUNDS, np.random.default_rng(0))
    assert (point.coords == FCC.frac_coords).all()
    assert (point.lattice == crystal_lattice(FCC, BOUNDS)).all()
    assert not point.reduced


def test_noise_has_its_deviations():
    crystal = Crystal.from_arrays([29], [[0.5, 0.5, 0.5]], [5, 5, 5], [90, 90, 90])
    coords, lengths, angles = draws(LlmBaseDistribution(0.01, 0.2, 1.5), crystal, 3000)
    for values, mean, deviation in ((coords, 0.5, 0.01), (lengths, 5, 0.2), (angles, 90, 1.5)):
        assert stats.kstest(values.ravel(), stats.norm(mean, deviation).cdf).pvalue > 1e-3


def test_noise_never_leaves_the_manifold():
    """With large noise coordinates wrap, and lengths and angles are reflected."""
    coords, lengths, angles = draws(LlmBaseDistribution(0.3, 3.0, 20.0), FCC, 500)
    assert (coords >= 0).all()
    assert (coords < 1).all()
    assert (lengths > 0).all()
    assert (angles > 59.999).all()
    assert (angles < 120.001).all()
    assert np.isfinite(angles).all()
    # A normal number reflected at its mean has the mean distance sigma sqrt(2 / pi) from it.
    _, _, near = draws(LlmBaseDistribution(0.0, 0.0, 2.0), FCC, 4000)
    assert (near[:, 0] - 60).mean() == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.05)
    assert (120 - near[:, 2]).mean() == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.05)


def test_the_simple_base_is_flowmms_base():
    simple = SimpleBaseDistribution([1.575, 1.702, 1.978], [0.244, 0.265, 0.354])
    coords, lengths, angles = draws(simple, FCC, 3000)
    low, high = BOUNDS
    assert coords.shape == (3000, 2, 3)
    assert stats.kstest(coords.ravel(), stats.uniform(0, 1).cdf).pvalue > 1e-3
    assert stats.kstest(angles.ravel(), stats.uniform(low, high - low).cdf).pvalue > 1e-3
    for column, mean, deviation in zip(lengths.T, *vars(simple).values(), strict=True):
        assert stats.kstest(column, stats.lognorm(deviation, scale=np.exp(mean)).cdf).pvalue > 1e-3
    # FlowMM's constants for MP-20 give the mean lengths of the data within one percent.
    np.testing.assert_allclose(lengths.mean(axis=0), (4.980, 5.678, 7.772), rtol=0.02)


def test_the_simple_base_is_fitted_to_the_training_crystals(tmp_path):
    crystals = prototypes()[:20]
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    write_pairs(paths[0], crystals[:15], seed=0)
    write_pairs(paths[1], crystals[15:], seed=1)
    fitted = fit_simple_base_distribution(paths)
    logarithms = np.log(np.stack([c.lengths for c in crystals]).astype(np.float64))
    np.testing.assert_allclose(fitted.log_lengths_mean, logarithms.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(fitted.log_lengths_std, logarithms.std(axis=0), rtol=1e-6)


def test_nothing_to_fit_on_says_so(tmp_path):
    tables.write_table(tmp_path / "a.parquet", [failed_row(0)], schemas.PAIRS, {})
    with pytest.raises(FlowllmError, match="no pair can be used to fit"):
        fit_simple_base_distribution([tmp_path / "a.parquet"])


def test_rows_of_flows_become_base_distributions_and_survive_json(tmp_path):
    path = tmp_path / "a.parquet"
    tables.write_table(path, [pair_row(FCC, FCC, 0)], schemas.PAIRS, {})
    llm = LlmFlow(name="a", start="llm", coords_noise=0.1, lengths_noise=0.2, angles_noise=0.3)
    for flow, kind in (
        (llm, LlmBaseDistribution),
        (SimpleFlow(name="b", start="simple"), SimpleBaseDistribution),
    ):
        found = base_distribution_of(flow, [path])
        assert type(found) is kind
        record = json.loads(json.dumps(base_distribution_record(found)))
        assert base_distribution_from_record(record) == found
    assert base_distribution_of(llm, []) == LlmBaseDistribution(0.1, 0.2, 0.3)
