"""The same crystals by other readings of the rules, and by other groups' rules."""

from collections.abc import Sequence
from typing import Literal

from flowllm.evaluate.protocols import VALID
from flowllm.report.metrics_files import Result, of_kind
from flowllm.report.protocol_text import energy_name, hull_name, made_by
from flowllm.report.table import METHOD, Column, Table

_READINGS = (
    ("Stable", "stability_rate_below", "E_hull < bound (text)"),
    ("Stable", "stability_rate_at_most", "E_hull ≤ bound (code)"),
    ("Novel", "novelty_train", "against train (appendix D)"),
    ("Novel", "novelty_train_val", "against train and val (section 5.3)"),
    ("S.U.N.", "sun_rate_train", "novel against train (appendix D)"),
    ("S.U.N.", "sun_rate_train_val", "novel against train and val (section 5.3)"),
    ("S.U.N.", "sun_rate", "classes joined by chains, among all (appendix D)"),
    ("S.U.N.", "sun_rate_greedy", "direct matches removed in file order, stable and novel (code)"),
    ("Match rate", "match_rate", "matcher 0.2, 0.3, 5° (text)"),
    ("Match rate", "match_rate_of_relaxed", "of the relaxed, matcher 0.2, 0.3, 5°"),
    ("Match rate", "match_rate_loose", "matcher 0.3, 0.5, 10° (code)"),
    ("Match rate", "match_rate_loose_of_relaxed", "of the relaxed, matcher 0.3, 0.5, 10°"),
    ("RMSD", "rmsd", "matcher 0.2, 0.3, 5° (text)"),
    ("RMSD", "rmsd_loose", "matcher 0.3, 0.5, 10° (code)"),
)
"""Metric, its name in the JSON, and by which reading of the rule."""

_WHOSE = {"potential": "estimates by the potential", "dft": "DFT"}
"""Words for a kind of energies."""


def reading_table(results: Sequence[Result], kind: Literal["potential", "dft"]) -> Table:
    """Both readings of each rule where the paper's text and the authors' code differ."""
    ours = of_kind(results, kind)
    columns = (
        Column("metric", "Metric"),
        Column("reading", "Reading"),
        *(Column(result.method, result.method, "rate") for result in ours),
    )
    rows = [
        {"metric": metric, "reading": reading, **{one.method: one.row[key] for one in ours}}
        for metric, key, reading in _READINGS
    ]
    return Table(
        f"readings_{kind}",
        f"Both readings of the rules ({_WHOSE[kind]})",
        "Both are given where the paper says two things, or its text and the authors' code differ; "
        "what a row does not vary is as configured. Classes joined by chains of matches count no "
        "more crystals than the code's greedy rule: they are a lower bound of it. " + made_by(ours),
        columns,
        rows,
    )


def protocol_tables(results: Sequence[Result], kind: Literal["potential", "dft"]) -> list[Table]:
    """One table for each other group's way of counting, this run's energies and hull in all."""
    ours = of_kind(results, kind)
    names = list(ours[0].numbers["protocols"]) if ours else []
    return [_protocol_table(ours, kind, name) for name in names]


def _protocol_table(ours: Sequence[Result], kind: str, name: str) -> Table:
    rule = ours[0].numbers["protocols"][name]
    columns = [
        METHOD,
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
        row = {"setting": result.method, "drawn": result.numbers["counts"]["drawn"]}
        rows.append(row | result.numbers["protocols"][name])
    among = "valid crystals alone, by this run's rules" if rule["of"] == VALID else rule["of"]
    return Table(
        f"protocol_{name.lower().replace('-', '_')}_{kind}",
        f"{name}'s way of counting ({_WHOSE[kind]})",
        f"{name}'s thresholds and denominator ({rule['source']}): {among}. This run's energies "
        f"({energy_name(ours)}), hull ({hull_name(ours)}), matcher and known crystals: not "
        "comparable with its published numbers, which rest on another hull. No limit on the "
        "number of elements.",
        columns,
        rows,
    )
