"""Rates with their numerators, denominators and intervals, and summaries of measured values."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


def wilson_interval(numerator: int, denominator: int, z: float = Z_95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (Wilson 1927, as in Brown et al. 2001).

    Unlike the interval of the plain normal approximation it stays within [0, 1] and has a positive
    width at 0 of n and n of n, which small runs reach.

    Args:
        numerator: number of successes.
        denominator: number of trials; 0 gives the whole of [0, 1].
        z: normal quantile of the confidence level.
    """
    if denominator == 0:
        return 0.0, 1.0
    share = numerator / denominator
    weight = 1 + z * z / denominator
    centre = share + z * z / (2 * denominator)
    half = z * math.sqrt(share * (1 - share) / denominator + z * z / (4 * denominator**2))
    # At the ends the bounds are 0 and 1 exactly; rounding must not put them just beside.
    low = 0.0 if numerator == 0 else (centre - half) / weight
    high = 1.0 if numerator == denominator else (centre + half) / weight
    return low, high


def rate(numerator: int, denominator: int, of: str) -> dict[str, Any]:
    """Return a rate as the JSON files hold it.

    Args:
        numerator: number of crystals that count.
        denominator: number of crystals it is a share of.
        of: what the denominator is, in words.
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
    """Return count, mean with its standard error, median and extremes of the values that are there.

    Args:
        values: measurements; None is not counted.
        unit: their unit, in words.
        of: which crystals they are of, in words.
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
