"""Every metric of one method: validity, stability, uniqueness, novelty, S.U.N., distance moved."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from cyclopts.types import PositiveInt

from flowllm.config.sections.evaluation import Metrics
from flowllm.config.stage_settings import StageSettings
from flowllm.evaluate.aggregate import FORMAT, KNOWN, NOVELTY_SETS, Evaluation, all_numbers
from flowllm.evaluate.coverage import Fingerprints, add_coverage, read_fingerprints
from flowllm.evaluate.known_energies import add_train_distances
from flowllm.evaluate.matching import BucketMatches
from flowllm.evaluate.parallel import ordered_map
from flowllm.evaluate.per_crystal import add_matches, match_samples, measure
from flowllm.evaluate.samples import Sample, Sources, check_ids, read_samples
from flowllm.io import schemas
from flowllm.io.files import write_text
from flowllm.io.shards import Shards
from flowllm.io.tables import write_table
from flowllm.runtime.descent import check_computed_from, check_descends_from, check_same_input
from flowllm.runtime.log import log
from flowllm.runtime.provenance import stage_run


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    metrics: Metrics


def run(
    settings: Settings,
    *,
    base: Shards,
    generated: Shards,
    relaxed: Shards,
    stability: Path,
    fingerprints: Path,
    test_fingerprints: Path,
    crystals: Path,
    out: Path,
    workers: PositiveInt = 1,
) -> None:
    """Compute every metric of one method.

    Args:
        settings: section `metrics`.
        base: Shards of base crystals: files, or FOLDER=COUNT. Repeat the option for each.
        generated: Shards of generated crystals, likewise.
        relaxed: Shards of relaxed crystals, likewise, or the one table of DFT results.
        stability: Table of stability with the same energies.
        fingerprints: Fingerprints of the generated crystals.
        test_fingerprints: Fingerprints of the test split.
        crystals: Folder of train.parquet, val.parquet and test.parquet.
        out: JSON file to write ({method}.json); the metrics per crystal are written to the same
            name with .parquet.
        workers: Number of worker processes; the result does not depend on it.

    Raises:
        FlowllmError: an input is missing, has another schema, or belongs to another run.
    """
    splits = {name: crystals / f"{name}.parquet" for name in ("train", "val", "test")}
    inputs: dict[str, Path | Sequence[Path]] = {
        "base": base,
        "generated": generated,
        "relaxed": relaxed,
        "stability": stability,
        "fingerprints": fingerprints,
        "test_fingerprints": test_fingerprints,
        **splits,
    }
    if settings.metrics.known_crystals is not None:
        inputs["known"] = Path(settings.metrics.known_crystals)
    with stage_run(settings, inputs=inputs, output=out) as run:
        samples, sources = read_samples(base, generated, relaxed, stability)
        _check_descent(base, generated, relaxed, stability)
        prints, test_prints = read_fingerprints(fingerprints), read_fingerprints(test_fingerprints)
        check_ids([one.name for one in samples], prints.names, fingerprints, complete=True)
        check_computed_from([fingerprints], "crystals", generated)
        check_computed_from([test_fingerprints], "crystals", [splits["test"]])
        evaluation = _evaluate(
            settings.metrics, splits, samples, sources, (prints, test_prints), workers
        )
        numbers: dict[str, Any] = {"format": FORMAT, "setting": out.stem}
        numbers |= all_numbers(evaluation, settings.metrics, settings.seed, splits["test"])
        rows = evaluation.rows
        run.count(
            rows_in=len(samples),
            rows_out=len(rows),
            rows_failed=sum(row["error"] is not None for row in rows),
        )
        write_table(out.with_suffix(".parquet"), rows, _schema_of(samples), run.metadata())
        write_text(out, json.dumps(numbers, indent=1) + "\n")
        _log_rates(numbers["rates"])


def _schema_of(samples: Sequence[Sample]) -> pa.Schema:
    """Return the schema of the metrics per crystal."""
    if any(sample.asked is not None for sample in samples):
        return schemas.REQUESTED_METRICS
    if any(sample.known is not None for sample in samples):
        return schemas.METRICS_WITH_ENERGIES
    return schemas.METRICS_PER_CRYSTAL


def _log_rates(rates: Mapping[str, Any]) -> None:
    for name in ("structural_validity", "compositional_validity", "stability_rate", "sun_rate"):
        log.info("%s: %d of %d", name, rates[name]["numerator"], rates[name]["denominator"])


def _evaluate(
    section: Metrics,
    splits: Mapping[str, Path],
    samples: Sequence[Sample],
    sources: Sources,
    prints: tuple[Fingerprints, Fingerprints],
    workers: int,
) -> Evaluation:
    """Compute the metrics per crystal; `prints` are those of the samples and the test split."""
    rows, matches = judge(samples, splits, section, workers)
    generated = prints[0].in_order([sample.name for sample in samples])
    rows = add_coverage(rows, generated, prints[1])
    if any(sample.known is not None for sample in samples):
        rows = add_train_distances(rows, splits["train"])
    return Evaluation(samples, sources, matches, generated, prints[1], rows)


def judge(
    samples: Sequence[Sample], splits: Mapping[str, Path], section: Metrics, workers: int
) -> tuple[list[dict[str, Any]], BucketMatches]:
    """Compute validity, uniqueness, novelty, S.U.N. and the distance moved of each sample.

    Args:
        samples: the samples.
        splits: tables of the known crystals, `train` and `val`.
        section: section `metrics`.
        workers: number of worker processes; the result does not depend on it.

    Returns:
        Rows of `schemas.METRICS_PER_CRYSTAL` without coverage, and the matches.
    """
    measured = ordered_map(
        partial(measure, oxidation_states=section.oxidation_states),
        samples,
        workers=workers,
        what="validity and relaxation, crystals",
    )
    novelty_sets = NOVELTY_SETS[section.novelty_against]
    known = {name: splits[name] for name in ("train", "val")}
    if section.known_crystals is not None:
        known[KNOWN] = Path(section.known_crystals)
        novelty_sets = (*novelty_sets, KNOWN)
    matches = match_samples(samples, known, novelty_sets, workers)
    return add_matches(measured, matches, novelty_sets), matches


def _check_descent(
    base: Sequence[Path], generated: Sequence[Path], relaxed: Sequence[Path], stability: Path
) -> None:
    """Reject files that were not computed from each other; methods of one base share their ids.

    Raises:
        FlowllmError: names two files that do not belong together, and what to run.
    """
    check_computed_from(generated, "base", base)
    # One job reads the base and generated crystals of another model from one file.
    check_same_input([*base, *generated], "samples")
    check_computed_from(relaxed, "generated", generated)
    for path in relaxed:
        check_descends_from(path, generated)
    check_computed_from([stability], "energies", relaxed)
