"""Crystal structure prediction: match rate and distance to the crystals of the test split.

The rule is that of CDVAE and its successors. A prediction matches if it is structurally valid and
pymatgen's StructureMatcher with tolerances 0.3, 0.5 and 10 degrees matches it. Of several attempts
at one crystal the nearest counts. Distances are in units of `matching.LENGTH_UNIT`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowllm.crystal import Crystal
from flowllm.evaluate.matching import LENGTH_UNIT, LOOSE, rms_distance_or_error
from flowllm.evaluate.statistics import rate, summary
from flowllm.evaluate.validity import (
    is_compositionally_valid,
    is_structurally_valid,
    reduced_composition,
)


@dataclass(frozen=True)
class Target:
    """A crystal of the test split, and the attempts to predict it.

    Attributes:
        material_id: id in the test split.
        crystal: the crystal of the test split.
        attempts: predictions in the order of their draws, None for one without a crystal.
    """

    material_id: str
    crystal: Crystal
    attempts: tuple[Crystal | None, ...]


def compare(target: Target, oxidation_states: str) -> dict[str, Any]:
    """Return a row of `schemas.CSP`: the distances of the first and of the nearest attempt.

    Args:
        target: the crystal and the attempts to predict it.
        oxidation_states: smact's set of oxidation states.
    """
    found = [_distance(target.crystal, attempt) for attempt in target.attempts]
    distances = [distance for distance, _ in found if distance is not None]
    composition = reduced_composition(target.crystal.atomic_numbers)
    return {
        "material_id": target.material_id,
        "formula": target.crystal.formula,
        "attempts": len(found),
        "matches": len(distances),
        "rmsd_first": found[0][0],
        "rmsd_best": min(distances, default=None),
        "compositionally_valid": is_compositionally_valid(composition, oxidation_states),
        "error": next((error for _, error in found if error), None),
    }


def _distance(target: Crystal, attempt: Crystal | None) -> tuple[float | None, str | None]:
    """Return the distance of a valid attempt that matches, else None; and the error, if any."""
    if attempt is None or not is_structurally_valid(attempt):
        return None, None
    return rms_distance_or_error(attempt, target, LOOSE)


def prediction_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return match rates and mean distances of the first and of the best attempts.

    Args:
        rows: rows of `schemas.CSP`, with one number of attempts.
    """
    total = len(rows)
    first = [row["rmsd_first"] for row in rows]
    best = [row["rmsd_best"] for row in rows]
    # The peers' validity includes that of the composition, although the composition is given.
    strict = [row["rmsd_best"] for row in rows if row["compositionally_valid"]]
    return {
        "attempts": max((row["attempts"] for row in rows), default=0),
        "rates": {
            "match_rate_first": rate(_num_known(first), total, "test crystals"),
            "match_rate": rate(_num_known(best), total, "test crystals"),
            "match_rate_smact_valid": rate(_num_known(strict), total, "test crystals"),
        },
        "means": {
            "rmse_first": summary(first, LENGTH_UNIT, "matches of the first attempt"),
            "rmse": summary(best, LENGTH_UNIT, "matches of the nearest attempt"),
        },
    }


def _num_known(values: Sequence[float | None]) -> int:
    return sum(value is not None for value in values)
