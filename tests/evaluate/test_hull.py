"""E_above_hull: a binary worked by hand, and pymatgen's phase diagram entry by entry."""

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from crystals import MP_20_SAMPLE
from energy_rows import hull_row
from flowllm.evaluate.hull import (
    MIN_FORMATION_ENERGY,
    ImplausibleEnergy,
    MissingReference,
    ReferenceHull,
    read_hull,
)
from flowllm.io import schemas, tables

BINARY = [
    ({"A": 1}, 0.0),
    ({"B": 1}, 0.0),
    ({"A": 1, "B": 1}, -1.0),
    ({"A": 3, "B": 1}, -0.3),
]
"""Per atom. The hull runs (0, 0), (1/2, -1), (1, 0) in B's share; A3B is above it."""


@pytest.mark.parametrize(
    ("amounts", "energy", "distance"),
    [
        ({"A": 3, "B": 1}, -0.3, 0.2),  # halfway between A and AB the hull is -0.5
        ({"A": 1, "B": 3}, -0.5, 0.0),
        ({"A": 2, "B": 2}, -1.0, 0.0),
        ({"A": 1, "B": 1}, -1.4, -0.4),  # below the hull: negative
        ({"A": 1, "B": 2}, 0.0, 2 / 3),  # at 2/3 the hull is -2/3
        ({"B": 5}, 0.1, 0.1),
    ],
)
def test_binary_by_hand(amounts, energy, distance):
    assert ReferenceHull(BINARY).e_above_hull(amounts, energy) == pytest.approx(distance, abs=1e-9)


def test_an_element_without_elemental_entry_is_named():
    hull = ReferenceHull([*BINARY, ({"A": 1, "C": 1}, -1.0)])
    with pytest.raises(MissingReference, match=r"no elemental reference entry for C, D"):
        hull.hull_energy({"A": 1, "C": 1, "D": 2})


def test_a_formation_energy_below_the_bound_is_implausible():
    hull = ReferenceHull([({"A": 1}, -2.0), ({"B": 1}, -4.0)])
    assert hull.place({"A": 1, "B": 1}, -8.0) == (-5.0, MIN_FORMATION_ENERGY)
    with pytest.raises(ImplausibleEnergy, match=r"formation energy -5\.100 eV/atom, below -5"):
        hull.place({"A": 1, "B": 1}, -8.1)
    with pytest.raises(ImplausibleEnergy):
        hull.place({"A": 3}, -7.5)


def test_implausible_entries_are_left_out_and_named(tmp_path, caplog):
    rows = [hull_row("Na", -1.0), hull_row("Cl", -2.0), hull_row("NaCl", -3.5)]
    rows += [hull_row("Na2Cl", -90.0), hull_row("KCl", -90.0)]  # K has no reference
    path = tmp_path / "potential.parquet"
    tables.write_table(path, rows, schemas.HULL_ENTRIES, {})
    hull = read_hull(path, "potential").hull
    assert hull.hull_energy({"Na": 2, "Cl": 1}) == pytest.approx(-2 - 2 / 3)
    assert len(hull) == 4
    (message,) = (one.message for one in caplog.records)
    assert f"{path}: entry {rows[3]['entry_id']} left out of the hull" in message


def test_an_implausible_energy_of_an_element_is_left_out_and_hides_no_other(tmp_path, caplog):
    """The table has the element's ground state, whose id says so."""
    rows = [hull_row("Na", -1.0), hull_row("Cl", -2.0), hull_row("NaCl", -3.5)]
    rows[0]["entry_id"] = "Na, mp-10172"
    rows += [hull_row("Na", -40.0), hull_row("Na2Cl", -90.0), hull_row("Na", 9.0)]
    rows[3]["entry_id"] = "fallen"
    path = tmp_path / "potential.parquet"
    tables.write_table(path, rows, schemas.HULL_ENTRIES, {})
    hull = read_hull(path, "potential").hull
    assert hull.hull_energy({"Na": 1}) == -1.0
    assert [hull.is_plausible({"Na": 1}, energy) for energy in (-6.0, -6.1)] == [True, False]
    left = [one.message.split("entry ")[1].split(" left")[0] for one in caplog.records]
    assert left == ["fallen", rows[4]["entry_id"]]


def mp_20_entries() -> list[tuple[str, float]]:
    """Formula and formation energy per atom of every row of the MP-20 sample."""
    if not MP_20_SAMPLE.exists():
        pytest.skip("the MP-20 sample is not on this machine")
    entries = []
    for split in ("train", "val", "test"):
        with (MP_20_SAMPLE / f"{split}.csv").open(newline="") as handle:
            rows = csv.DictReader(handle)
            entries += [
                (row["pretty_formula"], float(row["formation_energy_per_atom"])) for row in rows
            ]
    return entries


def test_agrees_with_pymatgen_on_mp_20():
    """600 real rows, against a phase diagram of their chemical system that pymatgen makes."""
    given = [(Composition(formula), energy) for formula, energy in mp_20_entries()]
    elements = sorted({element.symbol for comp, _ in given for element in comp})
    given += [(Composition(symbol), 0.0) for symbol in elements]
    hull = ReferenceHull((comp.get_el_amt_dict(), energy) for comp, energy in given)
    entries = [PDEntry(comp, energy * comp.num_atoms) for comp, energy in given]
    differences = []
    for (comp, energy), entry in zip(given[:600], entries, strict=False):
        system = set(comp.elements)
        diagram = PhaseDiagram([e for e in entries if set(e.composition.elements) <= system])
        ours = hull.e_above_hull(comp.get_el_amt_dict(), energy)
        differences.append(ours - diagram.get_e_above_hull(entry))
        # The same off the hull: as if the crystal were 0.1 eV per atom lower.
        lower = PDEntry(comp, (energy - 0.1) * comp.num_atoms)
        theirs = diagram.get_e_above_hull(lower, allow_negative=True, check_stable=False)
        differences.append(ours - 0.1 - theirs)
    assert len(differences) == 1200
    assert np.abs(differences).max() < 1e-6


SYMBOLS = ["Li", "O", "Fe", "S"]
ENTRIES = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(SYMBOLS), st.integers(1, 4), min_size=1),
        st.floats(-3, 3, allow_nan=False),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.permutations(range(16)))
def test_any_entries_agree_with_pymatgen_in_any_order(entries, order):
    entries = entries + [({symbol: 1}, 0.5) for symbol in SYMBOLS]
    diagram = PhaseDiagram([PDEntry(Composition(a), e * sum(a.values())) for a, e in entries])
    shuffled = [entries[place] for place in order if place < len(entries)]
    shuffled += [entries[place] for place in range(len(entries)) if place not in set(order)]
    first, second = ReferenceHull(entries), ReferenceHull(shuffled)
    for amounts, energy in entries:
        entry = PDEntry(Composition(amounts), energy * sum(amounts.values()))
        theirs = diagram.get_e_above_hull(entry, check_stable=False)
        ours = first.e_above_hull(amounts, energy)
        assert ours == pytest.approx(theirs, abs=1e-6)
        assert ours == second.e_above_hull(amounts, energy)


def test_many_elements_need_no_more_than_few():
    """A crystal of 14 elements, whose phase diagram cannot be built, against its mixture."""
    symbols = ["H", "Li", "Be", "B", "C", "N", "O", "F", "Na", "Mg", "Al", "Si", "P", "S"]
    entries = [({symbol: 1}, -float(place)) for place, symbol in enumerate(symbols)]
    hull = ReferenceHull([*entries, ({"H": 1, "S": 1}, -100.0)])
    # One H and one S make a pair of -200 eV; the other twelve are elemental with -1 to -12 eV.
    expected = (-200 - sum(range(1, 13))) / 14
    assert hull.hull_energy(dict.fromkeys(symbols, 1)) == pytest.approx(expected, abs=1e-9)
