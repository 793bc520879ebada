"""Agreement of two potentials against counted pairs and simulated samples."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowllm.evaluate.agreement import agreement

RULE = {"stable_below": 0.0, "inclusive": False, "metastable_below": 0.1, "min_elements": 2}


def row(first, second, num_elements=2):
    return {"e_above_hull": first, "check_e_above_hull": second, "num_elements": num_elements}


def test_without_a_second_potential_there_is_nothing():
    assert agreement([row(0.1, None)], RULE, []) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_the_interval_of_a_perfect_correlation_has_a_width_that_shrinks(sign):
    lowest: dict[str, list[float]] = {"kendall": [], "spearman": []}
    for number in (5, 50, 500):
        rows = [row(float(place), sign * float(place)) for place in range(number)]
        for name, one in agreement(rows, RULE, ["x"])["orders"].items():
            low, high = sorted([sign * one["low"], sign * one["high"]])
            assert sign * one["value"] == pytest.approx(1) == high
            lowest[name].append(low)
    for lows in lowest.values():
        assert -1 < lows[0] < lows[1] < lows[2] < 1 - 1e-4


def test_a_hand_made_case():
    rows = [
        row(-0.1, -0.2),  # stable by both
        row(-0.1, 0.05),  # stable by the first, metastable by both
        row(0.05, -0.1),  # stable by the second, metastable by both
        row(0.3, 0.4),  # neither
        row(0.0, 0.2),  # the bound itself is not stable; metastable by the first
        row(-0.5, -0.5, num_elements=1),  # an element is not stable by either
        row(0.3, None),  # without the second energy
        row(None, -0.3),  # without the first
    ]
    found = agreement(rows, RULE, ["CHGNet 0.2.0"])
    numbers = {name: (one["numerator"], one["denominator"]) for name, one in found["rates"].items()}
    assert numbers == {
        "agree_stable": (4, 6),
        "confirmed_stable": (1, 2),
        "check_stable": (2, 6),
        "agree_metastable": (5, 6),
        "confirmed_metastable": (3, 4),
        "check_metastable": (3, 6),
    }
    assert found["orders"]["kendall"]["count"] == 6
    differences = [-0.1, 0.15, -0.15, 0.1, 0.2, 0.0]
    assert found["difference"]["mean"] == pytest.approx(np.mean(differences))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=20))
def test_kendall_is_counted_pairs_and_spearman_the_correlation_of_ranks(pairs):
    orders = agreement([row(*pair) for pair in pairs], RULE, ["x"])["orders"]
    first, second = np.array(pairs, dtype=float).T
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert orders["kendall"]["value"] is orders["spearman"]["value"] is None
        return
    signs = [
        (np.sign(first[i] - first[j]), np.sign(second[i] - second[j]))
        for i, j in combinations(range(len(pairs)), 2)
    ]
    score = sum(a * b for a, b in signs)
    untied = [sum(abs(one[k]) for one in signs) for k in (0, 1)]
    assert orders["kendall"]["value"] == pytest.approx(score / np.sqrt(untied[0] * untied[1]))
    ranks = [[np.mean(np.flatnonzero(np.sort(x) == v)) for v in x] for x in (first, second)]
    assert orders["spearman"]["value"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    for one in orders.values():
        assert -1 <= one["low"] <= one["value"] + 1e-12
        assert one["value"] <= one["high"] + 1e-12 <= 1 + 2e-12


def test_the_intervals_contain_the_true_value_in_about_95_of_100():
    """Normal samples of correlation 0.7: tau is 2 asin(r) / pi, rho is 6 asin(r / 2) / pi."""
    rng = np.random.default_rng(5)
    truth = {"kendall": 2 * np.arcsin(0.7) / np.pi, "spearman": 6 * np.arcsin(0.35) / np.pi}
    inside = dict.fromkeys(truth, 0)
    for _ in range(300):
        pairs = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], size=60)
        orders = agreement([row(*pair) for pair in pairs.tolist()], RULE, ["x"])["orders"]
        for name, value in truth.items():
            inside[name] += orders[name]["low"] <= value <= orders[name]["high"]
    assert all(0.92 < count / 300 < 0.985 for count in inside.values()), inside
