"""The report: tables, figures, the HTML page, and the main table on the terminal."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from flowllm.config.sections.evaluation import Report
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_path, write_text
from flowllm.report.metrics_files import Result, of_kind, read_predictions, read_results
from flowllm.report.page import Section, render
from flowllm.report.sections import KINDS, make_sections
from flowllm.report.table import to_csv, to_latex, to_markdown
from flowllm.report.terminal import WIDTH, meaning, printed_table
from flowllm.report.training_history import shard_counts
from flowllm.report.warnings import warnings_of
from flowllm.runtime.descent import check_same_input
from flowllm.runtime.log import log
from flowllm.runtime.provenance import stage_run

TABLE_FORMATS = {"csv": to_csv, "md": to_markdown, "tex": to_latex}


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    report: Report


def run(
    settings: Settings,
    *,
    metrics: Sequence[Path],
    run_dir: Path,
    out: Path,
    csp: Sequence[Path] = (),
    shards: Sequence[str] = (),
) -> None:
    """Write the tables, the figures and the HTML page of a run.

    Args:
        settings: section `report`.
        metrics: The metrics/*/{method}.json files, one per row of the tables. Repeat the option for
            each; the metrics per crystal are beside them.
        run_dir: Folder of the whole run; curves, counts and records are read where they exist.
        out: Page to write (index.html); figures/ and tables/ are written beside it.
        csp: The csp/{method}.json files of structure prediction. Repeat the option for each.
        shards: Number of shards in a folder of the run as FOLDER=COUNT, e.g. pairs/train=400.
            Repeat the option for each folder. A folder below base, generated or relaxed that is not
            named belongs to another configuration if another of its kind is named (relaxed names
            generated, too); of the others all existing shards are read.

    Raises:
        FlowllmError: there are no metrics, or a file is missing, damaged or of another version.
    """
    if not metrics:
        raise FlowllmError("report: no metrics given; name metrics/*/{method}.json files")
    section: Report = settings.report
    with stage_run(settings, inputs={"metrics": metrics, "csp": csp}, output=out) as run:
        results = read_results(metrics)
        _check_same_crystals(metrics, results)
        predictions = read_predictions(csp)
        sections = make_sections(results, predictions, run_dir, section.color, shard_counts(shards))
        _write_files(sections, out.parent, run_dir)
        count = len({result.method for result in results})
        name = run_dir.resolve().name
        page = render(
            title=section.title,
            subtitle=f"{count} method{'s' * (count != 1)}; run {name}",
            color=section.color,
            sections=sections,
        )
        write_text(out, page)
        run.count(rows_in=len(metrics), rows_out=len(metrics), rows_failed=0)
        for result in results:
            for one in warnings_of(result):
                counts = f" ({one.counts})" if one.counts else ""
                log.warning("report: %s, %s%s: %s", result.method, result.kind, counts, one.text)
        _print_tables(results)
        print(f"\nReport: {out.resolve()}")


def _check_same_crystals(metrics: Sequence[Path], results: Sequence[Result]) -> None:
    """Refuse metrics of one method that were computed from different generated crystals."""
    for method in dict.fromkeys(result.method for result in results):
        per_crystal = [
            path.with_suffix(".parquet")
            for path, result in zip(metrics, results, strict=True)
            if result.method == method
        ]
        check_same_input(per_crystal, "generated")


def _write_files(sections: Sequence[Section], folder: Path, run_dir: Path) -> None:
    """Write every figure as SVG and PNG, every table as CSV, Markdown and LaTeX.

    In the folder of the run, files of an earlier report are deleted from their folders. Elsewhere
    the folders may contain files of others.
    """
    written = set()
    for section in sections:
        for figure in section.figures:
            for suffix, content in figure.files.items():
                path = folder / "figures" / f"{figure.name}.{suffix}"
                with atomic_path(path) as temporary:
                    temporary.write_bytes(content)
                written.add(path)
        for table in section.tables:
            for suffix, convert in TABLE_FORMATS.items():
                path = folder / "tables" / f"{table.name}.{suffix}"
                write_text(path, convert(table))
                written.add(path)
    if folder.resolve().is_relative_to(run_dir.resolve()):
        for path in (*folder.glob("figures/[!.]*"), *folder.glob("tables/[!.]*")):
            if path not in written:
                path.unlink()


def _print_tables(results: Sequence[Result]) -> None:
    """Print the table of each source of energies, and below it what its numbers show."""
    for kind in KINDS:
        if of_kind(results, kind):
            print()
            for line in printed_table(results, kind):
                print(line)
            print(f"\n{fill(meaning(results, kind), WIDTH)}")
