"""Rates with their numerators, denominators and intervals, and summaries of measured values."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.stats import binomtest

CONFIDENCE = 0.95
"""Level of the intervals of rates."""


def wilson_interval(numerator: int, denominator: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a proportion (Wilson 1927; Brown et al. 2001).

    Unlike the normal approximation, the interval is within [0, 1] and has a positive width at 0 of
    n and n of n, which occur in small runs.

    Args:
        numerator: number of successes.
        denominator: number of trials; 0 gives [0, 1].
    """
    if denominator == 0:
        return 0.0, 1.0
    interval = binomtest(numerator, denominator).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def rate(numerator: int, denominator: int, of: str) -> dict[str, Any]:
    """Return a rate in the form of the JSON files.

    Args:
        numerator: number of crystals that are counted.
        denominator: number of crystals in all.
        of: description of the crystals in the denominator.
    """
    low, high = wilson_interval(numerator, denominator)
    return {
        "numerator": numerator,
        "denominator": denominator,
        "of": of,
        "value": numerator / denominator if denominator else None,
        "low": low,
        "high": high,
    }


def summary(values: Iterable[float | None], unit: str, of: str) -> dict[str, Any]:
    """Return count, mean with its standard error, median, minimum and maximum of the known values.

    Args:
        values: measurements; None is not counted.
        unit: unit of the values.
        of: description of the crystals that have a value.
    """
    found = np.array([value for value in values if value is not None], dtype=np.float64)
    numbers: dict[str, float | None] = dict.fromkeys(
        ("mean", "standard_error", "median", "min", "max")
    )
    if found.size:
        numbers.update(
            mean=float(found.mean()),
            median=float(np.median(found)),
            min=float(found.min()),
            max=float(found.max()),
        )
    if found.size > 1:
        numbers["standard_error"] = float(found.std(ddof=1) / math.sqrt(found.size))
    return {"count": int(found.size), "unit": unit, "of": of, **numbers}
