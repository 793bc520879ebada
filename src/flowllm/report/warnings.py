"""Warnings of rates that say more about the run's reference or rules than about its crystals."""

from collections.abc import Sequence
from dataclasses import dataclass

from flowllm.evaluate.estimates import NOT_SELECTED
from flowllm.evaluate.hull import is_of_fixed_cells
from flowllm.report.metrics_files import Result
from flowllm.report.table import Column, Table

MIN_CRYSTALS = 10
"""Number of crystals below which a rate gives no warning."""

NEARLY_ALL_STABLE = 0.8
"""Share of stable among the crystals on the hull; published methods have 0.02 to 0.2."""

HARDLY_NOVEL = 0.05
"""Share of novel among the relaxed and the known crystals; published methods have 0.5 and more."""

BARE_HULL = 0.1
"""Share of crystals that are measured against elements alone."""


@dataclass(frozen=True)
class Suspicion:
    """A suspicious rate of one method.

    Attributes:
        text: what is suspicious, and what it means; equal for all methods.
        counts: the numbers of this method; empty if there are none.
    """

    text: str
    counts: str = ""


def warnings_table(results: Sequence[Result]) -> Table | None:
    """Return one row per kind of suspicious rate, with its methods; None if there is none."""
    methods: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for one in warnings_of(result):
            found = f"{result.method} ({one.counts})" if one.counts else result.method
            methods.setdefault((result.kind, one.text), []).append(found)
    if not methods:
        return None
    return Table(
        "warnings",
        "Warnings",
        "Rates that should not be reported before their cause is known.",
        (
            Column("energies", "Energies"),
            Column("warning", "Warning"),
            Column("methods", "Methods"),
        ),
        [
            {"energies": kind, "warning": text, "methods": ", ".join(found)}
            for (kind, text), found in methods.items()
        ],
    )


def warnings_of(result: Result) -> list[Suspicion]:
    """Return the warnings of one method by one source of energies."""
    rates = result.numbers["rates"]
    found = []
    stable, placed = rates["stability_rate"]["numerator"], rates["placed_on_hull"]["numerator"]
    if placed >= MIN_CRYSTALS and stable >= NEARLY_ALL_STABLE * placed:
        chosen = result.kind == "dft" and result.numbers["counts"]["relaxed"].get(NOT_SELECTED)
        text = (
            "Nearly all crystals on the hull are stable: the hull probably lacks entries, or its "
            "energies are not comparable with those of the crystals"
        )
        text += ", unless dft_inputs.selection took the stable ones." if chosen else "."
        found.append(Suspicion(text, f"{stable} of {placed}"))
    found += _novelty_warnings(result)
    bare = rates["bare_hull"]
    if bare["denominator"] and bare["value"] >= BARE_HULL:
        text = (
            "For many crystals with several elements the hull has no compound of their elements: "
            "they are measured against the elements alone, which overestimates stability. Use a "
            "larger reference."
        )
        share = f"{100 * bare['value']:.0f} %"
        found.append(Suspicion(text, f"{bare['numerator']} of {bare['denominator']}, {share}"))
    check = result.numbers["check"]
    if check is not None and placed and not check["difference"]["count"]:
        text = (
            f"{', '.join(check['potentials'])} placed no crystal on its hull: it agrees with "
            "nothing. The logs of second_energies have the reason."
        )
        found.append(Suspicion(text, f"none of {placed}"))
    if any(is_of_fixed_cells(name) for name in result.numbers["protocol"]["energy_sources"]):
        text = (
            "The cells were not relaxed (prerelax.fixed_cell), but those of the hull were: "
            "E_hull is an upper bound, and stability is underestimated."
        )
        found.append(Suspicion(text))
    return found


def _novelty_warnings(result: Result) -> list[Suspicion]:
    """Return a warning if hardly any crystal is novel, with the known ones that select excluded."""
    novel, known = result.numbers["rates"]["novel_of_relaxed"], 0
    if result.kind == "potential":
        known = result.numbers["counts"]["relaxed"].get("known", 0)
    compared = novel["denominator"] + known
    if compared < MIN_CRYSTALS or novel["numerator"] > HARDLY_NOVEL * compared:
        return []
    excluded = f", and {known} more were known and not relaxed (select.skip)" if known else ""
    text = "Hardly any relaxed crystal is novel: the method reproduces known crystals."
    return [Suspicion(text, f"{novel['numerator']} of {novel['denominator']}{excluded}")]
