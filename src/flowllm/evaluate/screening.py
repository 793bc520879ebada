"""Generated crystals that are not relaxed, since they are known or repeat an earlier draft."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flowllm.crystal import Crystal
from flowllm.evaluate.matching import ReducedCrystal, first_match, reduced_crystals

Screen = Literal["known", "repeated"]

NOT_RELAXED: tuple[Screen, ...] = ("known", "repeated")
"""Statuses of crystals that the stage select excludes from the relaxation."""


@dataclass(frozen=True)
class Drafts:
    """All generated crystals of one reduced composition: the unit of parallel work.

    Attributes:
        samples: generated crystals by id; ids ascend in the order of the draws.
        known: known crystals by id, one mapping per table: an id may be in several.
    """

    samples: Mapping[str, Crystal]
    known: Sequence[Mapping[str, Crystal]]


@dataclass(frozen=True)
class Excluded:
    """Why a crystal is not relaxed.

    Attributes:
        status: `known` or `repeated`.
        matched: id of the known crystal, or of the earlier draft, that it matches.
    """

    status: Screen
    matched: str


def exclude(drafts: Drafts, skip: Collection[Screen]) -> dict[str, Excluded]:
    """Return the crystals that need no relaxation, by id.

    A crystal is compared with the known crystals, table after table, then with the earlier drafts
    that are relaxed, in the order of the ids. Only direct matches count, so that the crystal which
    is relaxed in its place matches it. A crystal that cannot be compared is relaxed.

    Args:
        drafts: crystals of one composition.
        skip: what is excluded.
    """
    samples, _ = reduced_crystals(drafts.samples)
    tables = drafts.known if "known" in skip else []
    known = [one for table in tables for one in reduced_crystals(table)[0]]
    excluded: dict[str, Excluded] = {}
    kept: list[ReducedCrystal] = []
    for sample in samples:
        if (match := first_match(sample, known)) is not None:
            excluded[sample.name] = Excluded("known", match)
        elif "repeated" in skip and (match := first_match(sample, kept)) is not None:
            excluded[sample.name] = Excluded("repeated", match)
        else:
            kept.append(sample)
    return excluded
