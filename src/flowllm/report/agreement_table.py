"""Tables of the potential's agreement with the second one and with known energies."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowllm.report.metrics_files import Result, of_kind
from flowllm.report.protocol_text import energy_name, hull_name, rules
from flowllm.report.table import METHOD, Column, Table

_COLUMNS = (
    METHOD,
    Column("stability_rate", "Stable", "rate"),
    Column("check_stable", "Stable by the second, of both placed", "rate"),
    Column("agree_stable", "Agree on stable", "rate"),
    Column("confirmed_stable", "Stable by both, of stable", "rate"),
    Column("agree_metastable", "Agree on metastable", "rate"),
    Column("confirmed_metastable", "Metastable by both, of metastable", "rate"),
    Column("kendall", "Order: Kendall's τ"),
    Column("spearman", "Order: Spearman's ρ"),
    Column("difference", "E_hull, second minus first, eV/atom", "mean", 3),
)


def agreement_table(results: Sequence[Result]) -> Table | None:
    """Return the agreement of two potentials per method; None without a second potential."""
    ours = [one for one in of_kind(results, "potential") if one.numbers["check"]]
    if not ours:
        return None
    rows = []
    for result in ours:
        check = result.numbers["check"]
        orders = {name: _order(one) for name, one in check["orders"].items()}
        rows.append(result.row | check["rates"] | orders | {"difference": check["difference"]})
    names = sorted({name for one in ours for name in one.numbers["check"]["potentials"]})
    return Table(
        "second_potential",
        "A second potential as a judge",
        f"{', '.join(names)} evaluates the crystals as relaxed by {energy_name(ours)}, without "
        "moving them, and its hull has the same reference crystals, also as relaxed by the first. "
        f"Thresholds of both: {rules(ours)}. Order: rank correlation of the two energies above the "
        "hull, with its 95 % interval and the number of crystals that are placed on both hulls.",
        _COLUMNS,
        rows,
    )


_KNOWN_COLUMNS = (
    METHOD,
    Column("source", "Known energies: columns"),
    Column("known_stable", "Stable, known", "rate"),
    Column("ours_stable", "Stable by the potential", "rate"),
    Column("agree_stable", "Agree on stable", "rate"),
    Column("confirmed_stable", "Known stable, of stable by the potential", "rate"),
    Column("found_stable", "Stable by the potential, of known stable", "rate"),
    Column("agree_metastable", "Agree on metastable", "rate"),
    Column("pearson_e_above_hull", "E_hull: Pearson's r"),
    Column("spearman_e_above_hull", "E_hull: Spearman's ρ"),
    Column("difference_e_above_hull", "E_hull, potential minus known, eV/atom", "mean", 3),
    Column("absolute_e_above_hull", "The same, absolute", "mean", 3),
    Column("pearson_formation", "Formation energy: Pearson's r"),
    Column("difference_formation", "Formation energy, potential minus known", "mean", 3),
    Column("absolute_formation", "The same, absolute", "mean", 3),
)


def known_table(results: Sequence[Result]) -> Table | None:
    """Return the agreement with known energies per row; None if no row gives any."""
    ours = [one for one in of_kind(results, "potential") if one.numbers.get("known")]
    if not ours:
        return None
    rows = []
    for result in ours:
        known, row = result.numbers["known"], result.numbers["sampling"]["external"]
        keys = ("known_e_above_hull", "known_formation_energy")
        columns = ", ".join(row[key] for key in keys if row.get(key))
        texts = {name: _order(one) for name, one in known["correlations"].items()}
        rows.append(
            {"setting": result.method, "source": columns}
            | known["rates"]
            | texts
            | known["differences"]
        )
    return Table(
        "known_energies",
        "The potential's energies against known ones",
        f"{energy_name(ours)} against the energies in the samples' own file (external_samples), of "
        f"the crystals that have both. Thresholds: {rules(ours)}; a known energy above the hull of "
        "just the threshold is stable, because the hull that it refers to usually contains the "
        f"crystal itself. The hulls differ: this run's is {hull_name(ours)}, and a smaller hull "
        "gives smaller energies. Correlations with 95 % interval and number of crystals.",
        _KNOWN_COLUMNS,
        rows,
    )


def _order(found: Mapping[str, Any]) -> str | None:
    """Return a correlation as text; None where it is not defined."""
    if found["value"] is None:
        return None
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f}; n = {found['count']})"
