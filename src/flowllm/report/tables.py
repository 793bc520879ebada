"""The tables of the report, each made once and written as HTML, Markdown, LaTeX and CSV.

A cell is a rate or a summary as the metrics' JSON holds it, a published value, text, or None. The
column says how it is shown; CSV gets the bare numbers, a rate's counts and interval too.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from flowllm.report.records import Result, StageCost

PAPER_VALUES = Path(__file__).with_name("paper_values.yaml")

Kind = Literal["text", "count", "number", "rate", "mean", "distance"]


@dataclass(frozen=True)
class Column:
    """A column: the key of its cells in a row, its heading, and how a cell is shown.

    Attributes:
        key: name in a row and in the CSV's header.
        title: heading.
        kind: `text`, `count`, `number`, `rate` (a fraction, shown in percent), `mean`
            or `distance` (between two sets of crystals).
        digits: decimals shown.
    """

    key: str
    title: str
    kind: Kind = "text"
    digits: int = 2


@dataclass(frozen=True)
class Shown:
    """A cell as a reader sees it: the number, and in small print what it rests on."""

    text: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        name: of its files.
        title: heading.
        caption: what a reader must know to read it.
        columns: its columns.
        rows: cells by column key; a row with `published` set is not ours.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def shown(self) -> list[list[Shown]]:
        """Return the cells as a reader sees them."""
        return [[show(row.get(column.key), column) for column in self.columns] for row in self.rows]


def show(cell: Any, column: Column) -> Shown:
    """Return a cell as a reader sees it."""
    if cell is None:
        return Shown("–")
    if not isinstance(cell, Mapping):
        return Shown(_plain(cell, column))
    kind = _cell_kind(cell)
    number = cell["mean"] if kind == "mean" else cell["value"]
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


def _plain(cell: Any, column: Column) -> str:
    if column.kind == "number":
        return f"{cell:.{column.digits}f}"
    if column.kind == "count":
        return f"{cell:,}".replace(",", "\u202f")
    return str(cell)


def _cell_kind(cell: Mapping[str, Any]) -> Literal["published", "rate", "mean", "distance"]:
    """Return what a cell is, by what it holds."""
    if "evidence" in cell:
        return "published"
    if "numerator" in cell:
        return "rate"
    return "mean" if "mean" in cell else "distance"


def _fixed(number: float, column: Column, kind: str) -> str:
    # A mean in a column of rates, where readings of a rule are compared, needs more decimals.
    digits = 4 if kind == "mean" and column.kind == "rate" else column.digits
    return f"{number:.{digits}f}"


def _spread(cell: Mapping[str, Any], column: Column) -> str:
    error = cell["standard_error"]
    return "" if error is None else f"± {_fixed(error, column, 'mean')}; "


def to_csv(table: Table) -> str:
    """Return a table as CSV: fractions, not percent; a column for each count and interval."""
    rows = [_bare(row, table.columns) for row in table.rows]
    header = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, header or [c.key for c in table.columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


_CSV_PARTS = {
    "published": (),
    "rate": ("numerator", "denominator", "low", "high"),
    "mean": ("standard_error", "count"),
    "distance": ("count", "reference_count"),
}


def _bare(row: Mapping[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    """Return a row's numbers without formatting, by CSV column."""
    bare: dict[str, Any] = {}
    for column in columns:
        cell = row.get(column.key)
        if not isinstance(cell, Mapping):
            bare[column.key] = cell
            continue
        kind = _cell_kind(cell)
        bare[column.key] = cell["mean"] if kind == "mean" else cell["value"]
        bare.update({f"{column.key}_{part}": cell[part] for part in _CSV_PARTS[kind]})
        if kind == "published":
            bare[f"{column.key}_source"] = f"[{cell['evidence']}] {cell['text']}"
    return bare


def to_markdown(table: Table) -> str:
    """Return a table as GitHub Markdown, title and caption included."""
    lines = [f"### {table.title}", "", table.caption, ""]
    lines.append("| " + " | ".join(column.title for column in table.columns) + " |")
    lines.append("|" + "|".join("---" if c.kind == "text" else "--:" for c in table.columns) + "|")
    for cells in table.shown():
        texts = [f"{cell.text} ({cell.detail})" if cell.detail else cell.text for cell in cells]
        lines.append("| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |")
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
    "Å": r"\AA{}",
    "³": r"$^3$",
    "°": r"$^\circ$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(table: Table) -> str:
    """Return a table as a LaTeX table environment for the package booktabs."""
    alignment = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    lines = [
        r"\begin{table}",
        rf"\caption{{{_latex(table.title)}. {_latex(table.caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        " & ".join(_latex(column.title) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    for row, cells in zip(table.rows, table.shown(), strict=True):
        texts = [_latex(cell.text) for cell in cells]
        if row.get("published"):
            texts = [rf"\textit{{{text}}}" for text in texts]
        lines.append(" & ".join(texts) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def published_rows(
    keys: Sequence[str], path: Path = PAPER_VALUES, *, every: bool = False
) -> list[dict[str, Any]]:
    """Return a row for each published method that has a value under some of the keys.

    Args:
        keys: the columns.
        path: file of the published values.
        every: also those of which no value is known, as a row of dashes.
    """
    values = yaml.safe_load(path.read_text())
    rows = []
    for method in values["methods"]:
        cells = {
            key: {"value": method[key]["value"], **values["sources"][method[key]["source"]]}
            for key in keys
            if method.get(key)
        }
        if cells or every:
            rows.append({"setting": method["method"], "published": True, **cells})
    return rows


_SETTING = Column("setting", "Setting")

_SUN_COLUMNS = (
    _SETTING,
    Column("drawn", "Crystals", "count"),
    Column("metastability_rate", "Metastable", "rate"),
    Column("stability_rate", "Stable", "rate"),
    Column("uniqueness", "Unique", "rate"),
    Column("novelty", "Novel", "rate"),
    Column("novel_of_stable", "Novel, of stable", "rate"),
    Column("unique_of_stable_novel", "Unique, of stable and novel", "rate"),
    Column("metastable_sun_rate", "Metastable S.U.N.", "rate"),
    Column("sun_rate", "S.U.N.", "rate"),
)

TERMINAL_COLUMNS = (
    _SETTING,
    Column("structural_validity", "Valid structure", "rate"),
    Column("compositional_validity", "Valid composition", "rate"),
    Column("relaxed", "Relaxed", "rate"),
    Column("metastability_rate", "Metastable", "rate"),
    Column("stability_rate", "Stable", "rate"),
    Column("novelty", "Novel", "rate"),
    Column("sun_rate", "S.U.N.", "rate"),
)
"""What is printed of each setting; counts stand beside the rates."""

_PAPER_COLUMNS = (
    _SETTING,
    Column("structural_validity", "Structural validity", "rate"),
    Column("compositional_validity", "Composition validity", "rate"),
    Column("coverage_recall", "Coverage recall", "rate"),
    Column("coverage_precision", "Coverage precision", "rate"),
    Column("wasserstein_density", "Distance of density", "distance", 3),
    Column("wasserstein_num_elements", "Distance of number of elements", "distance", 3),
    Column("stability_rate", "Stable, by DFT", "rate"),
    Column("sun_rate", "S.U.N., by DFT", "rate"),
)
"""The paper's table 1."""

_PROXY_COLUMNS = (
    _SETTING,
    Column("drawn", "Crystals", "count"),
    Column("structural_validity", "Structural validity", "rate"),
    Column("compositional_validity", "Composition validity", "rate"),
    Column("validity", "Valid", "rate"),
    Column("coverage_recall", "Coverage recall", "rate"),
    Column("coverage_precision", "Coverage precision", "rate"),
    Column("coverage_precision_of_valid", "Coverage precision, of valid", "rate"),
    Column("wasserstein_density", "Distance of density", "distance", 3),
    Column("wasserstein_num_elements", "Distance of number of elements", "distance", 3),
)

_GROUND_STATE_COLUMNS = (
    _SETTING,
    Column("drawn", "Crystals", "count"),
    Column("match_rate", "Match rate", "rate"),
    Column("rmsd", "RMSD", "mean", 4),
    Column("delta_energy_per_atom", "Δ-energy, eV/atom", "mean", 3),
    Column("delta_energy_per_cell", "Δ-energy, eV", "mean", 3),
    Column("num_steps", "Steps", "mean", 1),
)

_READINGS = (
    ("Stable", "stability_rate_below", "E_hull < bound (text)"),
    ("Stable", "stability_rate_at_most", "E_hull ≤ bound (code)"),
    ("Novel", "novelty_train", "against train (appendix D)"),
    ("Novel", "novelty_train_val", "against train and val (section 5.3)"),
    ("S.U.N.", "sun_rate_train", "novel against train (appendix D)"),
    ("S.U.N.", "sun_rate_train_val", "novel against train and val (section 5.3)"),
    ("S.U.N.", "sun_rate", "unique among all (appendix D)"),
    ("S.U.N.", "sun_rate_classes_among_stable", "unique among the stable (code)"),
    ("Match rate", "match_rate", "matcher 0.2, 0.3, 5° (text)"),
    ("Match rate", "match_rate_loose", "matcher 0.3, 0.5, 10° (code)"),
    ("RMSD", "rmsd", "matcher 0.2, 0.3, 5° (text)"),
    ("RMSD", "rmsd_loose", "matcher 0.3, 0.5, 10° (code)"),
)
"""Metric, its name in the JSON, and by which reading of the rule."""


def _result_row(result: Result) -> dict[str, Any]:
    """All of a setting's numbers by their names, for any of the tables."""
    numbers = result.numbers
    return {
        "setting": result.setting,
        "drawn": numbers["counts"]["drawn"],
        **numbers["rates"],
        **numbers["means"],
        **numbers["distances"],
    }


def energy_name(results: Sequence[Result]) -> str:
    """Return the names of the energies behind some results."""
    names = {name for result in results for name in result.numbers["protocol"]["energy_sources"]}
    return ", ".join(sorted(names)) or "none"


def _hull_name(results: Sequence[Result]) -> str:
    names = {name for result in results for name in result.numbers["protocol"]["hull_sources"]}
    return ", ".join(sorted(names)) or "none"


def _corrections(results: Sequence[Result]) -> str:
    """Return the correction schemes of DFT energies in words, nothing for a potential's."""
    found = {name for one in results for name in one.numbers["protocol"]["correction_schemes"]}
    return f"; corrections: {', '.join(sorted(found))}" if found else ""


def _matcher(result: Result) -> str:
    matcher = result.numbers["protocol"]["matcher"]
    return f"{matcher['name']} {matcher['ltol']}, {matcher['stol']}, {matcher['angle_tol']}°"


def _rules(results: Sequence[Result]) -> str:
    """Return thresholds, hull and novelty of some results in words."""
    said = []
    for result in results:
        rule = result.numbers["protocol"]["stability_rule"]
        against = {"train": "the training split", "train_val": "the train and val splits"}[
            result.numbers["protocol"]["novelty_against"]
        ]
        sign = "≤" if rule["inclusive"] else "<"
        text = (
            f"stable: E_hull {sign} {rule['stable_below']:g} eV/atom with at least "
            f"{rule['min_elements']} elements; metastable: < {rule['metastable_below']:g} eV/atom; "
            f"novel against {against}; same crystal: {_matcher(result)}"
        )
        if text not in said:
            said.append(text)
    return "; or ".join(said)


def sun_table(results: Sequence[Result], kind: Literal["potential", "dft"]) -> Table:
    """Stability and S.U.N. by the potential or by DFT (paper, table 1): two tables, never mixed."""
    ours = [result for result in results if result.kind == kind]
    rows = [_result_row(result) for result in ours]
    how = (
        f"Energies: {energy_name(ours)}; hull: {_hull_name(ours)}{_corrections(ours)}; "
        f"{_rules(ours)}. "
    )
    every = (
        "Every rate is over all draws of the language model unless its heading says otherwise; "
        "in small print: counts and Wilson's 95 % interval in percent."
    )
    if kind == "potential":
        title = "Stability and S.U.N., estimated by a machine-learned potential"
        caption = f"Estimates, not DFT. {how}{every}"
    else:
        rows += published_rows([column.key for column in _SUN_COLUMNS])
        title = "Stability and S.U.N. by DFT"
        caption = (how + every if ours else "No DFT results of this run yet.") + _published_note()
    return Table(f"stability_{kind}", title, caption, _SUN_COLUMNS, rows)


def _published_note() -> str:
    return (
        " Shaded rows are published values: [S] in the paper's text, [2nd] quoted by others, "
        "[C] constants in public code. A dash: not known to us."
    )


def _once_a_setting(results: Sequence[Result]) -> list[Result]:
    """One result a setting, for numbers that do not depend on whose energies were used."""
    found: dict[str, Result] = {}
    for result in results:
        found.setdefault(result.setting, result)
    return list(found.values())


def paper_table(results: Sequence[Result]) -> Table:
    """Everyone in one table (paper, table 1): ours, other models' samples, published values.

    Stability and S.U.N. are DFT's or a dash: the potential's estimates have a table of their own.
    """
    keys = [column.key for column in _PAPER_COLUMNS]
    by_dft = {"stability_rate", "sun_rate"}
    rows = []
    for setting in dict.fromkeys(result.setting for result in results):
        row: dict[str, Any] = {}
        for result in (one for one in results if one.setting == setting):
            found = _result_row(result)
            allowed = [key for key in keys if result.kind == "dft" or key not in by_dft]
            row |= {key: found[key] for key in allowed}
        rows.append(row)
    dft = [result for result in results if result.kind == "dft"]
    how = f" DFT: hull {_hull_name(dft)}{_corrections(dft)}; {_rules(dft)}." if dft else ""
    return Table(
        "paper",
        "Everyone in one table (the paper's table 1)",
        f"This run's rows, then published ones.{how} What the columns mean: tables below. "
        "CrystalLLM: the language model's crystals, not refined." + _published_note(),
        _PAPER_COLUMNS,
        rows + published_rows(keys, every=True),
    )


def proxy_table(results: Sequence[Result]) -> Table:
    """Validity, coverage and property distances as generated (paper, table 1)."""
    ours = _once_a_setting(results)
    sets = sorted({result.numbers["protocol"]["oxidation_states"] for result in ours})
    return Table(
        "proxy",
        "Proxy metrics of the generated crystals",
        "Before any relaxation. Structural: no two atoms closer than 0.5 Å, at least 0.1 Å³. "
        f"Composition: SMACT with oxidation states {', '.join(sets)}; "
        "valid: both, and CrystalNN gives a fingerprint. Coverage of the test split with CDVAE's "
        "fingerprints and MP-20's cut-offs (0.4, 10); precision over all generated, and over valid "
        "ones as crystal-text-llm has it. Wasserstein distances (g/cm³, elements) of up to 1,000 "
        "valid crystals to the test split.",
        _PROXY_COLUMNS,
        [_result_row(result) for result in ours],
    )


_NOISE_COLUMNS = (
    Column("coords_noise", "Noise of coordinates", "number", 3),
    Column("lengths_noise", "of lengths, Å", "number", 3),
    Column("angles_noise", "of angles, °", "number", 2),
)


def noise_table(results: Sequence[Result], flows: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Proxy metrics against the noise on the language model's crystals (paper, table 4).

    Args:
        results: all results.
        flows: how each velocity network was trained, by name.

    Returns:
        The table, or None where all networks have the same noise.
    """
    rows = []
    for result in _once_a_setting(results):
        flow = flows.get(result.numbers["sampling"]["setting"].get("flow") or "")
        if flow and flow["start"] == "llm":
            noise = {column.key: flow[column.key] for column in _NOISE_COLUMNS}
            rows.append(_result_row(result) | noise)
    if len({tuple(row[column.key] for column in _NOISE_COLUMNS) for row in rows}) < 2:
        return None
    return Table(
        "noise",
        "Noise on the language model's crystals",
        "Gaussian noise before the flow, in training and sampling (the paper's table 4; its levels "
        "are not known to us): standard deviations, of coordinates in fractions of the cell. The "
        "metrics are those of the table before.",
        (_SETTING, *_NOISE_COLUMNS, *_PROXY_COLUMNS[2:]),
        rows,
    )


def ground_state_table(results: Sequence[Result]) -> Table:
    """Distance of the generated crystals to their relaxed state (paper, table 2)."""
    ours = [result for result in results if result.kind == "potential"]
    keys = [column.key for column in _GROUND_STATE_COLUMNS]
    return Table(
        "ground_state",
        "Distance of the generated crystals to their relaxed state",
        f"Relaxed by {energy_name(ours)}. Match rate and RMSD by StructureMatcher's defaults "
        "(0.2, 0.3, 5°); RMSD in units of the cube root of the volume an atom, over the matches."
        + _published_note(),
        _GROUND_STATE_COLUMNS,
        [_result_row(result) for result in ours] + published_rows(keys),
    )


def csp_table(predictions: Sequence[Mapping[str, Any]]) -> Table:
    """Crystal structure prediction of the test split, from formula-conditioned samples."""
    columns = (
        _SETTING,
        Column("attempts", "Attempts, k", "count"),
        Column("csp_match_rate", "Match rate, best of k", "rate"),
        Column("match_rate_first", "Match rate, first", "rate"),
        Column("match_rate_smact_valid", "Match rate, SMACT-valid only", "rate"),
        Column("rmse", "RMSE, best of k", "mean", 4),
        Column("rmse_first", "RMSE, first", "mean", 4),
    )
    rows = []
    for one in predictions:
        row = {"setting": one["setting"], "attempts": one["attempts"]}
        rates = one["rates"]
        rows.append(row | rates | one["means"] | {"csp_match_rate": rates["match_rate"]})
    return Table(
        "csp",
        "Crystal structure prediction",
        "Crystals of the test split's formulas; the rate is over the test crystals that were "
        "predicted. Match: StructureMatcher 0.3, 0.5, 10°; a prediction with atoms closer than "
        "0.5 Å never matches. SMACT-valid only: the peers' flag of validity asks for it too, "
        "though the formula is given. RMSE in units of the cube root of the volume an atom, over "
        "the matches." + _published_note(),
        columns,
        rows + published_rows([column.key for column in columns]),
    )


def reading_table(results: Sequence[Result], kind: Literal["potential", "dft"]) -> Table:
    """Both readings of each rule where the paper's text and the authors' code differ."""
    columns = (
        Column("metric", "Metric"),
        Column("reading", "Reading"),
        *(
            Column(result.setting, result.setting, "rate")
            for result in results
            if result.kind == kind
        ),
    )
    ours = {result.setting: _result_row(result) for result in results if result.kind == kind}
    rows = [
        {"metric": metric, "reading": reading, **{name: row[key] for name, row in ours.items()}}
        for metric, key, reading in _READINGS
    ]
    label = "estimates by the potential" if kind == "potential" else "DFT"
    return Table(
        f"readings_{kind}",
        f"Both readings of the rules ({label})",
        "Both are given where the paper says two things, or its text and the authors' code differ.",
        columns,
        rows,
    )


def protocol_tables(results: Sequence[Result], kind: Literal["potential", "dft"]) -> list[Table]:
    """One table for each other group's way of counting, this run's energies and hull in all."""
    ours = [result for result in results if result.kind == kind]
    names = list(ours[0].numbers["protocols"]) if ours else []
    return [_protocol_table(ours, kind, name) for name in names]


def _protocol_table(ours: Sequence[Result], kind: str, name: str) -> Table:
    rule = ours[0].numbers["protocols"][name]
    columns = [
        _SETTING,
        Column("drawn", "Crystals", "count"),
        Column("stability_rate", f"Stable, ≤ {rule['stable_at_most']:g} eV/atom", "rate"),
        Column("sun_rate", "S.U.N.", "rate"),
    ]
    if rule["metastable_at_most"] is not None:
        title = f"Metastable, ≤ {rule['metastable_at_most']:g} eV/atom, not stable"
        columns.append(Column("metastability_rate", title, "rate"))
        columns.append(Column("metastable_sun_rate", "MetaSUN", "rate"))
    rows = []
    for result in ours:
        row = {"setting": result.setting, "drawn": result.numbers["counts"]["drawn"]}
        rows.append(row | result.numbers["protocols"][name])
    label = "estimates by the potential" if kind == "potential" else "DFT"
    return Table(
        f"protocol_{name.lower().replace('-', '_')}_{kind}",
        f"{name}'s way of counting ({label})",
        f"{name}'s thresholds ({rule['source']}), this run's energies ({energy_name(ours)}), hull "
        f"({_hull_name(ours)}), matcher and known crystals: not comparable with its published "
        "numbers, which rest on another hull. No limit on the number of elements.",
        columns,
        rows,
    )


def fate_table(results: Sequence[Result]) -> Table:
    """What became of the draws: how many crystals reached each stage."""
    columns = (
        _SETTING,
        Column("origin", "Made by"),
        Column("energies", "Energies"),
        Column("drawn", "Drawn", "count"),
        Column("generated", "Generated", "rate", 1),
        Column("relaxed", "Relaxed", "rate", 1),
        Column("placed_on_hull", "Placed on the hull", "rate", 1),
        Column("stopped", "What stopped the others"),
    )
    rows = []
    for result in results:
        counts = result.numbers["counts"]
        # A crystal that failed early has a status of its own at each later stage; the later
        # statuses are the complete list.
        stopped = {name: n for name, n in counts["relaxed"].items() if name != "ok"}
        text = ", ".join(f"{name} {count}" for name, count in stopped.items())
        row = {"origin": _origin(result), "energies": result.kind, "stopped": text or "–"}
        rows.append(_result_row(result) | row)
    return Table(
        "fates",
        "What became of the draws",
        "Crystals that were rejected, failed or never computed stay in every denominator.",
        columns,
        rows,
    )


def _origin(result: Result) -> str:
    """Return in words how a setting's crystals were made, or from where they were read."""
    sampling = result.numbers["sampling"]
    if file := sampling["external"].get("file"):
        return f"another model, {file}"
    rows = {**sampling["base"], **sampling["setting"]}
    return ", ".join(f"{key} {value}" for key, value in rows.items() if key != "name") or "–"


def rejection_table(rejections: Sequence[tuple[str, str, int]]) -> Table:
    """What was turned away and why, source rows and drafts of the language model."""
    columns = (
        Column("where", "Where"),
        Column("reason", "Reason"),
        Column("count", "Count", "count"),
    )
    rows = [
        {"where": where, "reason": reason, "count": count} for where, reason, count in rejections
    ]
    return Table(
        "rejections",
        "What was turned away",
        "Source rows that are in no split; drafts of the language model that were drawn again; "
        "draws given up after the last attempt.",
        columns,
        rows,
    )


def cost_table(costs: Sequence[StageCost]) -> Table:
    """Time, throughput, cost, memory and rows of each stage."""
    columns = (
        Column("stage", "Stage"),
        Column("jobs", "Jobs", "count"),
        Column("seconds", "Seconds, all jobs", "number", 1),
        Column("longest", "Longest job, s", "number", 1),
        Column("rows_per_second", "Rows a second", "number", 2),
        Column("tokens_per_second", "Tokens a second", "number", 1),
        Column("core_hours", "Core-hours", "number", 3),
        Column("gpu_hours", "GPU-hours", "number", 3),
        Column("peak_memory_mb", "Peak memory, MiB", "count"),
        Column("rows_in", "Rows in", "count"),
        Column("rows_out", "Rows out", "count"),
        Column("rows_failed", "Failed", "count"),
    )
    rows = [
        {
            "stage": cost.stage,
            "jobs": cost.jobs,
            "seconds": round(cost.seconds, 1),
            "longest": round(cost.longest, 1),
            "rows_per_second": cost.rows_per_second,
            "tokens_per_second": cost.tokens_per_second,
            "core_hours": cost.core_hours,
            "gpu_hours": cost.gpu_hours,
            "peak_memory_mb": cost.peak_memory_mb,
            **cost.rows,
        }
        for cost in costs
    ]
    return Table(
        "stages",
        "Time, throughput and cost of each stage",
        "Wall time inside the stages, from their records; jobs may have run at the same time. "
        "Rows a second: of one job, its start included. Tokens a second: while generating. "
        "Core-hours and GPU-hours: wall time times the cores and GPUs that a job saw.",
        columns,
        rows,
    )


def speed_table(results: Sequence[Result], seconds: Mapping[str, float | None]) -> Table:
    """Time to generate 10,000 crystals and time for one S.U.N. crystal (paper, appendix G)."""
    columns = (
        _SETTING,
        Column("energies", "S.U.N. by"),
        Column("minutes_per_10000", "Minutes for 10,000", "number", 1),
        Column("seconds_per_sun", "Seconds for one S.U.N.", "number", 2),
    )
    rows: list[dict[str, Any]] = []
    for result in results:
        total = seconds.get(result.setting)
        drawn = result.numbers["counts"]["drawn"]
        if not total or not drawn:
            continue
        sun = result.numbers["rates"]["sun_rate"]["numerator"]
        row = {"setting": result.setting, "energies": energy_name([result])}
        row["minutes_per_10000"] = round(total / drawn * 10_000 / 60, 1)
        row["seconds_per_sun"] = round(total / sun, 2) if sun else None
        rows.append(row)
    return Table(
        "speed",
        "Time to generate",
        "Sampling of the language model and refinement, summed over jobs on the machines of the "
        "provenance below; published: one A100-80GB." + _published_note(),
        columns,
        rows + published_rows([column.key for column in columns]),
    )
