"""Every metric of one method: validity, stability, uniqueness, novelty, S.U.N., distance moved."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flowllm.config.sections.evaluation import Metrics
from flowllm.config.stage_settings import StageSettings
from flowllm.evaluate.aggregate import FORMAT, NOVELTY_SETS, Evaluation, all_numbers
from flowllm.evaluate.coverage import add_coverage, read_fingerprints
from flowllm.evaluate.parallel import ordered_map
from flowllm.evaluate.per_crystal import add_matches, match_samples, measure
from flowllm.evaluate.samples import check_ids, read_samples
from flowllm.io import schemas
from flowllm.io.files import write_text
from flowllm.io.tables import write_table
from flowllm.runtime.descent import check_computed_from, check_descends_from, check_same_input
from flowllm.runtime.log import log
from flowllm.runtime.provenance import stage_run


class Settings(StageSettings):
    """What a job of this kind is given."""

    metrics: Metrics


def run(
    settings: Settings,
    *,
    base: Sequence[Path],
    generated: Sequence[Path],
    relaxed: Sequence[Path],
    stability: Path,
    fingerprints: Path,
    test_fingerprints: Path,
    crystals: Path,
    out: Path,
    workers: int,
) -> None:
    """Compute the metrics of one method.

    Args:
        settings: the stage's settings.
        base: shards of the language model's crystals.
        generated: shards of the crystals after flow matching.
        relaxed: shards of the potential's relaxed crystals, or the one file of DFT's results.
        stability: E_above_hull by the same energies.
        fingerprints: of the generated crystals.
        test_fingerprints: of the test split.
        crystals: folder of train.parquet, val.parquet and test.parquet.
        out: the JSON of the numbers; the flags of each crystal go to the same name in .parquet.
        workers: worker processes; the results do not depend on it.

    Raises:
        FlowllmError: an input is missing, has another schema, or is of another run.
    """
    section: Metrics = settings.metrics
    splits = {name: crystals / f"{name}.parquet" for name in ("train", "val", "test")}
    with stage_run(
        settings,
        inputs={
            "base": base,
            "generated": generated,
            "relaxed": relaxed,
            "stability": stability,
            "fingerprints": fingerprints,
            "test_fingerprints": test_fingerprints,
            **splits,
        },
        output=out,
    ) as run:
        samples, sources = read_samples(base, generated, relaxed, stability)
        _check_descent(base, generated, relaxed, stability)
        names = [sample.name for sample in samples]
        prints, test_prints = read_fingerprints(fingerprints), read_fingerprints(test_fingerprints)
        check_ids(names, prints.names, fingerprints, complete=True)
        check_computed_from([fingerprints], "crystals", generated)
        check_computed_from([test_fingerprints], "crystals", [splits["test"]])
        measured = ordered_map(
            partial(measure, oxidation_states=section.oxidation_states),
            samples,
            workers=workers,
            what="validity and relaxation, crystals",
        )
        known = {name: splits[name] for name in ("train", "val")}
        novelty_sets = NOVELTY_SETS[section.novelty_against]
        matches = match_samples(samples, known, novelty_sets, workers)
        prints = prints.in_order(names)
        rows = add_matches(measured, matches, novelty_sets)
        rows = add_coverage(rows, prints, test_prints)
        evaluation = Evaluation(samples, sources, matches, prints, test_prints, rows)
        numbers = {"format": FORMAT, "setting": out.stem}
        numbers |= all_numbers(evaluation, section, settings.seed, splits["test"])
        run.count(
            rows_in=len(samples),
            rows_out=len(rows),
            rows_failed=sum(row["error"] is not None for row in rows),
        )
        write_table(out.with_suffix(".parquet"), rows, schemas.METRICS_PER_CRYSTAL, run.metadata())
        write_text(out, json.dumps(numbers, indent=1) + "\n")
        for name in ("structural_validity", "compositional_validity", "stability_rate", "sun_rate"):
            found = numbers["rates"][name]
            log.info("%s: %d of %d", name, found["numerator"], found["denominator"])


def _check_descent(
    base: Sequence[Path], generated: Sequence[Path], relaxed: Sequence[Path], stability: Path
) -> None:
    """Refuse files that were not computed from each other; methods of one base share their ids.

    Raises:
        FlowllmError: names two files that do not belong together, and what to run.
    """
    check_computed_from(generated, "base", base)
    # Another model's base and generated crystals are read from one file by one job.
    check_same_input([*base, *generated], "samples")
    check_computed_from(relaxed, "generated", generated)
    for path in relaxed:
        check_descends_from(path, generated)
    check_computed_from([stability], "energies", relaxed)
