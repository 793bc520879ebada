"""The folder that `flowllm generate` writes: tables, CIF files, a page; and the printed table."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowllm.commands.generate_table import CIF_FOLDER, has_reference, novelty, verdict, wishes_text
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import HullFile, short_label
from flowllm.io import schemas
from flowllm.io.files import atomic_folder, check_folder, write_text
from flowllm.io.tables import crystal_of, required_crystal, write_table
from flowllm.report.gallery import BARE, Candidate
from flowllm.report.page import Section, render
from flowllm.report.table import Column, Table

Row = dict[str, Any]

DRAFTS = "drafts.parquet"
CRYSTALS = "crystals.parquet"
PAGE = "index.html"

SHOWN_IN_GALLERY = 24
"""Maximum number of crystals that the page draws."""

PRINTED = 20
"""Maximum number of crystals that are printed."""

COLUMNS = (
    Column("rank", "rank", "count"),
    Column("reduced_formula", "formula"),
    Column("space_group", "space group"),
    Column("e_above_hull", "E above hull", "number", digits=3),
    Column("verdict", "known or novel"),
    Column("asked", "asked: got"),
    Column("cif", "file"),
)
"""Columns that are printed and shown on the page."""


def check_output(out: Path, run: Path) -> None:
    """Refuse an output folder that has content or is in the run's folder.

    Raises:
        FlowllmError: the message names the folder and says what to do.
    """
    if out.resolve().is_relative_to(run.resolve()):
        raise FlowllmError(
            f"--out {out}: in the folder of the run, whose files are the workflow's; name a folder "
            "outside of it"
        )
    if out.is_dir() and any(out.iterdir()):
        raise FlowllmError(f"--out {out}: the folder has content; name a new folder")
    check_folder(out)


def write_drafts(out: Path, drafts: Sequence[Row], metadata: Mapping[str, Any]) -> None:
    """Write the folder of a request for drafts alone."""
    with atomic_folder(out) as folder:
        write_table(folder / DRAFTS, drafts, schemas.REQUESTED_BASE, metadata)


def write_folder(
    out: Path,
    drafts: Sequence[Row],
    rows: Sequence[Row],
    hull: HullFile,
    color: str,
    metadata: Mapping[str, Any],
) -> None:
    """Write the whole folder: both tables, a CIF file per relaxed crystal, and the page.

    Args:
        out: the folder.
        drafts: rows of `schemas.BASE`.
        rows: rows of `schemas.ON_REQUEST`.
        hull: the hull, for the page's caption.
        color: main color of the page, #rrggbb.
        metadata: what the tables are made of.
    """
    with atomic_folder(out) as folder:
        write_table(folder / DRAFTS, drafts, schemas.REQUESTED_BASE, metadata)
        write_table(folder / CRYSTALS, rows, schemas.ON_REQUEST, metadata)
        (folder / CIF_FOLDER).mkdir()
        for row in rows:
            if row["cif"] is not None:
                crystal = required_crystal(row, out / CRYSTALS)
                (folder / row["cif"]).write_text(crystal.to_structure().to(fmt="cif"))
        write_text(folder / PAGE, page(rows, hull, color))


def page(rows: Sequence[Row], hull: HullFile, color: str) -> str:
    """Return the page: the crystals nearest to the hull, and the table of all."""
    sources = ", ".join(hull.sources)
    table = Table(
        "crystals",
        "All crystals",
        f"By energy above the hull in eV per atom; hull: {sources} ({len(hull.hull)} "
        "compositions). Crystals of whose elements it has no compound are last. A dash: no value.",
        COLUMNS,
        [_cells(row) for row in rows],
    )
    section = Section(
        "crystals",
        "Crystals",
        note=" ".join(
            [
                "The crystals nearest to the hull, each once.",
                *map(_sentence, warnings_of(rows, hull)),
            ]
        ),
        gallery=_gallery(rows),
        tables=[table],
    )
    return render(
        title="Crystals on request",
        subtitle=f"{sum(row['cif'] is not None for row in rows)} relaxed crystals of {len(rows)}",
        color=color,
        sections=[section],
        files=False,
    )


def _class_of(row: Row) -> str:
    """Return the class of matching crystals; one that could not be compared is its own."""
    return str(row["duplicate_group"] or row["id"])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _cells(row: Row) -> Row:
    cells = {column.key: row.get(column.key) for column in COLUMNS}
    cells |= {"verdict": verdict(row), "asked": wishes_text(row) or None}
    if row["lengths"] is None:
        cells["reduced_formula"] = row["formula"] or row["status"]
    return cells


def _gallery(rows: Sequence[Row]) -> list[Candidate]:
    """Return the first crystal of each class, nearest to the hull first."""
    shown: list[Candidate] = []
    classes: set[str] = set()
    for row in rows:
        crystal, group = crystal_of(row), _class_of(row)
        placed = crystal is not None and row["e_above_hull"] is not None
        if crystal is None or not placed or group in classes or len(shown) == SHOWN_IN_GALLERY:
            continue
        classes.add(group)
        shown.append(
            Candidate(
                name=row["id"],
                source=row["cif"],
                structure=crystal.to_structure(),
                e_above_hull=row["e_above_hull"],
                # Its class is shown once; the S.U.N. crystal of the class may be another draft.
                sun=row["stable"] and row["novel"],
                converged=bool(row["converged"]),
                space_group=row["space_group"],
                known=row["matched_material_id"],
                compared=row["duplicate_group"] is not None,
                note="; ".join(
                    filter(None, [wishes_text(row), "" if has_reference(row) else BARE])
                ),
            )
        )
    return shown


def printed_table(rows: Sequence[Row], out: Path) -> Iterator[str]:
    """Yield the lines of the table that is printed, and of a summary.

    Crystals that match are one line, that of the nearest to the hull, with their number.
    """
    relaxed = [row for row in rows if row["cif"] is not None]
    classes: dict[str, list[Row]] = {}
    for row in relaxed:
        classes.setdefault(_class_of(row), []).append(row)
    asked = any(row["asked"] for row in relaxed)
    columns = [one for one in COLUMNS if asked or one.key != "asked"]
    columns.insert(-1, Column("drafts", "drafts", "count"))
    cells = [[column.title for column in columns]]
    for first, *others in list(classes.values())[:PRINTED]:
        values = _cells(first) | {"cif": str(out / first["cif"]), "drafts": 1 + len(others)}
        values["verdict"] = novelty(first)
        cells.append([_shown(values[column.key]) for column in columns])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(
            text.ljust(width) for text, width in zip(line, widths, strict=True)
        ).rstrip()
    if len(classes) > PRINTED:
        yield f"and {len(classes) - PRINTED} more in {out / CRYSTALS}"
    yield summary(rows, len(classes))
    yield f"page: {out / PAGE}"


def summary(rows: Sequence[Row], num_classes: int) -> str:
    """Return how many drafts were relaxed and meet the wishes, and counts of crystals."""
    relaxed = [row for row in rows if row["cif"] is not None]
    judged = [row["all_met"] for row in rows if row["all_met"] is not None]
    metastable = {_class_of(row) for row in relaxed if row["metastable"]}
    parts = [
        f"{len(relaxed)} of {len(rows)} drafts relaxed",
        f"{num_classes} different crystals",
        *([f"{sum(judged)} of {len(judged)} drafts meet their conditions"] if judged else []),
        f"{len(metastable)} metastable or stable",
        f"{sum(row['novel'] and row['unique'] for row in relaxed)} novel",
        f"{sum(row['sun'] for row in relaxed)} stable, unique and novel",
    ]
    return ", ".join(parts)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:+.3f}" if isinstance(value, float) else str(value)


def warnings_of(rows: Sequence[Row], hull: HullFile) -> Iterator[str]:
    """Yield what a reader of the table must know before using it."""
    relaxed = [row for row in rows if row["cif"] is not None]
    if failed := [row for row in rows if row["cif"] is None]:
        reasons = sorted({row["status"] for row in failed})
        yield f"{len(failed)} of {len(rows)} drafts have no relaxed crystal: {', '.join(reasons)}"
    if lacking := [row for row in relaxed if not has_reference(row)]:
        names = sorted({row["reduced_formula"] for row in lacking})
        sources = ", ".join(map(short_label, hull.sources))
        yield (
            f"the hull ({sources}, {len(hull.hull)} compositions) has no compound of the chemical "
            f"system of {len(lacking)} of {len(relaxed)} crystals ({_some(names)}): their energy "
            "above the hull is missing or too low"
        )
    if loose := [row for row in relaxed if not row["converged"]]:
        yield (
            f"{len(loose)} of {len(relaxed)} relaxations did not converge, so that their energies "
            "are upper bounds; raise prerelax.max_steps"
        )
    judged = [row for row in relaxed if row["all_met"] is not None]
    if missed := [row for row in judged if not row["all_met"]]:
        yield f"{len(missed)} of {len(judged)} crystals do not meet the conditions asked for"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
