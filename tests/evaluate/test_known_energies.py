"""Agreement with known energies against counted crystals and numpy's correlation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from scipy.stats import pearsonr

from crystals import rocksalt
from flowllm.evaluate.known_energies import add_train_distances, known_agreement
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, write_table

RULE = {"stable_below": 0.0, "inclusive": False, "metastable_below": 0.1, "min_elements": 2}


def row(ours, known, num_elements=2, formed=(None, None)):
    return {
        "e_above_hull": ours,
        "known_e_above_hull": known,
        "num_elements": num_elements,
        "formation_energy_per_atom": formed[0],
        "known_formation_energy": formed[1],
    }


def test_rows_of_our_own_methods_have_nothing_to_compare():
    assert known_agreement([{"e_above_hull": 0.1}], RULE) is None
    assert known_agreement([], RULE) is None


def test_a_hand_made_case():
    rows = [
        row(-0.1, 0.0, formed=(-1.0, -1.2)),  # stable by both: known ones are on their hull at 0
        row(-0.1, 0.05),  # stable in this run alone, metastable by both
        row(0.0, 0.0, formed=(-2.0, -1.9)),  # the run's own bound is not inclusive
        row(0.3, 0.4),  # neither
        row(0.05, 0.2),  # metastable in this run alone
        row(-0.5, 0.0, num_elements=1),  # an element counts as neither
        row(0.3, None, formed=(-1.0, None)),  # not known
        row(None, 0.0, formed=(None, -1.0)),  # not placed on the hull
    ]
    found = known_agreement(rows, RULE)
    assert set(found) == {"source", "formation"}
    assert found["formation"]["rates"] == {}
    assert found["formation"]["differences"]["absolute"]["mean"] == pytest.approx(0.15)
    assert found["formation"]["count"] == 2
    found = found["source"]
    numbers = {name: (one["numerator"], one["denominator"]) for name, one in found["rates"].items()}
    assert numbers == {
        "agree_stable": (4, 6),
        "ours_stable": (2, 6),
        "known_stable": (2, 6),
        "confirmed_stable": (1, 2),
        "found_stable": (1, 2),
        "agree_metastable": (5, 6),
        "ours_metastable": (4, 6),
        "known_metastable": (3, 6),
        "confirmed_metastable": (3, 4),
        "found_metastable": (3, 3),
    }
    differences = [-0.1, -0.15, 0.0, -0.1, -0.15, -0.5]
    assert found["differences"]["difference"]["mean"] == pytest.approx(np.mean(differences))
    assert found["correlations"]["pearson"]["count"] == found["count"] == 6


def test_on_one_hull_both_energies_follow_one_rule():
    rows = [row(-0.1, None) | {"known_e_above_train": 0.0}]
    rates = known_agreement(rows, RULE)["train"]["rates"]
    assert (rates["ours_stable"]["value"], rates["known_stable"]["value"]) == (1, 0)
    rates = known_agreement(rows, RULE | {"inclusive": True})["train"]["rates"]
    assert rates["known_stable"]["value"] == 1


def test_distances_to_the_training_hull_are_pymatgens(tmp_path):
    """The training crystals' formation energies with the elements at 0; some rows give none."""
    train = {"NaCl": -2.0, "Na2O": -1.4, "Na2O2": -1.3, "NaO2": -0.8, "Na": 0.1, "Na3Cl": None}
    rows = [
        {"id": name, "formula": name, "formation_energy_per_atom": energy}
        for name, energy in train.items()
    ]
    path = tmp_path / "train.parquet"
    rows = [crystal_columns(rocksalt()) | one for one in rows]
    write_table(path, rows, schemas.CRYSTALS, {})
    known = {"NaCl": -2.1, "Na4O3": -1.2, "Na2O2": -1.3, "Na2": 0.2, "KCl": -2.2, "Na2ClO": -1.0}
    entries = [PDEntry(Composition(name), 0.0) for name in ("Na", "Cl", "O", "K")]
    entries += [
        PDEntry(composition, energy * composition.num_atoms)
        for composition, energy in ((Composition(name), e) for name, e in train.items() if e)
    ]
    diagram = PhaseDiagram(entries)
    given = [{"formula": name, "known_formation_energy": e} for name, e in known.items()]
    given += [{"formula": "NaO", "known_formation_energy": None}]
    given += [{"formula": None, "known_formation_energy": -1.0}]
    *placed, unknown, unread = add_train_distances(given, path)
    for one in placed:
        composition = Composition(one["formula"])
        energy = one["known_formation_energy"]
        expected = energy - diagram.get_hull_energy_per_atom(composition)
        assert one["known_e_above_train"] == pytest.approx(expected, abs=1e-9), one
    assert "known_e_above_train" not in unknown
    assert "known_e_above_train" not in unread


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=4, max_size=30))
def test_pearson_and_its_interval_are_scipys(pairs):
    rows = [row(0.0, 0.0, formed=pair) for pair in pairs]
    found = known_agreement(rows, RULE)["formation"]["correlations"]["pearson"]
    first, second = np.array(pairs, dtype=float).T
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        assert found["value"] is None
        return
    expected = pearsonr(first, second)
    assert found["value"] == pytest.approx(expected.statistic, abs=1e-9)
    if abs(expected.statistic) < 1 - 1e-9:
        interval = expected.confidence_interval(0.95)
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


def test_without_any_known_value_there_is_no_comparison():
    assert known_agreement([row(0.1, None)], RULE) == {}
