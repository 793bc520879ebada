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
    drawing,
    figures,
    process_tables,
    quality_tables,
)
from flowllm.report.agreement_table import agreement_table, known_table
from flowllm.report.gallery import find_candidates, methods_without_files
from flowllm.report.metrics_files import Result, first_of_each_sweep, of_kind, once_per_method
from flowllm.report.page import RenderedFigure, Section, provenance_details
from flowllm.report.protocol_text import energy_name, hull_name, hull_size
from flowllm.report.provenance import (
    draft_counts,
    flows_of,
    generation_seconds,
    read_records,
    stage_costs,
)
from flowllm.report.request_tables import request_tables
from flowllm.report.terminal import meaning
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

    The first sections are by DFT where the run has it, and otherwise by the potential.

    Args:
        results: metrics of the methods.
        predictions: numbers of structure prediction.
        run_dir: folder of the run.
        color: color of the first method.
        shards: number of shards of the run, by folder.
    """
    records = read_records(run_dir, shards)
    kinds = [kind for kind in KINDS if of_kind(results, kind)]
    best, others = kinds[-1], kinds[:-1]
    warned = warnings_table(results)
    drawn = _Drawn(results, flows_of(records), color)
    sections = [
        _candidates(results, best, run_dir, shards),
        _methods(results, best),
        Section("energies", "Energy above the hull", figures=drawn.e_hull([best])),
        _requests(results, kinds),
        Section("warnings", "Warnings", tables=[warned] if warned else []),
        _comparison(results, predictions, records, drawn),
        *(_candidates(results, kind, run_dir, shards, folded=True) for kind in others),
        _stability(results, kinds, others, drawn),
        _counting(results, kinds),
        _language_model(records, run_dir, shards),
        _fates(results),
        _training(run_dir, color),
        _cost(records),
        Section("provenance", "Provenance", details=provenance_details(records), folded=True),
    ]
    return [one for one in sections if one.content]


def _candidates(
    results: Sequence[Result],
    kind: EnergySource,
    run_dir: Path,
    shards: Mapping[str, int],
    *,
    folded: bool = False,
) -> Section:
    ours = of_kind(results, kind)
    found = find_candidates(ours, run_dir, shards)
    name = f"candidates_{kind}" if folded else "candidates"
    picture = _render(
        name,
        "The best candidates: relaxed novel crystals with the lowest energy above the hull.",
        partial(drawing.candidates_picture, found),
        on_page=False,
    )
    estimated = "estimates, not DFT; " if kind == "potential" else ""
    absent = ", ".join(methods_without_files(ours, run_dir, shards))
    notes = []
    if found:
        notes.append(
            "Relaxed novel crystals with the lowest energy above the hull by "
            f"{energy_name(ours)} ({estimated}hull: {hull_size(ours)}). Crystals of "
            "which the hull has no compound are last. Drag a crystal or use the arrow keys."
        )
    elif not absent:
        notes.append("No crystal of several elements is relaxed, novel and placed on the hull.")
    if absent:
        notes.append(
            f"Candidates of {absent} cannot be shown: their relaxed crystals are not in the "
            "folder of the run (--run-dir)."
        )
    return Section(
        name,
        "Best candidates by the potential" if folded else "Best candidates",
        note=" ".join(notes),
        gallery=found,
        figures=[picture] if picture else [],
        folded=folded,
    )


def _methods(results: Sequence[Result], best: EnergySource) -> Section:
    estimates = cost_tables.estimate_table(results)
    return Section(
        "methods",
        "Methods",
        note=meaning(results, best),
        tables=[
            quality_tables.sun_table(results, best, lead=True),
            *([estimates] if estimates else []),
        ],
    )


def _comparison(
    results: Sequence[Result],
    predictions: Sequence[Mapping[str, Any]],
    records: Sequence[dict[str, Any]],
    drawn: "_Drawn",
) -> Section:
    """Return the paper's comparisons, with its published values where they are known."""
    seconds = {result.method: _seconds(result, records) for result in results}
    return Section(
        "comparison",
        "Comparison with the paper",
        figures=drawn.paper(),
        tables=[
            quality_tables.paper_table(results, drawn.flows),
            quality_tables.ground_state_table(results),
            *([quality_tables.csp_table(predictions)] if predictions else []),
            process_tables.speed_table(results, seconds),
        ],
    )


def _stability(
    results: Sequence[Result],
    kinds: Sequence[EnergySource],
    others: Sequence[EnergySource],
    drawn: "_Drawn",
) -> Section:
    """Return what the first sections leave out of stability and S.U.N."""
    judged = [agreement_table(results), known_table(results)]
    return Section(
        "stability",
        "Stability in detail",
        figures=drawn.e_hull(others),
        tables=[
            *(quality_tables.sun_table(results, kind) for kind in others),
            *(quality_tables.sun_parts_table(results, kind) for kind in kinds),
            *(quality_tables.e_hull_table(results, kind) for kind in kinds),
            cost_tables.sun_cost_table(results),
            *(table for table in judged if table),
            quality_tables.num_elements_table(results),
        ],
        folded=True,
    )


def _requests(results: Sequence[Result], kinds: Sequence[EnergySource]) -> Section:
    tables = [table for kind in kinds for table in request_tables(results, kind)]
    return Section("requests", "On request", tables=tables)


def _counting(results: Sequence[Result], kinds: Sequence[EnergySource]) -> Section:
    tables = [counting_tables.reading_table(results, kind) for kind in kinds]
    for kind in kinds:
        tables += counting_tables.protocol_tables(results, kind)
    return Section("counting", "Other rules and protocols", tables=tables, folded=True)


def _language_model(
    records: Sequence[dict[str, Any]], run_dir: Path, shards: Mapping[str, int]
) -> Section:
    tables = [
        process_tables.invariance_table(read_invariance(run_dir)),
        *filter(None, [process_tables.merging_table(records)]),
        process_tables.draft_table(draft_counts(records)),
        process_tables.rejection_table(read_rejections(run_dir, shards)),
    ]
    return Section("language_model", "Drafts and rejections", tables=tables, folded=True)


def _fates(results: Sequence[Result]) -> Section:
    tables = [process_tables.outcome_table(results)]
    return Section("fates", "Outcome of the draws", tables=tables, folded=True)


def _training(run_dir: Path, color: str) -> Section:
    rendered = [
        _render(
            f"training_{curve.name.lower().replace(' ', '_')}",
            f"{curve.name}: losses in training.",
            partial(figures.training_curve, curve, color),
        )
        for curve in read_curves(run_dir)
    ]
    shown = [figure for figure in rendered if figure]
    return Section("training", "Training", figures=shown, folded=True)


def _cost(records: Sequence[dict[str, Any]]) -> Section:
    tables = [process_tables.cost_table(stage_costs(records))]
    return Section("cost", "Time and cost", tables=tables, folded=True)


class _Drawn:
    """The figures of the results, each method with one style in all of them."""

    def __init__(
        self, results: Sequence[Result], flows: Mapping[str, Mapping[str, Any]], color: str
    ) -> None:
        self.results, self.flows, self.color = results, flows, color
        self.once = once_per_method(results)
        self.by_kind = {kind: first_of_each_sweep(of_kind(results, kind)) for kind in KINDS}
        shown = [
            *first_of_each_sweep(self.once),
            *(one for ours in self.by_kind.values() for one in ours),
        ]
        self.styles = figures.line_styles((result.method for result in shown), color)

    def e_hull(self, kinds: Sequence[EnergySource]) -> list[RenderedFigure]:
        """Return the histogram of E_hull of each source of energies."""
        rendered = []
        for kind in kinds:
            ours = self.by_kind[kind]
            source = energy_name(ours) + (" (estimates)" if kind == "potential" else "")
            rendered.append(
                _render(
                    f"e_hull_{kind}",
                    f"E above hull of the relaxed crystals by {source} (hull: {hull_name(ours)}), "
                    "in percent of all draws; the end bins include all values beyond (the paper's "
                    "figure 3a)." + SWEEP_NOTE,
                    partial(figures.e_hull_histogram, ours, self.styles),
                )
            )
        return [figure for figure in rendered if figure]

    def paper(self) -> list[RenderedFigure]:
        """Return the paper's figures 3b and 3c."""
        rendered = [
            _render(
                "num_elements",
                "Number of distinct elements in generated crystals and in the test split (the "
                "paper's figure 3b)." + SWEEP_NOTE,
                partial(figures.num_elements_bars, first_of_each_sweep(self.once), self.styles),
            ),
            _render(
                "num_steps",
                "Structural validity of all draws against the number of integration steps, by base "
                "and flow, with Wilson's 95 % intervals (the paper's figure 3c).",
                partial(figures.validity_against_steps, self.once, self.flows, self.color),
            ),
        ]
        return [figure for figure in rendered if figure]


def _render(
    name: str, caption: str, make: Callable[[], Figure | None], *, on_page: bool = True
) -> RenderedFigure | None:
    files = figures.render(make)
    return None if files is None else RenderedFigure(name, caption, files, on_page)


def _seconds(result: Result, records: Sequence[dict[str, Any]]) -> float | None:
    base = result.numbers["sampling"]["setting"].get("base")
    drawn = result.numbers["counts"]["drawn"]
    return generation_seconds(records, str(base), result.method, drawn)
