"""The table of the potential's energies against known ones."""

import pyarrow as pa
import pytest

from flowllm.evaluate.known_energies import known_agreement
from flowllm.report.agreement_table import known_table
from flowllm.report.metrics_files import Result
from flowllm.report.table import to_csv

RULE = {"stable_below": 0.0, "inclusive": False, "metastable_below": 0.08, "min_elements": 2}
LABEL = "CHGNet 0.3.0, relaxed to 0.1 eV/Å in at most 200 steps"


def result(name, pairs):
    rows = [
        {
            "e_above_hull": ours,
            "known_e_above_hull": known,
            "num_elements": 2,
            "formation_energy_per_atom": ours - 1,
            "known_formation_energy": known - 1,
        }
        for ours, known in pairs
    ]
    protocol = {
        "energies": "potential",
        "energy_sources": [LABEL],
        "hull_sources": [LABEL],
        "hull_compositions": 8000,
        "hull_not_converged": 0,
        "stability_rule": RULE,
        "matcher": {"name": "StructureMatcher", "ltol": 0.2, "stol": 0.3, "angle_tol": 5},
        "novelty_against": "train",
        "known_crystals": None,
    }
    external = {"name": name, "file": "test.csv", "known_e_above_hull": "e_above_hull"}
    numbers = {"setting": name, "protocol": protocol, "sampling": {"external": external}}
    known = {"known": known_agreement(rows, RULE)} if pairs else {}
    return Result(numbers | known, pa.table({}))


def test_a_row_with_known_energies_has_its_rates_and_correlations():
    pairs = [(-0.1, 0.0), (0.05, 0.0), (0.2, 0.3), (0.1, 0.1), (0.4, 0.6)]
    table = known_table([result("ours", []), result("MP-20-test", pairs)])
    row, formed = table.rows
    assert (row["setting"], row["crystals"]) == ("MP-20-test", 5)
    assert (row["agree_stable"]["numerator"], row["agree_stable"]["denominator"]) == (4, 5)
    assert row["pearson"].endswith("n = 5)")
    for one in (row, formed):
        assert one["difference"]["mean"] == pytest.approx(-0.07)
    assert formed["compared"] == "formation energy"
    assert "agree_stable" not in formed
    assert "8\u202f000 compositions" in table.caption
    assert "MP-20-test" in to_csv(table)


def test_without_known_energies_there_is_no_table():
    assert known_table([result("ours", [])]) is None
