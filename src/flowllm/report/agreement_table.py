"""Tables of the potential's agreement with the second one and with known energies."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowllm.report.metrics_files import Result, of_kind
from flowllm.report.protocol_text import energy_name, hull_name, rules
from flowllm.report.table import METHOD, Column, Table

_COLUMNS = (
    METHOD,
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
        "moving them, and its hull has the same reference crystals, also as relaxed by the first.",
        _COLUMNS,
        rows,
        protocol=f"Thresholds of both: {rules(ours)}. Order: rank correlation of the two energies "
        "above the hull, with its 95 % interval and the number of crystals that are placed on both "
        "hulls.",
    )


_COMPARED = {
    "source": "E_hull, known one on the source's hull",
    "train": "E_hull, known one on the training crystals' hull",
    "formation": "formation energy",
}
"""Comparisons of `known_energies.known_agreement` as text."""

_KNOWN_COLUMNS = (
    METHOD,
    Column("compared", "Compared"),
    Column("crystals", "Crystals", "count"),
    Column("pearson", "Pearson's r"),
    Column("spearman", "Spearman's ρ"),
    Column("difference", "Potential minus known, eV/atom", "mean", 3),
    Column("absolute", "The same, absolute", "mean", 3),
    Column("ours_stable", "Stable", "rate"),
    Column("known_stable", "Stable, known", "rate"),
    Column("agree_stable", "Agree on stable", "rate"),
    Column("confirmed_stable", "Known stable, of stable", "rate"),
    Column("found_stable", "Stable, of known stable", "rate"),
    Column("agree_metastable", "Agree on metastable", "rate"),
)


def known_table(results: Sequence[Result]) -> Table | None:
    """Return the agreement with known energies per comparison; None if no row gives any."""
    ours = [one for one in of_kind(results, "potential") if one.numbers.get("known")]
    if not ours:
        return None
    rows = [
        {
            "setting": result.method,
            "compared": _COMPARED[name],
            "crystals": one["count"],
            **{key: _order(value) for key, value in one["correlations"].items()},
            **one["differences"],
            **one["rates"],
        }
        for result in ours
        for name, one in result.numbers["known"].items()
    ]
    return Table(
        "known_energies",
        "The potential's energies against known ones",
        f"{energy_name(ours)} on the hull {hull_name(ours)} against the energies that the samples' "
        "own file gives. "
        f"Thresholds: {rules(ours)}; on the source's hull, which usually contains the crystal "
        "itself, an energy of just the threshold is stable.",
        _KNOWN_COLUMNS,
        rows,
    )


def _order(found: Mapping[str, Any]) -> str | None:
    """Return a correlation as text; None where it is not defined."""
    if found["value"] is None:
        return None
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f}; n = {found['count']})"
