"""A table of the report, and its forms as text, CSV, Markdown and LaTeX.

A cell is a rate or a summary in the form of the metrics' JSON, a published value, text, or None.
The column determines how it is shown. CSV files contain unformatted numbers, with the counts and
the interval of each rate.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flowllm.plain_text import markdown_text, spreadsheet_text

ColumnType = Literal["text", "count", "number", "rate", "mean", "distance"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: name of its cells in a row, and in the header of the CSV file.
        title: heading.
        kind: type of its cells: `text`, `count`, `number`, `rate` (a fraction, shown in percent),
            `mean` or `distance` (between two sets of crystals).
        digits: number of decimals shown.
        beneath: whether the page shows its text in small print in the row's first cell, where it
            takes less width.
    """

    key: str
    title: str
    kind: ColumnType = "text"
    digits: int = 2
    beneath: bool = False


@dataclass(frozen=True)
class Shown:
    """A formatted cell: the number, and in small print its counts, error or source."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        name: name of its files.
        title: heading.
        caption: what a reader must know, at most two sentences.
        columns: the columns.
        rows: cells by key of the column; a row with `published` set contains published values.
        protocol: how the numbers are made, and their sources; the page folds it.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]] = field(default_factory=list)
    protocol: str = ""

    @property
    def whole_caption(self) -> str:
        """Caption and protocol, for files that fold nothing."""
        return f"{self.caption} {self.protocol}".strip()

    def shown(self) -> list[list[Shown]]:
        """Return the formatted cells, row by row."""
        return [[show(row.get(column.key), column) for column in self.columns] for row in self.rows]

    def on_page(self) -> "Table":
        """Return the table without the columns that the page does not show as columns."""
        return replace(self, columns=[column for column in self.columns if not column.beneath])

    def beneath(self, row: Mapping[str, Any]) -> list[str]:
        """Return the small print in the first cell of a row."""
        return [show(row.get(column.key), column).text for column in self.columns if column.beneath]


def show(cell: Any, column: Column) -> Shown:
    """Return a formatted cell."""
    if cell is None:
        return Shown("–")
    if not isinstance(cell, Mapping):
        return Shown(_plain(cell, column))
    kind = _cell_kind(cell)
    number = cell["mean"] if kind == "mean" else cell["value"]
    if kind == "estimate":
        return _shown_estimate(cell, column)
    details = {
        "published": lambda: f"published [{cell['evidence']}]",
        "rate": lambda: (
            f"{cell['numerator']} of {cell['denominator']}; "
            f"{100 * cell['low']:.{column.digits}f}–{100 * cell['high']:.{column.digits}f}"
        ),
        "mean": lambda: f"{_spread(cell, column)}{cell['count']} crystals",
        "distance": lambda: f"{cell['count']} against {cell['reference_count']}",
    }
    if number is None:
        return Shown("–", "of none")
    percent = kind == "rate" or (kind == "published" and column.kind == "rate")
    text = f"{100 * number:.{column.digits}f}\u202f%" if percent else _fixed(number, column, kind)
    return Shown(text, details[kind]())


def _shown_estimate(cell: Mapping[str, Any], column: Column) -> Shown:
    """Return a rate that is estimated from a sample; without a sample only its bounds are known."""
    bounds = f"{100 * cell['low']:.{column.digits}f}–{100 * cell['high']:.{column.digits}f}"
    if cell["value"] is None:
        return Shown("–", bounds)
    counts = f"{cell['certain']}"
    if cell["sample"]:
        counts += f" + {cell['sampled']} · {cell['population'] / cell['sample']:.4g}"
    text = f"{100 * cell['value']:.{column.digits}f}\u202f%"
    return Shown(text, f"{counts} of {cell['drawn']}; {bounds}")


def _plain(cell: Any, column: Column) -> str:
    if column.kind == "number":
        return f"{cell:.{column.digits}f}"
    if column.kind == "count":
        return f"{cell:,}".replace(",", "\u202f")
    return str(cell)


def _cell_kind(
    cell: Mapping[str, Any],
) -> Literal["published", "estimate", "rate", "mean", "distance"]:
    """Return the type of a cell by its keys."""
    if "evidence" in cell:
        return "published"
    if "certain" in cell:
        return "estimate"
    if "numerator" in cell:
        return "rate"
    return "mean" if "mean" in cell else "distance"


def _fixed(number: float, column: Column, kind: str) -> str:
    # Means in a column of rates occur in the table of readings and need more decimals.
    digits = 4 if kind == "mean" and column.kind == "rate" else column.digits
    return f"{number:.{digits}f}"


def _spread(cell: Mapping[str, Any], column: Column) -> str:
    error = cell["standard_error"]
    return "" if error is None else f"± {_fixed(error, column, 'mean')}; "


def to_csv(table: Table) -> str:
    """Return a table as CSV: fractions instead of percent, counts and bounds in own columns."""
    rows = [_bare(row, table.columns) for row in table.rows]
    header = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    names = header or [column.key for column in table.columns]
    # Text is quoted: by default the module does not quote a lone carriage return, which ends a row.
    writer = csv.DictWriter(out, names, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow({name: spreadsheet_text(name) for name in names})
    writer.writerows(rows)
    return out.getvalue()


_CSV_PARTS = {
    "published": (),
    "estimate": ("certain", "sampled", "sample", "population", "drawn", "low", "high"),
    "rate": ("numerator", "denominator", "low", "high"),
    "mean": ("standard_error", "count"),
    "distance": ("count", "reference_count"),
}


def _bare(row: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    """Return the unformatted values of a row by CSV column."""
    bare: dict[str, Any] = {}
    for column in columns:
        cell = row.get(column.key)
        if not isinstance(cell, Mapping):
            bare[column.key] = spreadsheet_text(cell)
            continue
        kind = _cell_kind(cell)
        bare[column.key] = cell["mean"] if kind == "mean" else cell["value"]
        bare.update({f"{column.key}_{part}": cell[part] for part in _CSV_PARTS[kind]})
        if kind == "published":
            bare[f"{column.key}_source"] = f"[{cell['evidence']}] {cell['text']}"
    return bare


def to_markdown(table: Table) -> str:
    """Return a table as GitHub Markdown with title and caption."""
    lines = [f"### {markdown_text(table.title)}", "", markdown_text(table.whole_caption), ""]
    titles = (markdown_text(column.title) for column in table.columns)
    lines.append("| " + " | ".join(titles) + " |")
    lines.append("|" + "|".join("---" if c.kind == "text" else "--:" for c in table.columns) + "|")
    for cells in table.shown():
        texts = [f"{cell.text} ({cell.detail})" if cell.detail else cell.text for cell in cells]
        lines.append("| " + " | ".join(map(markdown_text, texts)) + " |")
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\u202f": r"\,",
    "–": "--",
    "±": r"$\pm$",
    "≤": r"$\leq$",
    "Δ": r"$\Delta$",
    "τ": r"$\tau$",
    "ρ": r"$\rho$",
    "Å": r"\AA{}",
    "³": r"$^3$",
    "°": r"$^\circ$",
    "·": r"$\cdot$",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _small_print(detail: str) -> str:
    return rf" {{\scriptsize ({_latex(detail)})}}" if detail else ""


def to_latex(table: Table) -> str:
    """Return a table as a LaTeX table environment for the package booktabs."""
    alignment = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    lines = [
        r"\begin{table}",
        rf"\caption{{{_latex(table.title)}. {_latex(table.whole_caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(_latex(column.title) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    for row, cells in zip(table.rows, table.shown(), strict=True):
        texts = [_latex(cell.text) + _small_print(cell.detail) for cell in cells]
        if row.get("published"):
            texts = [rf"\textit{{{text}}}" for text in texts]
        # Without the braces, a bracket at the beginning of the next row would be an argument of \\.
        lines.append(" & ".join(texts) + r" \\{}")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


METHOD = Column("setting", "Method")
"""First column of most tables; its key is `setting` since the metrics' JSON files use this name."""
