"""Estimates of rates from a control sample: exact cases, and simulations of bias and coverage."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from flowllm.evaluate.estimates import Observed, estimated_rates, finite_interval, interval
from flowllm.evaluate.samples import Sample
from flowllm.evaluate.statistics import wilson_interval


def sample(stable, taken_as, probability, leads=None, status="ok"):
    """A draw of which only DFT's results and the choice of dft_inputs matter here."""
    return Sample(
        *("x", None, "ok", 1, (), "ok", None, status if taken_as else "not_selected", None, True),
        *(None, None, None, 2, None, stable, stable),
        taken_as=taken_as,
        inclusion_probability=probability,
        leads_class=leads,
    )


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_complete_run_gives_the_rate_and_wilsons_interval(certain, sampled, rest):
    drawn = certain + sampled + rest + 1
    observed = Observed(certain, sampled, sampled + rest, sampled + rest, drawn)
    assert observed.value == pytest.approx((certain + sampled) / drawn)
    assert interval(observed) == pytest.approx(wilson_interval(certain + sampled, drawn), abs=1e-9)


def test_a_number_with_exactly_two_and_a_half_percent_is_kept():
    """Of 16 with 13 that count, none is among 2 in 3 of 120 samples, which is 2.5 %."""
    assert finite_interval(0, 2, 16) == (0, 13)
    assert finite_interval(2, 2, 16) == (3, 16)


@given(st.integers(1, 60), st.data())
def test_the_finite_interval_is_that_of_the_two_tails(population, data):
    size = data.draw(st.integers(0, population))
    found = data.draw(st.integers(0, size))
    kept = [
        number
        for number in range(found, population - size + found + 1)
        if sum(hypergeom.pmf(range(found + 1), population, number, size)) >= 0.025 - 1e-12
        and sum(hypergeom.pmf(range(found, size + 1), population, number, size)) >= 0.025 - 1e-12
    ]
    assert finite_interval(found, size, population) == (min(kept), max(kept))


def test_numbers_worked_by_hand():
    """Two of three certain crystals, and one of a sample of 2 from 10; 7 draws have none."""
    draws = [sample(one, "candidate", 1.0, True) for one in (True, True, False)]
    draws += [sample(one, "control", 0.2, True) for one in (True, False)]
    draws += [sample(False, None, 0.2, True) for _ in range(8)]
    draws += [replace(sample(False, None, None), relaxed_status="rejected")] * 7
    found = estimated_rates(draws)
    assert found["design"] == {"certain": 3, "sample": 2, "population": 10, "missing": 0}
    assert found["rates"]["stability_rate"]["value"] == pytest.approx((2 + 5 * 1) / 20)
    assert found["rates"]["sun_rate"]["value"] == pytest.approx((2 + 5 * 1) / 20)


def test_known_and_repeated_crystals_do_not_count_for_sun():
    draws = [sample(True, "candidate", 1.0, True), sample(True, "control", 0.5, False)]
    draws.append(sample(False, None, 0.5, False))
    rates = estimated_rates(draws)["rates"]
    assert rates["stability_rate"]["value"] == pytest.approx(1.0)
    assert rates["sun_rate"]["value"] == pytest.approx(1 / 3)


def test_without_a_sample_there_are_bounds_and_no_value():
    draws = [sample(True, "candidate", 1.0, True)] + [sample(False, None, 0.0, True)] * 9
    rates = estimated_rates(draws)["rates"]
    assert rates["stability_rate"]["value"] is None
    assert rates["stability_rate"]["low"] == pytest.approx(wilson_interval(1, 10)[0])
    assert rates["stability_rate"]["high"] == pytest.approx(1.0)


def test_there_is_no_estimate_without_probabilities():
    assert estimated_rates([sample(True, "selected", None), sample(False, None, None)]) is None
    assert estimated_rates([]) is None


def test_missing_runs_are_counted():
    draws = [sample(False, "selected", 1.0, status="missing"), sample(True, "selected", 1.0)]
    assert estimated_rates(draws)["design"]["missing"] == 1


def simulated(rng, rate_near, rate_far, drawn, share, runs):
    """Yield the estimate, the finite rate and the interval of many runs, with draws of their own.

    A third of the draws are candidates, of which `rate_near` count; of the others `rate_far` do.
    """
    for _ in range(runs):
        near = rng.random(drawn) < 1 / 3
        counts = rng.random(drawn) < np.where(near, rate_near, rate_far)
        others = np.flatnonzero(~near)
        size = int(np.ceil(share * len(others)))
        taken = rng.choice(others, size, replace=False)
        observed = Observed(
            int(counts[near].sum()), int(counts[taken].sum()), size, len(others), drawn
        )
        yield observed.value, counts.mean(), interval(observed)


@pytest.mark.parametrize(
    ("near", "far", "drawn", "share"),
    [(0.3, 0.02, 300, 0.1), (0.1, 0.001, 600, 0.05), (0.6, 0.3, 150, 0.2), (0.05, 0.0, 300, 0.05)],
)
def test_the_estimate_is_unbiased_and_its_interval_covers(near, far, drawn, share):
    """Over 1,000 runs; the interval is of the model's rate, and may cover more than 95 %."""
    rng = np.random.default_rng(7)
    found = list(simulated(rng, near, far, drawn, share, 1000))
    errors = np.array([value - finite for value, finite, _ in found])
    assert abs(errors.mean()) <= 4 * errors.std() / np.sqrt(len(errors)) + 1e-12
    truth = near / 3 + far * 2 / 3
    covered = np.mean([low <= truth <= high for _, _, (low, high) in found])
    # The covered share of 1,000 runs has a deviation of 0.007 where 0.95 is expected.
    assert covered >= 0.93


def test_the_finite_interval_covers():
    """Of populations with 0 to 100 that count, in at least 95 % of all samples."""
    sizes, population = np.arange(21), 100
    intervals = [finite_interval(int(found), 20, population) for found in sizes]
    for number in range(population + 1):
        chances = hypergeom.pmf(sizes, population, number, 20)
        covers = [low <= number <= high for low, high in intervals]
        assert chances[covers].sum() >= 0.95 - 1e-9
