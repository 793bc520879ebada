"""Properties per generated crystal, as flags that the rates count."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.evaluate.matching import (
    DEFAULT,
    LOOSE,
    Bucket,
    BucketMatches,
    Tolerances,
    match_bucket,
    rms_distance_or_error,
)
from flowllm.evaluate.parallel import ordered_map
from flowllm.evaluate.requests import Got, asked_columns
from flowllm.evaluate.samples import Sample
from flowllm.evaluate.validity import (
    Composition,
    is_compositionally_valid,
    is_structurally_valid,
    reduced_composition,
)
from flowllm.io import schemas
from flowllm.io.tables import read_table, required_crystal


def measure(sample: Sample, oxidation_states: str) -> dict[str, Any]:
    """Return the properties of one sample: validity, stability, distance to its relaxed state.

    Args:
        sample: the sample.
        oxidation_states: smact's set of oxidation states.

    Returns:
        A row of `schemas.METRICS_PER_CRYSTAL` without uniqueness, novelty and coverage; of
        `schemas.REQUESTED_METRICS` for a draw with conditions, and of
        `schemas.METRICS_WITH_ENERGIES` for a sample whose source may give energies.
    """
    crystal = sample.generated
    known: dict[str, Any] = {}
    if sample.known is not None:
        known = {**sample.known, "formation_energy_per_atom": sample.formation_energy}
    requested: dict[str, Any] = {}
    if sample.asked is not None:
        got = Got(crystal, sample.relaxed, sample.e_above_hull, sample.formation_energy)
        requested = asked_columns(sample.asked, got)
    default, error = _rms_to_relaxed(sample, DEFAULT)
    loose, _ = _rms_to_relaxed(sample, LOOSE)
    return {
        "id": sample.name,
        "source_name": sample.source_name,
        "formula": None if crystal is None else crystal.formula,
        "generated": crystal is not None,
        "num_elements": sample.num_elements,
        "structurally_valid": crystal is not None and is_structurally_valid(crystal),
        "compositionally_valid": crystal is not None
        and is_compositionally_valid(reduced_composition(crystal.atomic_numbers), oxidation_states),
        "relaxed": sample.relaxed is not None,
        "e_above_hull": sample.e_above_hull,
        "check_e_above_hull": sample.check_e_above_hull,
        "hull_compounds": sample.hull_compounds,
        "stable": sample.stable,
        "metastable": sample.metastable,
        "matches_relaxed": default is not None,
        "rmsd_to_relaxed": default,
        "matches_relaxed_loose": loose is not None,
        "rmsd_to_relaxed_loose": loose,
        "error": error,
        **known,
        **requested,
    }


def _rms_to_relaxed(sample: Sample, tolerances: Tolerances) -> tuple[float | None, str | None]:
    """Return the distance of a sample to its relaxed state, or the error of the comparison."""
    if sample.generated is None or sample.relaxed is None:
        return None, None
    distance, error = rms_distance_or_error(sample.generated, sample.relaxed, tolerances)
    return distance, error and f"comparison with the relaxed crystal: {error}"


def match_samples(
    samples: Sequence[Sample],
    references: Mapping[str, Path],
    novelty_sets: Sequence[str],
    workers: int,
) -> BucketMatches:
    """Find the equivalence classes of the relaxed crystals, and the known crystals among them.

    Args:
        samples: all samples; those without a relaxed crystal are left out.
        references: crystal tables by name of the set, e.g. `{"train": crystals/train.parquet}`.
        novelty_sets: names of the sets against which novelty is tested.
        workers: number of worker processes; the result does not depend on it.
    """
    relaxed: dict[Composition, dict[str, Crystal]] = {}
    for sample in samples:
        if sample.relaxed is not None:
            composition = reduced_composition(sample.relaxed.atomic_numbers)
            relaxed.setdefault(composition, {})[sample.name] = sample.relaxed
    stable = frozenset(sample.name for sample in samples if sample.stable)
    known = {name: crystals_by_composition(path, relaxed) for name, path in references.items()}
    buckets = [
        Bucket(
            samples=relaxed[composition],
            stable=stable & set(relaxed[composition]),
            references={name: known[name].get(composition, {}) for name in references},
            novelty_sets=tuple(novelty_sets),
        )
        # Largest bucket first, so that no worker starts a large one at the end.
        for composition in sorted(relaxed, key=lambda one: (-len(relaxed[one]), one))
    ]
    return match_buckets(buckets, list(references), workers)


def match_buckets(
    buckets: Sequence[Bucket], reference_sets: Sequence[str], workers: int
) -> BucketMatches:
    """Match the crystals of every bucket and merge the results.

    Args:
        buckets: one bucket per reduced composition.
        reference_sets: names of the sets of known crystals in every bucket.
        workers: number of worker processes; the result does not depend on it.
    """
    found = ordered_map(match_bucket, buckets, workers=workers, what="matching, compositions")
    return BucketMatches(
        classes=_merged(one.classes for one in found),
        greedy_sun=frozenset().union(*(one.greedy_sun for one in found)),
        known={name: _merged(one.known[name] for one in found) for name in reference_sets},
        failed=_merged(one.failed for one in found),
    )


def crystals_by_composition(
    path: Path, wanted: Iterable[Composition]
) -> dict[Composition, dict[str, Crystal]]:
    """Read the crystals of the wanted compositions from a table of crystals.

    Raises:
        FlowllmError: the file is missing or damaged, a row has no crystal, or two rows have one id.
    """
    wanted = set(wanted)
    numbers = read_table(path, schemas.CRYSTALS, ["atomic_numbers"]).column(0).to_pylist()
    compositions = [reduced_composition(row) for row in numbers]
    indices = [index for index, found in enumerate(compositions) if found in wanted]
    columns = ["id", "atomic_numbers", "frac_coords", "lengths", "angles"]
    rows = (
        read_table(path, schemas.CRYSTALS, columns).take(pa.array(indices, pa.int64())).to_pylist()
    )
    by_composition: dict[Composition, dict[str, Crystal]] = {}
    for index, row in zip(indices, rows, strict=True):
        found = by_composition.setdefault(compositions[index], {})
        if row["id"] in found:
            raise FlowllmError(
                f"{path}: two crystals have the id {row['id']}, of which only one would be known; "
                "give each its own"
            )
        found[row["id"]] = required_crystal(row, path)
    return by_composition


def _merged(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    return {key: value for part in parts for key, value in part.items()}


def is_valid(row: Mapping[str, Any]) -> bool:
    """Return whether a crystal is valid: its structure, its composition, and it has fingerprints.

    By the rule of CDVAE and its successors, a crystal without fingerprints is invalid.
    """
    flags = ("structurally_valid", "compositionally_valid", "fingerprinted")
    return all(row[flag] for flag in flags)


def novel_names(matches: BucketMatches, sets: Sequence[str]) -> set[str]:
    """Return the ids of the samples that match nothing in the named sets of known crystals."""
    return {
        name for name in matches.classes if not any(name in matches.known[each] for each in sets)
    }


def first_of_each_class(names: Iterable[str], classes: Mapping[str, str]) -> set[str]:
    """Return the smallest of the given names in each class."""
    first: dict[str, str] = {}
    for name in sorted(names):
        first.setdefault(classes[name], name)
    return set(first.values())


def add_matches(
    rows: Sequence[dict[str, Any]], matches: BucketMatches, novelty_sets: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows of `measure` completed by uniqueness, novelty and S.U.N.

    A class counts once for S.U.N.: its first stable and novel member does (paper, appendix D). A
    crystal that could not be compared is neither unique nor novel.

    Args:
        rows: one row per sample.
        matches: classes and known crystals.
        novelty_sets: names of the sets against which novelty is tested, e.g. `train`.
    """
    novel = novel_names(matches, novelty_sets)
    unique = first_of_each_class(matches.classes, matches.classes)
    stable = {row["id"] for row in rows if row["stable"]}
    sun = first_of_each_class(stable & novel, matches.classes)
    completed = []
    for row in rows:
        name = row["id"]
        known = (matches.known[each].get(name) for each in novelty_sets)
        completed.append(
            {
                **row,
                "duplicate_group": matches.classes.get(name),
                "unique": name in unique,
                "novel": name in novel,
                "matched_material_id": next((found for found in known if found), None),
                "sun": name in sun,
                "error": row["error"] or matches.failed.get(name),
            }
        )
    return completed
