"""Other groups' definitions of stable and S.U.N., kept apart from this package's by their names.

Only the counting rules are theirs; energies, hull, known crystals and rules of validity are this
run's. Both protocols keep the first crystal of each class of duplicates before they test novelty
and stability, and neither requires two elements. LeMat-GenBench considers valid crystals only, also
in its denominators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowllm.evaluate.per_crystal import first_of_each_class, is_valid
from flowllm.evaluate.statistics import rate

ALL = "all generated"
VALID = "valid"


@dataclass(frozen=True)
class Protocol:
    """Thresholds of one group.

    Attributes:
        name: name of the protocol.
        source: the code that states the thresholds.
        stable_at_most: energy above the hull in eV/atom, inclusive.
        metastable_at_most: energy above the hull in eV/atom, stable crystals excluded; None where
            the protocol does not define it.
        only_valid: whether invalid crystals are excluded, also from the denominator.
    """

    name: str
    source: str
    stable_at_most: float
    metastable_at_most: float | None
    only_valid: bool


PROTOCOLS = (
    Protocol("MatterGen", "mattergen/evaluation, version of 2026-07", 0.1, None, only_valid=False),
    Protocol(
        "LeMat-GenBench", "lemat_genbench/metrics, version of 2026-02", 0.0, 0.1, only_valid=True
    ),
)


def protocol_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rates and thresholds of every protocol, by its name.

    Args:
        rows: completed rows of `schemas.METRICS_PER_CRYSTAL`.
    """
    return {protocol.name: _rates(rows, protocol) for protocol in PROTOCOLS}


def _rates(rows: Sequence[Mapping[str, Any]], protocol: Protocol) -> dict[str, Any]:
    of = VALID if protocol.only_valid else ALL
    rows = [row for row in rows if is_valid(row)] if protocol.only_valid else rows
    total = len(rows)
    low, high = protocol.stable_at_most, protocol.metastable_at_most
    classes = {row["id"]: row["duplicate_group"] for row in rows if row["duplicate_group"]}
    unique = first_of_each_class(classes, classes)
    first_and_novel = [row["id"] in unique and row["novel"] for row in rows]
    stable = [_within(row, None, low) for row in rows]
    found = {
        "source": protocol.source,
        "stable_at_most": low,
        "metastable_at_most": high,
        "of": of,
        "stability_rate": rate(sum(stable), total, of),
        "sun_rate": rate(_both(stable, first_and_novel), total, of),
    }
    if high is not None:
        metastable = [_within(row, low, high) for row in rows]
        found["metastability_rate"] = rate(sum(metastable), total, of)
        found["metastable_sun_rate"] = rate(_both(metastable, first_and_novel), total, of)
    return found


def _within(row: Mapping[str, Any], above: float | None, at_most: float) -> bool:
    """Return whether E_hull is known, above one bound, and at most another."""
    energy = row["e_above_hull"]
    return energy is not None and energy <= at_most and (above is None or energy > above)


def _both(first: Sequence[bool], second: Sequence[bool]) -> int:
    return sum(one and other for one, other in zip(first, second, strict=True))
