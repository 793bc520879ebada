"""The report: tables, figures, the HTML page, and the main table on the terminal."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flowllm.config import Report, StageSettings
from flowllm.errors import FlowllmError
from flowllm.report import figures, tables
from flowllm.report.gallery import find_candidates
from flowllm.report.page import Drawn, Section, headline_cards, provenance_details, render
from flowllm.report.records import (
    Result,
    flows_of,
    generation_seconds,
    read_curves,
    read_predictions,
    read_records,
    read_rejections,
    read_results,
    stage_costs,
)
from flowllm.report.tables import Shown, Table
from flowllm.runlog import stage_run
from flowllm.tables import atomic_path, write_text

TABLE_FORMATS = {"csv": tables.to_csv, "md": tables.to_markdown, "tex": tables.to_latex}


def run(
    settings: StageSettings,
    *,
    metrics: Sequence[Path],
    run_dir: Path,
    out: Path,
    csp: Sequence[Path] = (),
) -> None:
    """Write the report of a run.

    Args:
        settings: the stage's settings.
        metrics: the metrics' JSON files, one a row of the tables; their flags lie beside them.
        run_dir: folder of the whole run; curves, counts and records are read where they exist.
        csp: numbers of structure prediction, csp/{setting}.json.
        out: the page; figures/ and tables/ are written beside it.

    Raises:
        FlowllmError: there are no metrics, or a file is missing or of another version.
    """
    if not metrics:
        raise FlowllmError("report: no metrics given; name metrics/*/{setting}.json files")
    section: Report = settings.report
    with stage_run(settings, inputs={"metrics": metrics, "csp": csp}, output=out) as run:
        results = read_results(metrics)
        predictions = read_predictions(csp)
        sections = make_sections(results, predictions, run_dir, section.color)
        _write_files(sections, out.parent)
        by_table = {table.name: table for part in sections for table in part.tables}
        cards = [
            *headline_cards(by_table["stability_dft"], "by DFT"),
            *headline_cards(by_table["stability_potential"], "estimated by the potential"),
        ]
        settings_count = len({result.setting for result in results})
        page = render(
            title=section.title,
            subtitle=f"{settings_count} settings, one row of the tables each; run {run_dir.name}",
            color=section.color,
            cards=cards,
            sections=sections,
        )
        write_text(out, page)
        run.count(rows_in=len(metrics), rows_out=len(metrics), rows_failed=0)
        for name in ("stability_potential", "stability_dft"):
            _print_table(by_table[name])
        print(f"\nReport: {out.resolve()}")


def make_sections(
    results: Sequence[Result],
    predictions: Sequence[Mapping[str, Any]],
    run_dir: Path,
    color: str,
) -> list[Section]:
    """Return the page's sections from the results and what lies in the run's folder."""
    records = read_records(run_dir)
    kinds = [kind for kind in ("potential", "dft") if any(one.kind == kind for one in results)]
    seconds = {result.setting: _seconds(result, records) for result in results}
    curves = [
        _draw(
            f"training_{curve.name.lower().replace(' ', '_')}",
            f"{curve.name}: losses in training.",
            lambda curve=curve: figures.training_curve(curve, color),
        )
        for curve in read_curves(run_dir)
    ]
    return [
        Section(
            "results",
            "Results",
            figures=_result_figures(results, kinds, color),
            tables=[
                tables.paper_table(results),
                tables.sun_table(results, "potential"),
                tables.sun_table(results, "dft"),
                tables.proxy_table(results),
                *filter(None, [tables.noise_table(results, flows_of(records))]),
                tables.ground_state_table(results),
            ],
        ),
        *(
            [Section("prediction", "Structure prediction", tables=[tables.csp_table(predictions)])]
            if predictions
            else []
        ),
        *(section for kind in kinds if (section := _gallery(results, kind, run_dir)).gallery),
        Section(
            "counting",
            "Other ways of counting",
            tables=[
                *(tables.reading_table(results, kind) for kind in kinds),
                *(table for kind in kinds for table in tables.protocol_tables(results, kind)),
            ],
        ),
        Section(
            "fates",
            "What became of the draws",
            tables=[
                tables.fate_table(results),
                tables.rejection_table(read_rejections(run_dir)),
            ],
        ),
        Section("training", "Training", figures=[curve for curve in curves if curve]),
        Section(
            "cost",
            "Time and cost",
            tables=[tables.speed_table(results, seconds), tables.cost_table(stage_costs(records))],
        ),
        Section("provenance", "Provenance", details=provenance_details(records)),
    ]


def _gallery(results: Sequence[Result], kind: str, run_dir: Path) -> Section:
    ours = [result for result in results if result.kind == kind]
    whose = "by DFT" if kind == "dft" else "estimated by the potential"
    return Section(
        f"gallery_{kind}",
        f"Best candidates, {whose}",
        note="The novel crystals lowest above the hull, as relaxed, one a class of duplicates in a "
        "setting, S.U.N. first. Drag or use the arrow keys to turn.",
        gallery=find_candidates(ours, run_dir),
    )


def _result_figures(results: Sequence[Result], kinds: Sequence[str], color: str) -> list[Drawn]:
    style = figures.looks((result.setting for result in results), color)
    drawn = []
    for kind in kinds:
        ours = [result for result in results if result.kind == kind]
        whose = tables.energy_name(ours) + (" (estimates)" if kind == "potential" else "")
        drawn.append(
            _draw(
                f"e_hull_{kind}",
                f"E above hull of the generated crystals by {whose}; the end bins hold all beyond.",
                lambda ours=ours: figures.e_hull_histogram(ours, style),
            )
        )
    once = list({result.setting: result for result in results}.values())
    drawn.append(
        _draw(
            "num_steps",
            "Structural validity against integration steps, by base and flow; 95 % intervals.",
            lambda: figures.validity_against_steps(once, color),
        )
    )
    drawn.append(
        _draw(
            "num_elements",
            "Distinct elements in the generated crystals and in the test split.",
            lambda: figures.num_elements_bars(once, style),
        )
    )
    return [figure for figure in drawn if figure]


def _draw(name: str, caption: str, make: Callable[[], Figure | None]) -> Drawn | None:
    files = figures.draw(make)
    return None if files is None else Drawn(name, caption, dict(files))


def _seconds(result: Result, records: Sequence[dict]) -> float | None:
    base = result.numbers["sampling"]["setting"].get("base")
    return generation_seconds(records, str(base), result.setting)


def _write_files(sections: Sequence[Section], folder: Path) -> None:
    """Write every figure as SVG and PNG, every table as CSV, Markdown and LaTeX."""
    for section in sections:
        for figure in section.figures:
            for suffix, content in figure.files.items():
                path = folder / "figures" / f"{figure.name}.{suffix}"
                with atomic_path(path) as temporary:
                    temporary.write_bytes(content)
        for table in section.tables:
            for suffix, convert in TABLE_FORMATS.items():
                write_text(folder / "tables" / f"{table.name}.{suffix}", convert(table))


def _print_table(table: Table) -> None:
    """Print the main numbers of a table's own rows, if there are any; lines are not broken."""
    columns = tables.TERMINAL_COLUMNS
    lines = [[column.title for column in columns]]
    for row in table.rows:
        if not row.get("published"):
            lines.append([_one_line(tables.show(row[column.key], column)) for column in columns])
    if len(lines) == 1:
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{table.title}")
    for name, *numbers in lines:
        padded = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *padded]))


def _one_line(cell: Shown) -> str:
    """Return a cell with its counts and without its interval."""
    counts = cell.detail.split(";")[0].replace(" of ", "/")
    return f"{cell.text} ({counts})" if counts else cell.text
