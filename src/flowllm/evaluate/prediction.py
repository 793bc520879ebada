"""Crystal structure prediction: how often, and how closely, the test split's crystals are found.

By the rule of CDVAE and its successors: a prediction matches if pymatgen's StructureMatcher with
tolerances 0.3, 0.5, 10 degrees says so, an invalid one never does, and of several attempts at one
crystal the nearest counts. Distances are in units of the cube root of the volume an atom.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowllm.crystal import Crystal
from flowllm.evaluate.matching import LOOSE, rms_distance_or_error
from flowllm.evaluate.statistics import rate, summary
from flowllm.evaluate.validity import (
    is_compositionally_valid,
    is_structurally_valid,
    reduced_composition,
)

LENGTH = "cube root of the volume an atom"


@dataclass(frozen=True)
class Target:
    """A crystal to be found, and the attempts at it.

    Attributes:
        material_id: its id in the test split.
        crystal: what is to be found.
        attempts: predictions in their order, None where one gave no crystal.
    """

    material_id: str
    crystal: Crystal
    attempts: tuple[Crystal | None, ...]


def compare(target: Target, oxidation_states: str) -> dict[str, Any]:
    """Return a row of `schemas.CSP`: the distances of the first and of the nearest attempt.

    Args:
        target: the crystal and the attempts at it.
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
    """Return the distance of a valid attempt that matches, or None and why it failed, if it did."""
    if attempt is None or not is_structurally_valid(attempt):
        return None, None
    return rms_distance_or_error(attempt, target, LOOSE)


def prediction_numbers(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return match rates and mean distances of the first attempt and of the best of all.

    Args:
        rows: of `schemas.CSP`, as many attempts in each.
    """
    total = len(rows)
    first = [row["rmsd_first"] for row in rows]
    best = [row["rmsd_best"] for row in rows]
    # The peers' flag of validity has the composition in it, which is the test crystal's own.
    strict = [row["rmsd_best"] for row in rows if row["compositionally_valid"]]
    return {
        "attempts": max((row["attempts"] for row in rows), default=0),
        "rates": {
            "match_rate_first": rate(_known(first), total, "test crystals"),
            "match_rate": rate(_known(best), total, "test crystals"),
            "match_rate_smact_valid": rate(_known(strict), total, "test crystals"),
        },
        "means": {
            "rmse_first": summary(first, LENGTH, "matches of the first attempt"),
            "rmse": summary(best, LENGTH, "matches of the nearest attempt"),
        },
    }


def _known(values: Sequence[float | None]) -> int:
    return sum(value is not None for value in values)
