"""Warnings of suspicious rates, and the table of the second potential."""

import pyarrow as pa
import pytest

from flowllm.evaluate.statistics import rate
from flowllm.report.metrics_files import Result
from flowllm.report.warnings import warnings_of, warnings_table

GOOD = {"stable": 3, "placed": 20, "novel": 12, "compared": 20, "bare": 1, "several": 20}
LABEL = "CHGNet 0.3.0, relaxed to 0.1 eV/Å in at most 1500 steps"


def result(label=LABEL, judged=None, energies="potential", relaxed=None, **changes):
    """A result with some counts; `relaxed` has those of its statuses."""
    n = GOOD | changes
    rates = {
        "stability_rate": rate(n["stable"], 30, "all generated"),
        "placed_on_hull": rate(n["placed"], 30, "all generated"),
        "novel_of_relaxed": rate(n["novel"], n["compared"], "relaxed"),
        "bare_hull": rate(n["bare"], n["several"], "placed on hull, several elements"),
    }
    protocol = {"energies": energies, "energy_sources": [label]}
    check = None
    if judged is not None:
        check = {"potentials": ["CHGNet 0.2.0"], "difference": {"count": judged}}
    numbers = {"setting": "X", "rates": rates, "protocol": protocol, "check": check}
    numbers["counts"] = {"relaxed": relaxed or {"ok": n["compared"]}}
    return Result(numbers, pa.table({}))


def test_usual_rates_give_no_warning():
    assert warnings_of(result()) == []
    assert warnings_table([result()]) is None


@pytest.mark.parametrize(
    ("changes", "words", "counts"),
    [
        ({"stable": 16}, "Nearly all crystals on the hull are stable", "16 of 20"),
        ({"novel": 1}, "Hardly any relaxed crystal is novel", "1 of 20"),
        (
            {"novel": 5, "compared": 5, "relaxed": {"ok": 5, "known": 95}},
            "Hardly any relaxed crystal is novel",
            "5 of 5, and 95 more were known and not relaxed (select.skip)",
        ),
        ({"bare": 2}, "For many crystals with several elements the hull has no", "2 of 20, 10 %"),
        ({"judged": 0}, "CHGNet 0.2.0 placed no crystal on its hull", "none of 20"),
        ({"label": LABEL + ", cell fixed (upper bounds)"}, "The cells were not relaxed", ""),
    ],
)
def test_each_suspicious_rate_is_named_with_its_counts(changes, words, counts):
    (found,) = warnings_of(result(**changes))
    assert found.text.startswith(words)
    assert found.counts == counts
    table = warnings_table([result(), result(**changes), result(**changes)])
    (row,) = table.rows
    method = f"X ({counts})" if counts else "X"
    assert row["warning"] == found.text
    assert row["methods"] == f"{method}, {method}"


@pytest.mark.parametrize(
    "changes",
    [
        {"stable": 15},
        {"novel": 2},
        {"label": LABEL + ", symmetry kept"},
        {"stable": 9, "placed": 9},  # too few crystals
        {"novel": 0, "compared": 9},
        {"novel": 2, "compared": 2, "relaxed": {"known": 7}},  # too few crystals
        # The DFT runs are those of the selection, and the draws all.
        {"novel": 12, "compared": 12, "relaxed": {"known": 900}, "energies": "dft"},
        {"bare": 0, "several": 0},
        {"judged": 1},
    ],
)
def test_below_the_thresholds_there_is_none(changes):
    assert warnings_of(result(**changes)) == []


def test_a_selection_for_dft_may_have_taken_the_stable_crystals():
    (whole,) = warnings_of(result(energies="dft", stable=16))
    (part,) = warnings_of(result(energies="dft", stable=16, relaxed={"not_selected": 900}))
    assert whole.text.endswith("with those of the crystals.")
    assert part.text.endswith("unless dft_inputs.selection took the stable ones.")
