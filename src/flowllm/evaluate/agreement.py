"""Agreement of two potentials about the same relaxed crystals, each on its own hull."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau, norm, spearmanr

from flowllm.evaluate.statistics import CONFIDENCE, rate, summary

BOTH = "placed on both hulls"

_ROUNDING = 1e-9
"""A correlation that is nearer to 1 is perfect."""

_Z = float(norm.ppf((1 + CONFIDENCE) / 2))


def agreement(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any], potentials: Sequence[str]
) -> dict[str, Any] | None:
    """Return how often two potentials agree on stable, and on the order of the energies.

    Args:
        rows: rows of `schemas.METRICS_PER_CRYSTAL`.
        rule: section `stability` of the configuration.
        potentials: names of the second potentials.

    Returns:
        None without a second potential.
    """
    if not potentials:
        return None
    both = [row for row in rows if None not in (row["e_above_hull"], row["check_e_above_hull"])]
    first = np.array([row["e_above_hull"] for row in both], dtype=np.float64)
    second = np.array([row["check_e_above_hull"] for row in both], dtype=np.float64)
    enough = np.array([row["num_elements"] >= rule["min_elements"] for row in both], dtype=bool)
    found: dict[str, Any] = {"potentials": list(potentials), "rates": {}}
    for name, bound in bounds(rule).items():
        ours, theirs = bound(first) & enough, bound(second) & enough
        agreed, confirmed = int((ours == theirs).sum()), int((ours & theirs).sum())
        found["rates"] |= {
            f"agree_{name}": rate(agreed, len(both), BOTH),
            f"confirmed_{name}": rate(confirmed, int(ours.sum()), f"{name} by the potential"),
            f"check_{name}": rate(int(theirs.sum()), len(both), BOTH),
        }
    found["orders"] = {"kendall": kendall(first, second), "spearman": spearman(first, second)}
    found["difference"] = summary((second - first).tolist(), "eV/atom", BOTH)
    return found


def bounds(rule: Mapping[str, Any]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return the functions of energies above the hull that say which are stable, metastable."""
    below = np.less_equal if rule["inclusive"] else np.less
    return {
        "stable": lambda energies: below(energies, rule["stable_below"]),
        "metastable": lambda energies: np.less(energies, rule["metastable_below"]),
    }


def kendall(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Return Kendall's tau-b; the variance of its Fisher transform is 0.437 / (n - 4).

    The variances are those of Fieller, Hartley and Pearson (1957), and of Bonett and Wright (2000).
    """
    number = len(first)
    value = float(kendalltau(first, second).statistic) if number > 1 else math.nan
    return _with_interval(value, math.sqrt(0.437 / (number - 4)) if number > 4 else None, number)


def spearman(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Return Spearman's rho; the variance of its Fisher transform is (1 + rho^2 / 2) / (n - 3)."""
    number = len(first)
    varies = number > 1 and np.ptp(first) > 0 and np.ptp(second) > 0
    value = float(spearmanr(first, second).statistic) if varies else math.nan
    error = math.sqrt((1 + value**2 / 2) / (number - 3)) if number > 3 else None
    return _with_interval(value, error, number)


def pearson(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Return Pearson's r; the variance of its Fisher transform is 1 / (n - 3)."""
    number = len(first)
    varies = number > 1 and np.ptp(first) > 0 and np.ptp(second) > 0
    value = float(np.corrcoef(first, second)[0, 1]) if varies else math.nan
    return _with_interval(value, math.sqrt(1 / (number - 3)) if number > 3 else None, number)


def _with_interval(value: float, error: float | None, number: int) -> dict[str, Any]:
    """Return a correlation with its 95 % interval; None where it is not defined.

    The transform of 1 is infinite. The interval of a perfect correlation of n pairs is that of
    1 - 1/n up to 1.
    """
    if math.isnan(value):
        return {"value": None, "low": None, "high": None, "count": number}
    low, high = -1.0, 1.0
    if error is not None:
        is_perfect = abs(value) > 1 - _ROUNDING
        middle = math.atanh(math.copysign(1 - 1 / number, value) if is_perfect else value)
        low, high = math.tanh(middle - _Z * error), math.tanh(middle + _Z * error)
        low, high = min(low, value), max(high, value)
    return {"value": value, "low": low, "high": high, "count": number}
