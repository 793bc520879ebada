"""Agreement with known energies against counted crystals and numpy's correlation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from flowllm.evaluate.known_energies import known_agreement

RULE = {"stable_below": 0.0, "inclusive": False, "metastable_below": 0.1, "min_elements": 2}


def row(ours, known, num_elements=2, formed=(None, None)):
    return {
        "e_above_hull": ours,
        "known_e_above_hull": known,
        "num_elements": num_elements,
        "formation_energy_per_atom": formed[0],
        "known_formation_energy": formed[1],
    }


def test_rows_of_our_own_methods_have_nothing_to_compare():
    assert known_agreement([{"e_above_hull": 0.1}], RULE) is None
    assert known_agreement([], RULE) is None


def test_a_hand_made_case():
    rows = [
        row(-0.1, 0.0, formed=(-1.0, -1.2)),  # stable by both: known ones are on their hull at 0
        row(-0.1, 0.05),  # stable in this run alone, metastable by both
        row(0.0, 0.0, formed=(-2.0, -1.9)),  # the run's own bound is not inclusive
        row(0.3, 0.4),  # neither
        row(0.05, 0.2),  # metastable in this run alone
        row(-0.5, 0.0, num_elements=1),  # an element counts as neither
        row(0.3, None, formed=(-1.0, None)),  # not known
        row(None, 0.0, formed=(None, -1.0)),  # not placed on the hull
    ]
    found = known_agreement(rows, RULE)
    numbers = {name: (one["numerator"], one["denominator"]) for name, one in found["rates"].items()}
    assert numbers == {
        "agree_stable": (4, 6),
        "ours_stable": (2, 6),
        "known_stable": (2, 6),
        "confirmed_stable": (1, 2),
        "found_stable": (1, 2),
        "agree_metastable": (5, 6),
        "ours_metastable": (4, 6),
        "known_metastable": (3, 6),
        "confirmed_metastable": (3, 4),
        "found_metastable": (3, 3),
    }
    differences = [-0.1, -0.15, 0.0, -0.1, -0.15, -0.5]
    assert found["differences"]["difference_e_above_hull"]["mean"] == pytest.approx(
        np.mean(differences)
    )
    assert found["differences"]["absolute_formation"]["mean"] == pytest.approx(0.15)
    assert found["correlations"]["pearson_e_above_hull"]["count"] == 6
    assert found["correlations"]["pearson_formation"]["count"] == 2


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=4, max_size=30))
def test_pearson_and_its_interval_are_scipys(pairs):
    rows = [row(0.0, 0.0, formed=pair) for pair in pairs]
    found = known_agreement(rows, RULE)["correlations"]["pearson_formation"]
    first, second = np.array(pairs, dtype=float).T
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert found["value"] is None
        return
    expected = pearsonr(first, second)
    assert found["value"] == pytest.approx(expected.statistic, abs=1e-9)
    if abs(expected.statistic) < 1 - 1e-9:
        interval = expected.confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_without_any_known_value_the_numbers_are_empty():
    found = known_agreement([row(0.1, None)], RULE)
    assert found["rates"]["agree_stable"]["value"] is None
    assert found["correlations"]["spearman_e_above_hull"]["value"] is None
    assert found["differences"]["difference_formation"]["mean"] is None
