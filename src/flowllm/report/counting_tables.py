"""Tables of rates by other readings of the rules, and by other groups' rules."""

from collections.abc import Sequence

from flowllm.evaluate.hull import EnergySource
from flowllm.evaluate.protocols import VALID
from flowllm.report.metrics_files import Result, of_kind
from flowllm.report.protocol_text import (
    energy_name,
    hull_name,
    made_by,
    not_relaxed,
    not_relaxed_note,
)
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
    ("Coverage precision", "coverage_precision_of_valid", "over valid crystals (peers' code)"),
    ("RMSD", "rmsd", "matcher 0.2, 0.3, 5° (text)"),
    ("RMSD", "rmsd_loose", "matcher 0.3, 0.5, 10° (code)"),
)
"""Metric, its name in the JSON, and the reading of the rule."""

_SOURCE_TITLES: dict[EnergySource, str] = {"potential": "estimates by the potential", "dft": "DFT"}
"""Names of the sources of energies in headings."""


def reading_table(results: Sequence[Result], kind: EnergySource) -> Table:
    """Return the other readings of the rules on which the paper's text and its code differ.

    The reading that this run uses is in the tables of the rates.
    """
    ours = of_kind(results, kind)
    used = _used(ours)
    columns = (
        Column("metric", "Metric"),
        Column("reading", "Reading"),
        *(Column(_key(result), result.method, "rate") for result in ours),
    )
    rows = [
        {"metric": metric, "reading": reading, **{_key(one): one.row[key] for one in ours}}
        for metric, key, reading in _READINGS
        if key not in used
    ]
    return Table(
        f"readings_{kind}",
        f"Other readings of the rules ({_SOURCE_TITLES[kind]})",
        "Each row is a reading, which this run does not use, of a rule on which the paper is "
        "ambiguous or differs from the authors' code. All else is as configured.",
        columns,
        rows,
        protocol="This run uses: "
        + "; ".join(f"{metric}: {reading}" for metric, key, reading in _READINGS if key in used)
        + ". Classes joined by chains of matches give a lower bound of the rate by the code's "
        f"greedy rule. {made_by(ours)}",
    )


def _key(result: Result) -> str:
    """Return the key of a method's column.

    It has a space, which no name of a method has, so that `NAME value_low` is no other column.
    """
    return f"{result.method} value"


def _used(results: Sequence[Result]) -> set[str]:
    """Return the keys of the readings that equal the rates of a run's other tables."""
    protocol = results[0].numbers["protocol"]
    bound = "at_most" if protocol["stability_rule"]["inclusive"] else "below"
    against = protocol["novelty_against"]
    used = {f"stability_rate_{bound}", "sun_rate", "match_rate", "rmsd"}
    # The readings do not have the crystals of metrics.known_crystals.
    if protocol["known_crystals"] is None:
        used |= {f"novelty_{against}", f"sun_rate_{against}"}
    # `ground_state_table` then shows it.
    if results[0].kind == "potential" and any(map(not_relaxed, results)):
        used.add("match_rate_of_relaxed")
    return used


def protocol_tables(results: Sequence[Result], kind: EnergySource) -> list[Table]:
    """Return one table per protocol of another group, with this run's energies and hull."""
    ours = of_kind(results, kind)
    names = list(ours[0].numbers["protocols"]) if ours else []
    return [_protocol_table(ours, kind, name) for name in names]


def _protocol_table(ours: Sequence[Result], kind: EnergySource, name: str) -> Table:
    rule = ours[0].numbers["protocols"][name]
    columns = [
        METHOD,
        Column("stability_rate", f"Stable, ≤ {rule['stable_at_most']:g} eV/atom", "rate"),
        Column("sun_rate", "S.U.N.", "rate"),
    ]
    if rule["metastable_at_most"] is not None:
        title = f"Metastable and not stable, ≤ {rule['metastable_at_most']:g} eV/atom"
        columns.append(Column("metastability_rate", title, "rate"))
        columns.append(Column("metastable_sun_rate", "MetaSUN", "rate"))
    rows = []
    for result in ours:
        rows.append({"setting": result.method} | result.numbers["protocols"][name])
    among = "only valid crystals, by this run's rules" if rule["of"] == VALID else rule["of"]
    return Table(
        f"protocol_{name.lower().replace('-', '_')}_{kind}",
        f"Rates by the protocol of {name} ({_SOURCE_TITLES[kind]})",
        f"Thresholds and denominator ({among}) are those of {name}, energies, hull, matcher and "
        "known crystals those of this run. The rates cannot be compared with the published ones of "
        f"{name}, which refer to another hull.",
        columns,
        rows,
        protocol=f"Source: {rule['source']}, with any number of elements. Energies: "
        f"{energy_name(ours)}; hull: {hull_name(ours)}. {not_relaxed_note(ours)}",
    )
