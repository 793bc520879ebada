"""Agreement of the run's energies with those that the source of the crystals gives, e.g. by DFT."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowllm.evaluate.agreement import bounds, pearson, spearman
from flowllm.evaluate.statistics import rate, summary

KNOWN = "with both energies"


def known_agreement(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Compare energies above the hull and formation energies with the known ones.

    A known energy above the hull is never below 0 where the crystal is itself an entry of that
    hull, as in the Materials Project: such a crystal is stable at 0. The run's own distance is to a
    hull without the crystal, and can be negative. Therefore a known value counts as stable at
    `stable_below` too, whatever `inclusive` says.

    Args:
        rows: rows of `schemas.METRICS_WITH_ENERGIES`.
        rule: section `stability` of the configuration.

    Returns:
        None for rows without the columns of known energies.
    """
    if not rows or "known_e_above_hull" not in rows[0]:
        return None
    ours, known, enough = _pairs(rows, "e_above_hull", "known_e_above_hull", rule["min_elements"])
    found: dict[str, Any] = {"rates": {}}
    of_known = bounds({**rule, "inclusive": True})
    for name, bound in bounds(rule).items():
        first, second = bound(ours) & enough, of_known[name](known) & enough
        both = int((first & second).sum())
        found["rates"] |= {
            f"agree_{name}": rate(int((first == second).sum()), len(ours), KNOWN),
            f"ours_{name}": rate(int(first.sum()), len(ours), KNOWN),
            f"known_{name}": rate(int(second.sum()), len(ours), KNOWN),
            f"confirmed_{name}": rate(both, int(first.sum()), f"{name} in this run"),
            f"found_{name}": rate(both, int(second.sum()), f"{name} by the known energy"),
        }
    formed = _pairs(rows, "formation_energy_per_atom", "known_formation_energy", 1)
    found["correlations"], found["differences"] = {}, {}
    for name, (first, second) in (("e_above_hull", (ours, known)), ("formation", formed[:2])):
        found["correlations"] |= {
            f"pearson_{name}": pearson(first, second),
            f"spearman_{name}": spearman(first, second),
        }
        errors = first - second
        found["differences"] |= {
            f"difference_{name}": summary(errors.tolist(), "eV/atom", KNOWN),
            f"absolute_{name}": summary(np.abs(errors).tolist(), "eV/atom", KNOWN),
        }
    return found


def _pairs(
    rows: Sequence[Mapping[str, Any]], first: str, second: str, min_elements: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both energies of the rows that have both, and whether they have enough elements."""
    both = [row for row in rows if row[first] is not None and row[second] is not None]
    return (
        np.array([row[first] for row in both], dtype=np.float64),
        np.array([row[second] for row in both], dtype=np.float64),
        np.array([row["num_elements"] >= min_elements for row in both], dtype=bool),
    )
