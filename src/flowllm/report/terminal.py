"""The table that the report prints at its end, and the sentence that says what it shows."""

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

from flowllm.evaluate.hull import EnergySource, short_label
from flowllm.evaluate.statistics import rate
from flowllm.report.metrics_files import Result, of_kind, once_per_method
from flowllm.report.protocol_text import energy_name, hull_size, not_relaxed_note

WIDTH = 100
"""Characters per line; the methods that do not fit are in a further block below."""

WHOLE_PERCENT = 200
"""Number of crystals below which rates have no decimal."""


def printed_table(results: Sequence[Result], kind: EnergySource) -> Iterator[str]:
    """Yield the lines of the table by one source of energies, one column per method.

    Below it is how many crystals select excluded, if any.

    Args:
        results: all results, at least one of this kind.
        kind: source of the energies.
    """
    ours = of_kind(results, kind)
    crystals = " to ".join(map(_thousands, dict.fromkeys(_least_and_most(ours))))
    yield f"Results by {energy_name(ours)}, {crystals} crystals per method"
    columns = [
        _column(one, once) for one, once in zip(ours, _generated(results, ours), strict=True)
    ]
    labels = _labels(ours[0])
    width = max(map(len, labels))
    cell = max(len(text) for column in columns for text in column) + 2
    per_block = max(1, (WIDTH - width) // cell)
    for first in range(0, len(columns), per_block):
        yield ""
        block = columns[first : first + per_block]
        for label, texts in zip(labels, zip(*block, strict=True), strict=True):
            yield label.ljust(width) + "".join(text.rjust(cell) for text in texts)
    if note := not_relaxed_note(ours):
        yield ""
        yield from wrap(note, WIDTH)


def meaning(results: Sequence[Result], kind: EnergySource) -> str:
    """Return one sentence on what the rates by one source of energies show, and what not.

    Args:
        results: all results, at least one of this kind.
        kind: source of the energies.
    """
    ours = of_kind(results, kind)
    least, most = _least_and_most(ours)
    each = f"{_thousands(least)} crystals" + (" each" if len(ours) > 1 and least == most else "")
    if least != most:
        each = f"{_thousands(least)} to {_thousands(most)} crystals"
    interval = rate(least // 2, least, "all generated")
    margin = f"{50 * (interval['high'] - interval['low']):.2g}"
    hull = f"a hull of {hull_size(ours)}"
    verb = "These numbers compare the methods" if len(ours) > 1 else "These numbers are measured"
    sample = f"{verb} on {each} (a rate near 50 % is uncertain by {margin} percentage points)"
    if kind == "dft":
        return (
            f"{sample} by DFT energies and {hull}; they cannot be compared with rates by another "
            "hull or another choice of corrections."
        )
    names = {name for one in ours for name in one.numbers["protocol"]["energy_sources"]}
    potential = ", ".join(sorted(map(short_label, names))) or "the potential"
    return (
        f"{sample} by energies of {potential} and {hull}; they do not show which crystals are "
        "stable by DFT, and cannot be compared with published rates."
    )


def _least_and_most(results: Sequence[Result]) -> tuple[int, int]:
    drawn = [int(one.numbers["counts"]["drawn"]) for one in results]
    return min(drawn), max(drawn)


def _thousands(number: int) -> str:
    return f"{number:,}"


def _generated(results: Sequence[Result], ours: Sequence[Result]) -> list[Result]:
    """Return per method the result that has the numbers of its relaxation by the potential."""
    first = {one.method: one for one in once_per_method(results)}
    first |= {one.method: one for one in of_kind(results, "potential")}
    return [first[one.method] for one in ours]


def _labels(result: Result) -> list[str]:
    """Return the first column: what each line has, with the thresholds of the run."""
    rule = result.numbers["protocol"]["stability_rule"]
    known = {"train": "train", "train_val": "train and val"}
    against = known[result.numbers["protocol"]["novelty_against"]]
    if result.numbers["protocol"]["known_crystals"] is not None:
        against += " and known crystals"
    sign = "≤" if rule["inclusive"] else "<"
    return [
        "",
        "valid structure and composition",
        "relaxed",
        "match with own relaxed crystal",
        "energy released, eV/atom",
        "relaxation steps",
        f"metastable, E_hull < {rule['metastable_below']:g} eV/atom",
        f"stable, E_hull {sign} {rule['stable_below']:g} eV/atom",
        f"novel against {against}",
        "stable, unique and novel (S.U.N.)",
    ]


def _column(result: Result, relaxed: Result) -> list[str]:
    """Return the cells of one method."""
    own, before = result.row, relaxed.row
    digits = 0 if own["drawn"] < WHOLE_PERCENT else 1
    return [
        result.method,
        _percent(before["validity"], digits),
        _percent(before["relaxed"], digits),
        _percent(before["match_rate"], digits),
        _mean(before["delta_energy_per_atom"], 2),
        _mean(before["num_steps"], 0),
        _percent(own["metastability_rate"], digits),
        _percent(own["stability_rate"], digits),
        _percent(own["novelty"], digits),
        _percent(own["sun_rate"], digits),
    ]


def _percent(cell: dict[str, Any], digits: int) -> str:
    return "–" if cell["value"] is None else f"{100 * cell['value']:.{digits}f} %"


def _mean(cell: dict[str, Any], digits: int) -> str:
    return "–" if cell["mean"] is None else f"{cell['mean']:.{digits}f}"
