"""The sections of the page, with their figures and tables."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flowllm.evaluate.hull import EnergySource
from flowllm.report import (
    cost_tables,
    counting_tables,
    figures,
    process_tables,
    quality_tables,
)
from flowllm.report.agreement_table import agreement_table, known_table
from flowllm.report.gallery import find_candidates
from flowllm.report.metrics_files import Result, first_of_each_sweep, of_kind, once_per_method
from flowllm.report.page import RenderedFigure, Section, provenance_details
from flowllm.report.protocol_text import energy_name, hull_name
from flowllm.report.provenance import (
    draft_counts,
    flows_of,
    generation_seconds,
    read_records,
    stage_costs,
)
from flowllm.report.request_tables import request_tables
from flowllm.report.training_history import read_curves, read_invariance, read_rejections
from flowllm.report.warnings import warnings_table

KINDS: tuple[EnergySource, ...] = ("potential", "dft")

SWEEP_NOTE = " Of methods that differ only in their number of steps, the first is shown."


def make_sections(
    results: Sequence[Result],
    predictions: Sequence[Mapping[str, Any]],
    run_dir: Path,
    color: str,
    shards: Mapping[str, int],
) -> list[Section]:
    """Return the page's sections from the results and the files in the run's folder.

    Args:
        results: metrics of the methods.
        predictions: numbers of structure prediction.
        run_dir: folder of the run.
        color: color of the first method.
        shards: number of shards of the run, by folder.
    """
    records = read_records(run_dir, shards)
    kinds = [kind for kind in KINDS if of_kind(results, kind)]
    warned = warnings_table(results)
    sections = [
        Section("warnings", "Warnings", tables=[warned] if warned else []),
        _results(results, kinds, records, color),
        _requests(results, kinds),
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
    results: Sequence[Result],
    kinds: Sequence[EnergySource],
    records: Sequence[dict[str, Any]],
    color: str,
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
            *filter(None, [cost_tables.estimate_table(results)]),
            cost_tables.sun_cost_table(results),
            quality_tables.proxy_table(results),
            *filter(None, [quality_tables.noise_table(results, flows)]),
            *filter(None, [agreement_table(results), known_table(results)]),
            quality_tables.ground_state_table(results),
            *(quality_tables.e_hull_table(results, kind) for kind in kinds),
            quality_tables.num_elements_table(results),
        ],
    )


def _requests(results: Sequence[Result], kinds: Sequence[EnergySource]) -> Section:
    tables = [table for kind in kinds for table in request_tables(results, kind)]
    return Section("requests", "On request", tables=tables)


def _prediction(predictions: Sequence[Mapping[str, Any]]) -> Section:
    tables = [quality_tables.csp_table(predictions)] if predictions else []
    return Section("prediction", "Structure prediction", tables=tables)


def _counting(results: Sequence[Result], kinds: Sequence[EnergySource]) -> Section:
    tables = [counting_tables.reading_table(results, kind) for kind in kinds]
    for kind in kinds:
        tables += counting_tables.protocol_tables(results, kind)
    return Section("counting", "Other rules and protocols", tables=tables)


def _language_model(
    records: Sequence[dict[str, Any]], run_dir: Path, shards: Mapping[str, int]
) -> Section:
    tables = [
        process_tables.invariance_table(read_invariance(run_dir)),
        *filter(None, [process_tables.merging_table(records)]),
        process_tables.draft_table(draft_counts(records)),
        process_tables.rejection_table(read_rejections(run_dir, shards)),
    ]
    return Section("language_model", "Drafts and rejections", tables=tables)


def _fates(results: Sequence[Result]) -> Section:
    return Section("fates", "Outcome of the draws", tables=[process_tables.outcome_table(results)])


def _training(run_dir: Path, color: str) -> Section:
    rendered = [
        _render(
            f"training_{curve.name.lower().replace(' ', '_')}",
            f"{curve.name}: losses in training.",
            partial(figures.training_curve, curve, color),
        )
        for curve in read_curves(run_dir)
    ]
    return Section("training", "Training", figures=[figure for figure in rendered if figure])


def _cost(results: Sequence[Result], records: Sequence[dict[str, Any]]) -> Section:
    seconds = {result.method: _seconds(result, records) for result in results}
    tables = [
        process_tables.speed_table(results, seconds),
        process_tables.cost_table(stage_costs(records)),
    ]
    return Section("cost", "Time and cost", tables=tables)


def _gallery(
    results: Sequence[Result], kind: EnergySource, run_dir: Path, shards: Mapping[str, int]
) -> Section:
    ours = of_kind(results, kind)
    source = "by DFT" if kind == "dft" else "estimated by the potential"
    return Section(
        f"gallery_{kind}",
        f"Best candidates, {source}",
        note="Relaxed novel crystals with the lowest energy above the hull, S.U.N. crystals first; "
        "a crystal of several methods is shown once. Drag or use the arrow keys to rotate.",
        gallery=find_candidates(ours, run_dir, shards),
    )


def _result_figures(
    results: Sequence[Result],
    kinds: Sequence[EnergySource],
    flows: Mapping[str, Mapping[str, Any]],
    color: str,
) -> list[RenderedFigure]:
    once = once_per_method(results)
    by_kind = {kind: first_of_each_sweep(of_kind(results, kind)) for kind in kinds}
    shown = [*first_of_each_sweep(once), *(one for ours in by_kind.values() for one in ours)]
    styles = figures.line_styles((result.method for result in shown), color)
    rendered = []
    for kind, ours in by_kind.items():
        source = energy_name(ours) + (" (estimates)" if kind == "potential" else "")
        rendered.append(
            _render(
                f"e_hull_{kind}",
                f"E above hull of the relaxed crystals by {source} (hull: {hull_name(ours)}), in "
                "percent of all draws; the end bins include all values beyond (the paper's figure "
                "3a)." + SWEEP_NOTE,
                partial(figures.e_hull_histogram, ours, styles),
            )
        )
    rendered.append(
        _render(
            "num_steps",
            "Structural validity of all draws against the number of integration steps, by base and "
            "flow, with Wilson's 95 % intervals (the paper's figure 3c).",
            partial(figures.validity_against_steps, once, flows, color),
        )
    )
    rendered.append(
        _render(
            "num_elements",
            "Number of distinct elements in generated crystals and in the test split (the paper's "
            "figure 3b)." + SWEEP_NOTE,
            partial(figures.num_elements_bars, first_of_each_sweep(once), styles),
        )
    )
    return [figure for figure in rendered if figure]


def _render(name: str, caption: str, make: Callable[[], Figure | None]) -> RenderedFigure | None:
    files = figures.render(make)
    return None if files is None else RenderedFigure(name, caption, files)


def _seconds(result: Result, records: Sequence[dict[str, Any]]) -> float | None:
    base = result.numbers["sampling"]["setting"].get("base")
    drawn = result.numbers["counts"]["drawn"]
    return generation_seconds(records, str(base), result.method, drawn)
