"""The sections of the page: which figures and tables stand where."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flowllm.report import counting_tables, figures, process_tables, quality_tables
from flowllm.report.gallery import find_candidates
from flowllm.report.metrics_files import Result, first_of_each_sweep, of_kind, once_per_method
from flowllm.report.page import Drawn, Section, provenance_details
from flowllm.report.protocol_text import energy_name, hull_name
from flowllm.report.provenance import (
    draft_counts,
    flows_of,
    generation_seconds,
    read_records,
    stage_costs,
)
from flowllm.report.training_history import read_curves, read_invariance, read_rejections

SWEEPS = " Of methods that differ in their number of steps alone the first is drawn."


def make_sections(
    results: Sequence[Result],
    predictions: Sequence[Mapping[str, Any]],
    run_dir: Path,
    color: str,
    shards: Mapping[str, int],
) -> list[Section]:
    """Return the page's sections from the results and what lies in the run's folder.

    Args:
        results: metrics and flags of the settings.
        predictions: numbers of structure prediction.
        run_dir: folder of the run.
        color: of the first method.
        shards: how many shards belong to the run, by folder.
    """
    records = read_records(run_dir, shards)
    kinds = [kind for kind in ("potential", "dft") if of_kind(results, kind)]
    sections = [
        _results(results, kinds, records, color),
        _prediction(predictions),
        *(_gallery(results, kind, run_dir, shards) for kind in kinds),
        _counting(results, kinds),
        _language_model(records, run_dir, shards),
        _fates(results),
        _training(run_dir, color),
        _cost(results, records),
        Section("provenance", "Provenance", details=provenance_details(records)),
    ]
    return [one for one in sections if one.figures or one.tables or one.gallery or one.details]


def _results(
    results: Sequence[Result], kinds: Sequence[str], records: Sequence[dict], color: str
) -> Section:
    flows = flows_of(records)
    return Section(
        "results",
        "Results",
        figures=_result_figures(results, kinds, flows, color),
        tables=[
            quality_tables.paper_table(results),
            quality_tables.sun_table(results, "potential"),
            quality_tables.sun_table(results, "dft"),
            quality_tables.proxy_table(results),
            *filter(None, [quality_tables.noise_table(results, flows)]),
            quality_tables.ground_state_table(results),
            *(quality_tables.e_hull_table(results, kind) for kind in kinds),
            quality_tables.num_elements_table(results),
        ],
    )


def _prediction(predictions: Sequence[Mapping[str, Any]]) -> Section:
    tables = [quality_tables.csp_table(predictions)] if predictions else []
    return Section("prediction", "Structure prediction", tables=tables)


def _counting(results: Sequence[Result], kinds: Sequence[str]) -> Section:
    tables = [counting_tables.reading_table(results, kind) for kind in kinds]
    for kind in kinds:
        tables += counting_tables.protocol_tables(results, kind)
    return Section("counting", "Other ways of counting", tables=tables)


def _language_model(records: Sequence[dict], run_dir: Path, shards: Mapping[str, int]) -> Section:
    tables = [
        process_tables.invariance_table(read_invariance(run_dir)),
        *filter(None, [process_tables.merging_table(records)]),
        process_tables.draft_table(draft_counts(records)),
        process_tables.rejection_table(read_rejections(run_dir, shards)),
    ]
    return Section("language_model", "Drafts and rejections", tables=tables)


def _fates(results: Sequence[Result]) -> Section:
    return Section("fates", "What became of the draws", tables=[process_tables.fate_table(results)])


def _training(run_dir: Path, color: str) -> Section:
    drawn = [
        _draw(
            f"training_{curve.name.lower().replace(' ', '_')}",
            f"{curve.name}: losses in training.",
            lambda curve=curve: figures.training_curve(curve, color),
        )
        for curve in read_curves(run_dir)
    ]
    return Section("training", "Training", figures=[figure for figure in drawn if figure])


def _cost(results: Sequence[Result], records: Sequence[dict]) -> Section:
    seconds = {result.method: _seconds(result, records) for result in results}
    tables = [
        process_tables.speed_table(results, seconds),
        process_tables.cost_table(stage_costs(records)),
    ]
    return Section("cost", "Time and cost", tables=tables)


def _gallery(
    results: Sequence[Result], kind: str, run_dir: Path, shards: Mapping[str, int]
) -> Section:
    ours = of_kind(results, kind)
    whose = "by DFT" if kind == "dft" else "estimated by the potential"
    return Section(
        f"gallery_{kind}",
        f"Best candidates, {whose}",
        note="The novel crystals lowest above the hull, as relaxed, S.U.N. first; one that several "
        "settings have is shown once. Drag or use the arrow keys to turn.",
        gallery=find_candidates(ours, run_dir, shards),
    )


def _result_figures(
    results: Sequence[Result],
    kinds: Sequence[str],
    flows: Mapping[str, Mapping[str, Any]],
    color: str,
) -> list[Drawn]:
    once = once_per_method(results)
    by_kind = {kind: first_of_each_sweep(of_kind(results, kind)) for kind in kinds}
    shown = [*first_of_each_sweep(once), *(one for ours in by_kind.values() for one in ours)]
    style = figures.looks((result.method for result in shown), color)
    drawn = []
    for kind, ours in by_kind.items():
        whose = energy_name(ours) + (" (estimates)" if kind == "potential" else "")
        drawn.append(
            _draw(
                f"e_hull_{kind}",
                f"E above hull of the relaxed crystals by {whose}, hull: {hull_name(ours)}; share "
                "of all generated, the end bins hold all beyond (the paper's figure 3a)." + SWEEPS,
                lambda ours=ours: figures.e_hull_histogram(ours, style),
            )
        )
    drawn.append(
        _draw(
            "num_steps",
            "Structural validity, of all generated, against integration steps, by base and flow; "
            "bars: Wilson's 95 % intervals (the paper's figure 3c).",
            lambda: figures.validity_against_steps(once, flows, color),
        )
    )
    drawn.append(
        _draw(
            "num_elements",
            "Distinct elements of the crystals, generated and of the test split (the paper's "
            "figure 3b)." + SWEEPS,
            lambda: figures.num_elements_bars(first_of_each_sweep(once), style),
        )
    )
    return [figure for figure in drawn if figure]


def _draw(name: str, caption: str, make: Callable[[], Figure | None]) -> Drawn | None:
    files = figures.draw(make)
    return None if files is None else Drawn(name, caption, dict(files))


def _seconds(result: Result, records: Sequence[dict]) -> float | None:
    base = result.numbers["sampling"]["setting"].get("base")
    drawn = result.numbers["counts"]["drawn"]
    return generation_seconds(records, str(base), result.method, drawn)
