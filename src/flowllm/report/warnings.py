"""Warnings of rates that say more about the run's reference or rules than about its crystals."""

from collections.abc import Sequence

from flowllm.evaluate.estimates import NOT_SELECTED
from flowllm.evaluate.hull import is_of_fixed_cells
from flowllm.report.metrics_files import Result
from flowllm.report.table import METHOD, Column, Table

MIN_CRYSTALS = 10
"""Number of crystals below which a rate gives no warning."""

NEARLY_ALL_STABLE = 0.8
"""Share of stable among the crystals on the hull; published methods have 0.02 to 0.2."""

HARDLY_NOVEL = 0.05
"""Share of novel among the relaxed and the known crystals; published methods have 0.5 and more."""

BARE_HULL = 0.1
"""Share of crystals that are measured against elements alone."""


def warnings_table(results: Sequence[Result]) -> Table | None:
    """Return one row per suspicious rate; None if there is none."""
    rows = [
        {"setting": one.method, "energies": one.kind, "warning": text}
        for one in results
        for text in warnings_of(one)
    ]
    if not rows:
        return None
    return Table(
        "warnings",
        "Warnings",
        "Rates that should not be reported before their cause is known.",
        (METHOD, Column("energies", "Energies"), Column("warning", "Warning")),
        rows,
    )


def warnings_of(result: Result) -> list[str]:
    """Return the warnings of one method by one source of energies."""
    rates = result.numbers["rates"]
    found = []
    stable, placed = rates["stability_rate"]["numerator"], rates["placed_on_hull"]["numerator"]
    if placed >= MIN_CRYSTALS and stable >= NEARLY_ALL_STABLE * placed:
        chosen = result.kind == "dft" and result.numbers["counts"]["relaxed"].get(NOT_SELECTED)
        found.append(
            f"{stable} of {placed} crystals on the hull are stable: the hull probably lacks "
            "entries, or its energies are not comparable with those of the crystals"
            + (", unless dft_inputs.selection took the stable ones." if chosen else ".")
        )
    found += _novelty_warnings(result)
    bare = rates["bare_hull"]
    if bare["denominator"] and bare["value"] >= BARE_HULL:
        found.append(
            f"For {bare['numerator']} of {bare['denominator']} crystals with several elements "
            f"({100 * bare['value']:.0f} %), the hull has no compound of their elements: they are "
            "measured against the elements alone, which overestimates stability. Use a larger "
            "reference."
        )
    check = result.numbers["check"]
    if check is not None and placed and not check["difference"]["count"]:
        found.append(
            f"{', '.join(check['potentials'])} placed none of {placed} crystals on its hull: it "
            "agrees with nothing. The logs of second_energies have the reason."
        )
    if any(is_of_fixed_cells(name) for name in result.numbers["protocol"]["energy_sources"]):
        found.append(
            "The cells were not relaxed (prerelax.fixed_cell), but those of the hull were: "
            "E_hull is an upper bound, and stability is underestimated."
        )
    return found


def _novelty_warnings(result: Result) -> list[str]:
    """Return a warning if hardly any crystal is novel, with the known ones that select excluded."""
    novel, known = result.numbers["rates"]["novel_of_relaxed"], 0
    if result.kind == "potential":
        known = result.numbers["counts"]["relaxed"].get("known", 0)
    compared = novel["denominator"] + known
    if compared < MIN_CRYSTALS or novel["numerator"] > HARDLY_NOVEL * compared:
        return []
    excluded = f", and {known} more were known and not relaxed (select.skip)" if known else ""
    return [
        f"{novel['numerator']} of {novel['denominator']} relaxed crystals are novel{excluded}: the "
        "method reproduces known crystals."
    ]
