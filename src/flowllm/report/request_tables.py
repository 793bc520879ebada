"""Tables of the bases with conditions: what was asked for, beside what the crystals are."""

from collections.abc import Mapping, Sequence
from typing import Any

from flowllm.data.wishes import ELEMENTS_MODE, WISHES
from flowllm.evaluate.hull import EnergySource
from flowllm.evaluate.requests import ENERGY_TOLERANCE, SYMPREC, wish_rates
from flowllm.report.metrics_files import Result, of_kind
from flowllm.report.protocol_text import energy_name, not_relaxed_note
from flowllm.report.table import METHOD, Column, Table

MAX_WISHES = 20
"""Wishes of a method that have a row each; of more only their sum is shown."""

MAX_CRYSTALS = 20
"""Crystals per method in the table of crystals; metrics/{kind}/{method}.parquet has all."""

NOT_MEASURED = "not measured"

_TITLES = {
    "formula": "Formula",
    "elements": "Elements",
    "num_atoms": "Number of atoms",
    "space_group_number": "Space group",
    "formation_energy_per_atom": "Formation energy",
    "band_gap": "Band gap",
    "e_above_hull": "E above hull",
}

Rows = Sequence[Mapping[str, Any]]


def request_tables(results: Sequence[Result], kind: EnergySource) -> list[Table]:
    """Return the tables of the methods whose bases have conditions; none without such methods."""
    ours = of_kind(results, kind)
    asked = {one.method: one.per_crystal.to_pylist() for one in ours}
    asked = {method: rows for method, rows in asked.items() if rows and "asked" in rows[0]}
    if not asked:
        return []
    excluded = not_relaxed_note([one for one in ours if one.method in asked])
    shares = _share_table(asked, kind, energy_name(ours), excluded)
    return [shares, _crystal_table(asked, kind)]


def _share_table(
    asked: Mapping[str, Rows], kind: EnergySource, source: str, excluded: str
) -> Table:
    rows = []
    for method, draws in asked.items():
        by_wish: dict[str, list[Mapping[str, Any]]] = {}
        for draw in draws:
            by_wish.setdefault(wish_text(draw["asked"]), []).append(draw)
        if len(by_wish) > 1:
            rows.append(_share_row(method, f"all {len(by_wish)} wishes", draws))
        if len(by_wish) <= MAX_WISHES:
            rows += [_share_row(method, text, of_wish) for text, of_wish in by_wish.items()]
    found = {key for row in rows for key in row}
    own = sorted(found - {*WISHES, "setting", "wish", "drawn", "all"})
    columns = [Column(name, _TITLES[name], "rate", 1) for name in WISHES if name in found]
    columns += [Column(name, name, "rate", 1) for name in own]
    return Table(
        f"wishes_{kind}",
        f"Wishes met, by {source}" + (" (estimates)" if kind == "potential" else ""),
        "Shares of all draws that were asked for a condition, with counts and 95 % intervals in "
        "small print. A draw without a crystal meets none.",
        (
            METHOD,
            Column("wish", "Asked"),
            Column("drawn", "Draws", "count"),
            *columns,
            Column("all", "All that are measured", "rate", 1),
        ),
        rows,
        protocol="Formula (the reduced ones are equal), elements and number of atoms are those of "
        f"the generated crystal. Space group (spglib, {SYMPREC:g} Å) and energies are those of the "
        "relaxed one: at most the asked energy above the hull, and within "
        f"{ENERGY_TOLERANCE:g} eV/atom of the asked formation energy. "
        f"{NOT_MEASURED.capitalize()}: nothing here computes it, and it does not count for all "
        f"conditions. {excluded}",
    )


def _share_row(method: str, wish: str, draws: Rows) -> dict[str, Any]:
    shares = {name: cell or NOT_MEASURED for name, cell in wish_rates(draws).items()}
    return {"setting": method, "wish": wish, "drawn": len(draws), **shares}


def _crystal_table(asked: Mapping[str, Rows], kind: EnergySource) -> Table:
    rows = []
    for method, draws in asked.items():
        crystals = (draw for draw in draws if draw["num_elements"] is not None)
        best = sorted(crystals, key=_met_then_low)
        for draw in best[:MAX_CRYSTALS]:
            met = dict(draw["met"])
            rows.append(
                {
                    "setting": method,
                    "id": draw["id"],
                    "wish": wish_text(draw["asked"]),
                    "got": got_text(draw),
                    "met": f"{sum(met.values())} of {len(met)}",
                    "e_above_hull": draw["e_above_hull"],
                }
            )
    return Table(
        f"requested_{kind}",
        "Asked and got",
        f"Up to {MAX_CRYSTALS} crystals per method, those that meet the most conditions first, "
        f"then by energy above the hull. metrics/{kind}/METHOD.parquet has all draws.",
        (
            METHOD,
            Column("id", "Crystal"),
            Column("wish", "Asked"),
            Column("got", "Got"),
            Column("met", "Met, of measured"),
            Column("e_above_hull", "E above hull, eV/atom", "number", 3),
        ),
        rows,
    )


def _met_then_low(draw: Mapping[str, Any]) -> tuple[int, float, str]:
    energy = draw["e_above_hull"]
    met = sum(dict(draw["met"]).values())
    return (-met, float("inf") if energy is None else energy, draw["id"])


def wish_text(conditions: Sequence[tuple[str, str]]) -> str:
    """Return conditions as text, e.g. `elements Na,Cl (subset), num_atoms 8`."""
    given = dict(conditions)
    if given.pop(ELEMENTS_MODE, None) == "subset":
        given["elements"] += " (subset)"
    return ", ".join(f"{name} {value}" for name, value in given.items())


def got_text(draw: Mapping[str, Any]) -> str:
    """Return what a draw is of each condition that it was asked for, e.g. `num_atoms 8`."""
    got, met = dict(draw["got"]), dict(draw["met"])
    return ", ".join(
        f"{name} {got.get(name, 'unknown') if name in met else NOT_MEASURED}"
        for name, _ in draw["asked"]
        if name != ELEMENTS_MODE
    )
