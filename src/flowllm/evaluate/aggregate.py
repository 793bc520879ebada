"""Numbers of one method, aggregated over its crystals: the content of metrics/*/{method}.json.

The denominator of every rate is all draws, failed ones included, unless `of` names another. The
numbers do not depend on the time, the machine or the number of workers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from flowllm.config.sections.evaluation import Metrics
from flowllm.crystal import MIN_DISTANCE
from flowllm.evaluate.agreement import agreement
from flowllm.evaluate.coverage import (
    COMPOSITION_CUTOFF,
    STRUCTURE_CUTOFF,
    Fingerprints,
    covered,
    drawn_for_distances,
    property_distance,
)
from flowllm.evaluate.estimates import estimated_rates
from flowllm.evaluate.known_energies import known_agreement
from flowllm.evaluate.matching import DEFAULT, LENGTH_UNIT, LOOSE, BucketMatches
from flowllm.evaluate.per_crystal import first_of_each_class, is_valid, novel_names
from flowllm.evaluate.protocols import protocol_rates
from flowllm.evaluate.requests import wish_rates
from flowllm.evaluate.samples import Sample, Sources
from flowllm.evaluate.screening import NOT_RELAXED
from flowllm.evaluate.statistics import rate, summary
from flowllm.evaluate.validity import MIN_VOLUME
from flowllm.io import schemas
from flowllm.io.tables import read_table
from flowllm.seeds import generator

FORMAT = 5
"""Version of the JSON's form; raise it when a key changes its name or meaning."""

ALL = "all generated"

NOVELTY_SETS = {"train": ("train",), "train_val": ("train", "val")}

KNOWN = "known"
"""Name of the set of further known crystals (metrics.known_crystals)."""

Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """The data from which the numbers of a method are computed.

    Attributes:
        samples: the draws.
        sources: origin of their energies, hull and settings.
        matches: equivalence classes and known crystals.
        fingerprints: fingerprints of the generated crystals, in the order of the samples.
        test_fingerprints: fingerprints of the test split.
        rows: completed rows of `schemas.METRICS_PER_CRYSTAL`, in the order of the samples.
    """

    samples: Sequence[Sample]
    sources: Sources
    matches: BucketMatches
    fingerprints: Fingerprints
    test_fingerprints: Fingerprints
    rows: Records


def all_numbers(evaluation: Evaluation, settings: Metrics, seed: int, test: Path) -> dict[str, Any]:
    """Return every number of a method, in the form of its JSON.

    Args:
        evaluation: data of the method.
        settings: section `metrics` of the configuration.
        seed: seed of the configuration; it selects the crystals of the property distances.
        test: table of the test split.
    """
    rows, sources, samples = evaluation.rows, evaluation.sources, evaluation.samples
    prints = (evaluation.fingerprints, evaluation.test_fingerprints)
    rng = generator(seed, "metrics", "distances")
    known = known_agreement(rows, sources.stability_rule)
    return {
        "protocol": protocol(sources, settings),
        "sampling": {
            "base": sources.base_row,
            "sample_base": sources.base_section,
            "setting": sources.method_row,
            "external": sources.external_row,
        },
        "counts": counts(samples, evaluation.fingerprints),
        "rates": rates(rows, evaluation.matches, sources)
        | coverage_rates(rows, *prints)
        | cost_rates(rows, samples),
        "estimates": estimated_rates(samples),
        "protocols": protocol_rates(rows),
        "check": agreement(rows, sources.stability_rule, sources.check_sources),
        "means": means(rows, samples),
        "distances": property_distances(rows, *prints, rng),
        "histograms": histograms(rows, test),
        **({"wishes": wish_rates(rows)} if rows and "asked" in rows[0] else {}),
        **({"known": known} if known else {}),
    }


def protocol(sources: Sources, settings: Metrics) -> dict[str, Any]:
    """Return the energies, hull, thresholds, matcher, rules and versions behind the numbers."""
    return {
        "energies": sources.kind,
        "energies_are_estimates": sources.kind == "potential",
        "energy_sources": list(sources.energy_sources),
        "hull_sources": list(sources.hull_sources),
        "hull_compositions": sources.hull_compositions,
        "hull_not_converged": sources.hull_not_converged,
        "correction_schemes": list(sources.correction_schemes),
        "stability_rule": sources.stability_rule,
        "matcher": {"name": "pymatgen StructureMatcher", **asdict(DEFAULT)},
        "loose_matcher": {"name": "pymatgen StructureMatcher", **asdict(LOOSE)},
        "novelty_against": settings.novelty_against,
        "known_crystals": settings.known_crystals,
        "oxidation_states": settings.oxidation_states,
        "min_distance": MIN_DISTANCE,
        "min_volume": MIN_VOLUME,
        "coverage_cutoffs": {"structure": STRUCTURE_CUTOFF, "composition": COMPOSITION_CUTOFF},
        "matminer": version("matminer"),
        "pymatgen": version("pymatgen"),
        "smact": version("SMACT"),
    }


def counts(samples: Sequence[Sample], fingerprints: Fingerprints) -> dict[str, Any]:
    """Return the number of crystals per status at each stage, and the number of drafts."""
    unfinished = sum(sample.relaxed is not None and not sample.converged for sample in samples)
    return {
        "drawn": len(samples),
        "base": _counted(sample.base_status for sample in samples),
        "generated": _counted(sample.generated_status for sample in samples),
        "relaxed": _counted(sample.relaxed_status for sample in samples),
        "not_converged": unfinished,
        "fingerprints": _counted(fingerprints.status),
        "llm_drafts": sum(sample.attempts for sample in samples),
        "llm_rejections": _counted(reason for one in samples for reason in one.rejections),
    }


def rates(rows: Records, matches: BucketMatches, sources: Sources) -> dict[str, Any]:
    """Return every rate with numerator, denominator and 95 % interval."""
    return {
        **_validity_rates(rows),
        **_stability_rates(rows, matches),
        **_variants(rows, matches, sources),
        **_match_rates(rows),
    }


def cost_rates(rows: Records, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return S.U.N. per relaxation by the potential, per DFT run, and per candidate's DFT run.

    A class counts for the candidates if one of them is stable and novel, although the crystal that
    counts for S.U.N. may be one of the control sample.
    """
    sun = {row["id"] for row in rows if row["sun"]}
    relaxations = sum(
        one.generated is not None and one.relaxed_status not in NOT_RELAXED for one in samples
    )
    runs = [one.name for one in samples if one.taken_as]
    candidates = {one.name for one in samples if one.taken_as == "candidate"}
    found = {
        row["duplicate_group"]
        for row in rows
        if row["id"] in candidates and row["stable"] and row["novel"]
    }
    return {
        "sun_per_relaxation": rate(len(sun), relaxations, "relaxations by the potential"),
        "sun_per_dft_run": rate(len(sun & set(runs)), len(runs), "DFT runs"),
        "sun_per_candidate": rate(len(found), len(candidates), "DFT runs of candidates"),
    }


def _validity_rates(rows: Records) -> dict[str, Any]:
    total = len(rows)
    valid = sum(map(is_valid, rows))
    return {
        "generated": rate(_count(rows, "generated"), total, ALL),
        "structural_validity": rate(_count(rows, "structurally_valid"), total, ALL),
        "compositional_validity": rate(_count(rows, "compositionally_valid"), total, ALL),
        "validity": rate(valid, total, ALL),
    }


def coverage_rates(rows: Records, generated: Fingerprints, test: Fingerprints) -> dict[str, Any]:
    """Return the coverage of the test split (recall) and of the generated crystals (precision)."""
    valid = [row for row in rows if is_valid(row)]
    precise, precise_valid = _count(rows, "covered"), _count(valid, "covered")
    recalled = int(covered(test, generated).sum())
    return {
        "coverage_recall": rate(recalled, len(test.names), "test split"),
        "coverage_precision": rate(precise, len(rows), ALL),
        # The denominator of crystal-text-llm, which gives higher values.
        "coverage_precision_of_valid": rate(precise_valid, len(valid), "valid"),
        "fingerprinted": rate(_count(rows, "fingerprinted"), len(rows), ALL),
    }


def property_distances(
    rows: Records, generated: Fingerprints, test: Fingerprints, rng: np.random.Generator
) -> dict[str, Any]:
    """Return Wasserstein distances of density and number of elements to the test split.

    Args:
        rows: properties per crystal, in the order of `generated`.
        generated: fingerprints of the generated crystals.
        test: fingerprints of the test split.
        rng: selects the 1,000 valid crystals that the peers use.
    """
    valid = [index for index, row in enumerate(rows) if is_valid(row)]
    drawn = drawn_for_distances(valid, rng)
    found = {}
    for name, unit in (("density", "g/cm3"), ("num_elements", "elements")):
        values, reference = getattr(generated, name), getattr(test, name)
        reference = reference[np.isfinite(reference)]
        for suffix, indices in (("", drawn), ("_all_valid", np.array(valid, dtype=np.int64))):
            found[f"wasserstein_{name}{suffix}"] = {
                "value": property_distance(values[indices], reference),
                "unit": unit,
                "count": len(indices),
                "reference_count": len(reference),
            }
    return found


def _stability_rates(rows: Records, matches: BucketMatches) -> dict[str, Any]:
    """Return the rates by the configured rules (paper, equations 17 and 18) and their factors."""
    total = len(rows)
    relaxed, stable = _count(rows, "relaxed"), _count(rows, "stable")
    unique = sum(row["unique"] for row in rows)
    novel = {row["id"] for row in rows if row["novel"]}
    stable_novel = sum(row["stable"] and row["novel"] for row in rows)
    metastable = {row["id"] for row in rows if row["metastable"]}
    sun = _count(rows, "sun")
    compounds = [row["hull_compounds"] for row in rows if row["e_above_hull"] is not None]
    several = [count for count in compounds if count is not None]
    metastable_sun = first_of_each_class(metastable & novel, matches.classes)
    return {
        "relaxed": rate(relaxed, total, ALL),
        "placed_on_hull": rate(sum(row["e_above_hull"] is not None for row in rows), total, ALL),
        "bare_hull": rate(several.count(0), len(several), "placed on hull, several elements"),
        "metastability_rate": rate(len(metastable), total, ALL),
        "stability_rate": rate(stable, total, ALL),
        "uniqueness": rate(unique, total, ALL),
        "novelty": rate(len(novel), total, ALL),
        "unique_of_relaxed": rate(unique, relaxed, "relaxed"),
        "novel_of_relaxed": rate(len(novel), relaxed, "relaxed"),
        "sun_rate": rate(sun, total, ALL),
        "metastable_sun_rate": rate(len(metastable_sun), total, ALL),
        "novel_of_stable": rate(stable_novel, stable, "stable"),
        "unique_of_stable_novel": rate(sun, stable_novel, "stable and novel"),
    }


def _variants(rows: Records, matches: BucketMatches, sources: Sources) -> dict[str, Any]:
    """Return both variants of each rule on which the paper and the authors' code differ."""
    total = len(rows)
    rule = sources.stability_rule
    placed = [
        row
        for row in rows
        if row["e_above_hull"] is not None and (row["num_elements"] or 0) >= rule["min_elements"]
    ]
    below = sum(row["e_above_hull"] < rule["stable_below"] for row in placed)
    at_most = sum(row["e_above_hull"] <= rule["stable_below"] for row in placed)
    stable = {row["id"] for row in rows if row["stable"]}
    against_train = novel_names(matches, NOVELTY_SETS["train"])
    against_both = novel_names(matches, NOVELTY_SETS["train_val"])
    sun_train = first_of_each_class(stable & against_train, matches.classes)
    sun_both = first_of_each_class(stable & against_both, matches.classes)
    return {
        "stability_rate_below": rate(below, total, ALL),
        "stability_rate_at_most": rate(at_most, total, ALL),
        "novelty_train": rate(len(against_train), total, ALL),
        "novelty_train_val": rate(len(against_both), total, ALL),
        "sun_rate_train": rate(len(sun_train), total, ALL),
        "sun_rate_train_val": rate(len(sun_both), total, ALL),
        "sun_rate_greedy": rate(len(matches.greedy_sun), total, ALL),
    }


def _match_rates(rows: Records) -> dict[str, Any]:
    total, relaxed = len(rows), _count(rows, "relaxed")
    default, loose = _count(rows, "matches_relaxed"), _count(rows, "matches_relaxed_loose")
    return {
        "match_rate": rate(default, total, ALL),
        "match_rate_of_relaxed": rate(default, relaxed, "relaxed"),
        "match_rate_loose": rate(loose, total, ALL),
        "match_rate_loose_of_relaxed": rate(loose, relaxed, "relaxed"),
    }


def means(rows: Records, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the means of the paper's table 2 and of E_hull, over the crystals with a value."""
    per_atom = [_energy_drop(sample) for sample in samples]
    per_cell = [
        None if drop is None or sample.relaxed is None else drop * sample.relaxed.num_atoms
        for drop, sample in zip(per_atom, samples, strict=True)
    ]
    steps = [sample.num_steps if sample.relaxed is not None else None for sample in samples]
    loose = (row["rmsd_to_relaxed_loose"] for row in rows)
    return {
        "rmsd": summary((row["rmsd_to_relaxed"] for row in rows), LENGTH_UNIT, "matches"),
        "rmsd_loose": summary(loose, LENGTH_UNIT, "matches, loose matcher"),
        "delta_energy_per_atom": summary(per_atom, "eV/atom", "relaxed"),
        "delta_energy_per_cell": summary(per_cell, "eV", "relaxed"),
        "num_steps": summary(steps, "steps", "relaxed"),
        "e_above_hull": summary((row["e_above_hull"] for row in rows), "eV/atom", "placed on hull"),
    }


def histograms(rows: Records, test: Path) -> dict[str, Any]:
    """Return the number of crystals per number of elements, generated and in the test split."""
    numbers = read_table(test, schemas.CRYSTALS, ["atomic_numbers"]).column(0).to_pylist()
    return {
        "num_elements": {
            "generated": _counted(row["num_elements"] for row in rows if row["generated"]),
            "test": _counted(len(set(row)) for row in numbers),
        }
    }


def _energy_drop(sample: Sample) -> float | None:
    """Return the decrease of the energy by relaxation, eV per atom; None if one is unknown."""
    if sample.relaxed is None or sample.initial_energy is None or sample.final_energy is None:
        return None
    return sample.initial_energy - sample.final_energy


def _count(rows: Records, flag: str) -> int:
    return sum(bool(row[flag]) for row in rows)


def _counted(values: Iterable[Any]) -> dict[str, int]:
    """Return the number of occurrences per value, as text, in the order of the values."""
    found = Counter(values)
    return {str(key): found[key] for key in sorted(found)}
