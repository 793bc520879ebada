"""Crystal structure prediction: match rate and distance to the crystals of the test split.

The rule is that of CDVAE and its successors. A prediction matches if it is structurally valid and
pymatgen's StructureMatcher with tolerances 0.3, 0.5 and 10 degrees matches it. Of several attempts
at one crystal the nearest counts. Distances are in units of `matching.LENGTH_UNIT`.

A formula can have several crystals in the test split (polymorphs), of which a prediction may match
another one than that for which it was drawn. METRe (match everyone to reference) is therefore the
share of the test crystals that some prediction of any test crystal matches, and cRMSE the mean
distance over all test crystals, in which the tolerance `stol` counts for one without a match
(Martirossyan et al. 2025, arXiv 2509.12178).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
        others_first: first attempts at other test crystals, of this crystal's reduced composition.
        others_later: the later attempts at other test crystals, likewise.
    """

    material_id: str
    crystal: Crystal
    attempts: tuple[Crystal | None, ...]
    others_first: tuple[Crystal, ...] = ()
    others_later: tuple[Crystal, ...] = ()


def with_polymorphs(targets: Sequence[Target]) -> list[Target]:
    """Give each target the attempts at the others that have its reduced composition.

    Only those can match. The composition that counts is that of the attempt, which can differ from
    the formula that it was drawn for.
    """
    pool: dict[Any, list[tuple[int, int, Crystal]]] = {}
    for number, target in enumerate(targets):
        for attempt, crystal in enumerate(target.attempts):
            if crystal is not None:
                key = reduced_composition(crystal.atomic_numbers)
                pool.setdefault(key, []).append((number, attempt, crystal))
    found = []
    for number, target in enumerate(targets):
        same = pool.get(reduced_composition(target.crystal.atomic_numbers), [])
        others = [(attempt, crystal) for whose, attempt, crystal in same if whose != number]
        first = tuple(crystal for attempt, crystal in others if attempt == 0)
        later = tuple(crystal for attempt, crystal in others if attempt > 0)
        found.append(replace(target, others_first=first, others_later=later))
    return found


def compare(target: Target, oxidation_states: str) -> dict[str, Any]:
    """Return a row of `schemas.CSP`: the distances of the first and of the nearest attempt.

    Args:
        target: the crystal and the attempts to predict it.
        oxidation_states: smact's set of oxidation states.
    """
    found = [_distance(target.crystal, attempt) for attempt in target.attempts]
    distances = [distance for distance, _ in found if distance is not None]
    first, later = (
        [_distance(target.crystal, other) for other in others]
        for others in (target.others_first, target.others_later)
    )
    composition = reduced_composition(target.crystal.atomic_numbers)
    return {
        "material_id": target.material_id,
        "formula": target.crystal.formula,
        "attempts": len(found),
        "matches": len(distances),
        "rmsd_first": found[0][0],
        "rmsd_best": min(distances, default=None),
        "rmsd_any_first": _nearest([found[0], *first]),
        "rmsd_any": _nearest([*found, *first, *later]),
        "compositionally_valid": is_compositionally_valid(composition, oxidation_states),
        "error": next((error for _, error in [*found, *first, *later] if error), None),
    }


def _nearest(found: Sequence[tuple[float | None, str | None]]) -> float | None:
    """Return the smallest distance of some results of `_distance`, None without any."""
    return min((distance for distance, _ in found if distance is not None), default=None)


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
    any_first = [row["rmsd_any_first"] for row in rows]
    any_best = [row["rmsd_any"] for row in rows]
    corrected = f"test crystals; {LOOSE.stol:g} for one without a match"
    return {
        "attempts": max((row["attempts"] for row in rows), default=0),
        "rates": {
            "match_rate_first": rate(_num_known(first), total, "test crystals"),
            "match_rate": rate(_num_known(best), total, "test crystals"),
            "match_rate_smact_valid": rate(_num_known(strict), total, "test crystals"),
            "metre_first": rate(_num_known(any_first), total, "test crystals"),
            "metre": rate(_num_known(any_best), total, "test crystals"),
        },
        "means": {
            "rmse_first": summary(first, LENGTH_UNIT, "matches of the first attempt"),
            "rmse": summary(best, LENGTH_UNIT, "matches of the nearest attempt"),
            "crmse_first": summary(_corrected(any_first), LENGTH_UNIT, corrected),
            "crmse": summary(_corrected(any_best), LENGTH_UNIT, corrected),
        },
    }


def _corrected(values: Sequence[float | None]) -> list[float]:
    """Return the distances with the matcher's `stol` for those without a match."""
    return [LOOSE.stol if value is None else value for value in values]


def _num_known(values: Sequence[float | None]) -> int:
    return sum(value is not None for value in values)
