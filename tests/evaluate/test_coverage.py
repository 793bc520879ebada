"""Coverage and property distances against their definitions written slowly, on real crystals."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matminer.featurizers.composition import ElementProperty

from crystals import MP_20_SAMPLE, mp_20_sample, rattled, small_mp_20_sample
from flowllm.evaluate import coverage
from flowllm.evaluate.aggregate import coverage_rates, property_distances
from flowllm.evaluate.fingerprints import fingerprint
from flowllm.io import schemas
from flowllm.io.tables import write_table


def fingerprints_of(crystals, path):
    rows = [fingerprint(item) for item in crystals.items()]
    write_table(path, rows, schemas.FINGERPRINTS, {})
    return coverage.read_fingerprints(path)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Fingerprints of generated (moved test crystals, other crystals, one lost) and test."""
    folder = tmp_path_factory.mktemp("coverage")
    test = small_mp_20_sample("test", 10)
    others = small_mp_20_sample("train", 6)
    generated = {f"g-{name}": rattled(one, 0.05, 1) for name, one in list(test.items())[:5]}
    generated |= {f"o-{name}": one for name, one in others.items()} | {"lost": None}
    return (
        fingerprints_of(generated, folder / "generated.parquet"),
        fingerprints_of(test, folder / "test.parquet"),
    )


def flag_rows(generated, test):
    near = coverage.covered(generated, test)
    return [
        {
            "structurally_valid": index % 4 != 0,
            "compositionally_valid": True,
            "fingerprinted": bool(known),
            "covered": bool(is_near),
        }
        for index, (known, is_near) in enumerate(zip(generated.known, near, strict=True))
    ]


def slow_covered(points, by):
    """Two loops and the definition: a near structure, a near composition, each of any crystal."""
    found = []
    for i in range(len(points.names)):
        if points.status[i] != "ok":
            found.append(False)
            continue
        structure = composition = math.inf
        for j in range(len(by.names)):
            if by.status[j] == "ok":
                structure = min(structure, math.dist(points.structure[i], by.structure[j]))
                composition = min(composition, math.dist(points.composition[i], by.composition[j]))
        found.append(structure <= 0.4 and composition <= 10)
    return found


def test_coverage_is_the_slow_definition(real):
    generated, test = real
    for points, by in ((generated, test), (test, generated)):
        assert coverage.covered(points, by).tolist() == slow_covered(points, by)


def test_coverage_rates_and_their_denominators(real):
    generated, test = real
    rows = flag_rows(generated, test)
    rates = coverage_rates(rows, generated, test)
    assert rates["coverage_recall"]["numerator"] == sum(slow_covered(test, generated))
    assert rates["coverage_recall"]["denominator"] == 10
    assert rates["coverage_precision"]["numerator"] == sum(slow_covered(generated, test))
    assert rates["coverage_precision"]["denominator"] == 12  # the lost one too
    assert rates["coverage_precision_of_valid"]["denominator"] == 8  # 12, less 0, 4, 8 and the lost
    assert rates["fingerprinted"]["numerator"] == 11


def test_minima_are_independent():
    # No generated crystal is near in both, but each distance has one that is.
    structure = np.array([[0.0], [9.0]])
    composition = np.array([[90.0], [0.0]])
    empty = np.zeros(2)
    generated = coverage.Fingerprints(
        ["a", "b"], structure, composition, empty, empty, ["ok", "ok"]
    )
    test = coverage.Fingerprints(
        ["t"], np.zeros((1, 1)), np.zeros((1, 1)), empty[:1], empty[:1], ["ok"]
    )
    assert coverage.covered(test, generated).tolist() == [True]
    assert coverage.covered(generated, test).tolist() == [False, False]


def prints(structure, composition=None, density=None):
    """Fingerprints of one column each; a crystal without a structure failed."""
    structure = np.array(structure, dtype=float)[:, None]
    composition = 0 * structure if composition is None else np.array(composition)[:, None]
    status = np.where(np.isfinite(structure[:, 0]), "ok", "failed").tolist()
    numbers = np.zeros(len(structure)) if density is None else np.array(density)
    names = [str(place) for place in range(len(structure))]
    return coverage.Fingerprints(names, structure, composition, numbers, numbers, status)


def test_the_cutoffs_are_inclusive():
    near = coverage.covered(prints([0.40, 0.41, 0, 0], [0, 0, 10.0, 10.1]), prints([0.0]))
    assert near.tolist() == [True, False, True, False]


def test_rates_and_distances_worked_by_hand():
    """The second crystal is far from the test split, and the third has no fingerprints."""
    generated = prints([0, 9, np.nan], density=[1.0, 2.0, 70.0])
    test = prints([0, 0.1, 5], density=[1.0, 1.0, 4.0])
    valid = {"structurally_valid": True, "compositionally_valid": True}
    rows = coverage.add_coverage([valid] * 3, generated, test)
    rates = coverage_rates(rows, generated, test)
    found = {name: (one["numerator"], one["denominator"]) for name, one in rates.items()}
    assert found == {
        "coverage_recall": (2, 3),
        "coverage_precision": (1, 3),
        "coverage_precision_of_valid": (1, 2),
        "fingerprinted": (2, 3),
    }
    distances = property_distances(rows, generated, test, np.random.default_rng(0))
    assert distances["wasserstein_density"]["count"] == 2
    # Two thirds of the test split are 1.0: the areas are 1/6 from 1 to 2 and 1/3 from 2 to 4.
    assert distances["wasserstein_density"]["value"] == pytest.approx(1 / 6 + 2 / 3)


def test_nothing_generated_covers_nothing(real):
    _, test = real
    none = coverage.Fingerprints(
        [], np.empty((0, 61)), np.empty((0, 132)), np.empty(0), np.empty(0), []
    )
    assert not coverage.covered(test, none).any()
    assert coverage.covered(none, test).tolist() == []


@settings(max_examples=30, deadline=None)
@given(
    arrays(np.float64, st.tuples(st.integers(1, 700), st.just(3)), elements=st.floats(-9, 9)),
    arrays(np.float64, st.tuples(st.integers(1, 20), st.just(3)), elements=st.floats(-9, 9)),
)
def test_nearest_in_chunks_is_the_plain_minimum(points, others):
    expected = np.linalg.norm(points[:, None] - others[None], axis=2).min(axis=1)
    assert coverage.nearest(points, others) == pytest.approx(expected)


def test_scaling_lists_magpies_features_in_their_order():
    rows = json.loads(coverage._SCALING.read_text())["features"]
    labels = ElementProperty.from_preset("magpie").feature_labels()
    assert [f"MagpieData {row[0]}" for row in rows] == labels


@pytest.mark.skipif(not MP_20_SAMPLE.exists(), reason=f"needs {MP_20_SAMPLE}")
def test_scaling_fits_real_compositions():
    # Not MP-20's own statistics, but near them: no feature is off by a standard deviation.
    crystals = mp_20_sample("train", 100)
    magpie = ElementProperty.from_preset("magpie", impute_nan=False)
    features = [magpie.featurize(one.to_structure().composition) for one in crystals.values()]
    scaled = coverage.standardize(np.array(features, dtype=float))
    assert np.abs(scaled.mean(axis=0)).max() < 0.6
    assert scaled.std(axis=0).max() < 3


def test_unknown_features_become_zero():
    features = np.full((1, 132), np.nan)
    assert (coverage.standardize(features) == 0).all()


def slow_wasserstein(first, second):
    """Area between the two cumulative distributions."""
    points = sorted([*first, *second])
    area = 0.0
    for low, high in itertools.pairwise(points):
        share = [sum(one <= low for one in values) / len(values) for values in (first, second)]
        area += abs(share[0] - share[1]) * (high - low)
    return area


@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=12),
    st.lists(st.floats(0, 20), min_size=1, max_size=12),
)
def test_property_distance_is_the_area_between_distributions(first, second):
    found = coverage.property_distance(np.array(first), np.array(second))
    assert found == pytest.approx(slow_wasserstein(first, second), abs=1e-9)


def test_property_distances_take_valid_crystals_only(real):
    generated, test = real
    rows = flag_rows(generated, test)
    found = property_distances(rows, generated, test, np.random.default_rng(0))
    valid = [i for i in range(12) if i % 4 and generated.status[i] == "ok"]
    expected = slow_wasserstein(generated.density[valid].tolist(), test.density.tolist())
    assert found["wasserstein_density"]["value"] == pytest.approx(expected)
    assert found["wasserstein_density"]["count"] == 8
    assert found["wasserstein_density"]["reference_count"] == 10
    assert found["wasserstein_num_elements_all_valid"] == found["wasserstein_num_elements"]


def test_a_thousand_valid_crystals_are_drawn_once_each():
    valid = list(range(0, 6000, 2))
    drawn = coverage.drawn_for_distances(valid, np.random.default_rng(1))
    assert len(set(drawn.tolist())) == 1000
    assert set(drawn.tolist()) <= set(valid)
    assert drawn.tolist() != valid[:1000]
    # Without replacement, by the finite population correction (2/3 of the crystals are left out).
    error = np.std(valid) * math.sqrt((1 - 1000 / 3000) / 1000)
    assert drawn.mean() == pytest.approx(np.mean(valid), abs=4 * error)
    again = coverage.drawn_for_distances(valid, np.random.default_rng(1))
    assert drawn.tolist() == again.tolist()
    assert coverage.drawn_for_distances(valid[:7], np.random.default_rng(1)).tolist() == valid[:7]
