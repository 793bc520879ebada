"""The printed table against the numbers it is made of, and the sentence below it."""

import pyarrow as pa
import pytest

from flowllm.evaluate.statistics import rate
from flowllm.report.metrics_files import Result
from flowllm.report.terminal import WIDTH, meaning, printed_table

LABEL = "CHGNet 0.3.0, relaxed to 0.1 eV/Å in at most 60 steps"
RATES = ("validity", "relaxed", "match_rate", "metastability_rate", "stability_rate", "novelty")


def result(
    name="FlowLLM",
    drawn=24,
    counted=6,
    kind="potential",
    hull=205,
    steps=48.25,
    relaxed=None,
    **rule,
):
    rates = {key: rate(counted, drawn, "all generated") for key in (*RATES, "sun_rate")}
    means = {"delta_energy_per_atom": 4.063, "num_steps": steps}
    rule = {"stable_below": 0.0, "inclusive": False, "metastable_below": 0.08} | rule
    protocol = {"energies": kind, "energy_sources": [LABEL if kind == "potential" else "DFT"]}
    protocol |= {
        "hull_compositions": hull,
        "stability_rule": rule,
        "novelty_against": "train",
        "known_crystals": None,
    }
    numbers = {
        "setting": name,
        "counts": {"drawn": drawn, "relaxed": relaxed or {"ok": counted}},
        "rates": rates,
        "means": {key: {"mean": mean, "count": 3} for key, mean in means.items()},
        "distances": {},
        "protocol": protocol,
    }
    return Result(numbers, pa.table({}))


def cells(lines, label):
    return [line.removeprefix(label).split("  ") for line in lines if line.startswith(label)]


def shown(lines, label):
    return [[text.strip() for text in parts if text.strip()] for parts in cells(lines, label)]


def test_the_table_has_a_column_per_method():
    lines = list(
        printed_table([result(), result("CrystalLLM", counted=3, steps=None)], "potential")
    )
    assert lines[0] == f"Results by {LABEL}, 24 crystals per method"
    assert shown(lines, "match with own relaxed crystal") == [["25 %", "12 %"]]
    assert shown(lines, "energy released, eV/atom") == [["4.06", "4.06"]]
    assert shown(lines, "relaxation steps") == [["48", "–"]]
    assert shown(lines, "metastable, E_hull < 0.08 eV/atom") == [["25 %", "12 %"]]
    assert len({len(line) for line in lines[2:]}) == 1


def test_large_runs_have_a_decimal_and_inclusive_rules_their_sign():
    lines = list(printed_table([result(drawn=1000, inclusive=True)], "potential"))
    assert lines[0].endswith("1,000 crystals per method")
    assert shown(lines, "stable, E_hull ≤ 0 eV/atom") == [["0.6 %"]]


def test_methods_that_do_not_fit_are_in_further_blocks():
    results = [result(f"FlowLLM-tau0.7-p0.{number}") for number in range(7)]
    lines = list(printed_table(results, "potential"))
    assert max(map(len, lines)) <= WIDTH
    blocks = shown(lines, "novel against train")
    assert len(blocks) > 1
    assert sum(map(len, blocks)) == 7


def test_a_long_name_has_a_block_of_its_own():
    lines = list(printed_table([result("x" * 200), result("y")], "potential"))
    assert len(shown(lines, "relaxed")) == 2


def test_the_relaxation_is_that_by_the_potential_also_beside_dft():
    dft = result(kind="dft", counted=12, steps=None)
    lines = list(printed_table([result(), dft], "dft"))
    assert lines[0].startswith("Results by DFT, ")
    assert shown(lines, "relaxation steps") == [["48"]]
    assert shown(lines, "stable, E_hull < 0 eV/atom") == [["50 %"]]


def test_crystals_that_select_excluded_are_named_below_the_table():
    assert not any("select.skip" in line for line in printed_table([result()], "potential"))
    skipped = result("B", relaxed={"ok": 6, "known": 12, "repeated": 6})
    lines = list(printed_table([result(), skipped], "potential"))
    assert max(map(len, lines)) <= WIDTH
    note = " ".join(lines[lines.index("", 2) + 1 :])
    assert note.startswith("Crystals that were known or repeated as generated were not relaxed")
    assert note.endswith("a run without it: B (12 known, 6 repeated).")


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([result(), result("B")], "compare the methods on 24 crystals each"),
        ([result(), result("B", drawn=1200)], "compare the methods on 24 to 1,200 crystals"),
        ([result()], "These numbers are measured on 24 crystals (a rate"),
        ([result()], "is uncertain by 19 percentage points)"),  # Wilson at 12 of 24: 31.4 to 68.6
        ([result(drawn=1000)], "is uncertain by 3.1 percentage points)"),
        ([result()], "by energies of CHGNet 0.3.0 and a hull of 205 compositions"),
        ([result(kind="dft")], "by DFT energies and a hull of 205 compositions"),
    ],
)
def test_the_sentence_says_sample_energies_and_hull(results, words):
    text = meaning(results, results[0].kind)
    assert words in text
    assert text.endswith(".")
    assert "not" in text
    assert text.count(". ") == 0
