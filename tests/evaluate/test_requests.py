"""Asked and got, against crystals whose properties are known."""

import pytest

from crystals import caesium_chloride, fcc, perovskite, rattled, rocksalt
from flowllm.data.wishes import parse_wish
from flowllm.evaluate.requests import Got, asked_columns, judge, space_group_of, wish_rates
from flowllm.evaluate.statistics import wilson_interval

SALT = Got(rocksalt(), rocksalt(), e_above_hull=0.04, formation_energy=-1.9)
NOTHING = Got(None, None, None, None)


@pytest.mark.parametrize(
    ("words", "got", "met"),
    [
        ({"formula": "NaCl"}, "Na1Cl1", True),
        ({"formula": "Na4Cl4"}, "Na1Cl1", True),
        ({"formula": "Na2Cl"}, "Na1Cl1", False),
        ({"elements": "Cl,Na"}, "Na,Cl", True),
        ({"elements": "Cl,Na,K"}, "Na,Cl", False),
        ({"elements": "Cl,Na,K", "elements_mode": "subset"}, "Na,Cl", True),
        ({"elements": "Cl,K", "elements_mode": "subset"}, "Na,Cl", False),
        ({"num_atoms": "2"}, "2", True),
        ({"num_atoms": "8"}, "2", False),
        ({"space_group_number": "225"}, "225", True),
        ({"space_group_number": "221"}, "225", False),
        ({"e_above_hull": "0.05"}, "0.0400", True),
        ({"e_above_hull": "0.03"}, "0.0400", False),
        ({"formation_energy_per_atom": "-1.95"}, "-1.9000", True),
        ({"formation_energy_per_atom": "-2.05"}, "-1.9000", False),
    ],
)
def test_each_condition_beside_the_crystal(words, got, met):
    name = next(iter(words))
    judged = judge(parse_wish(words), SALT)
    assert judged.got == {name: got}
    assert judged.met == {name: met}
    failed = judge(parse_wish(words), NOTHING)
    assert failed.got == {}
    assert failed.met == {name: False}


def test_what_nothing_measures_is_neither_met_nor_missed():
    columns = asked_columns({"band_gap": "1.5", "moment": "2"}, SALT)
    assert columns["asked"] == [("band_gap", "1.5"), ("moment", "2")]
    assert columns["met"] == []
    assert columns["all_met"] is None
    assert asked_columns({"band_gap": "1.5", "num_atoms": "2"}, SALT)["all_met"] is True


@pytest.mark.parametrize(
    ("crystal", "number"),
    [(rocksalt(), 225), (caesium_chloride(), 221), (perovskite(), 221), (fcc(), 225)],
)
def test_space_groups_of_textbook_crystals(crystal, number):
    assert space_group_of(crystal) == number
    assert space_group_of(rattled(crystal, 0.02, 3)) == number


def test_rates_count_every_draw_that_was_asked():
    words = {"formula": "NaCl", "e_above_hull": "0.05", "band_gap": "1.0"}
    unstable = Got(rocksalt(), rocksalt(), e_above_hull=0.2, formation_energy=None)
    rows = [
        asked_columns(words, SALT),
        asked_columns(words, unstable),
        asked_columns(words, NOTHING),
        asked_columns({"num_atoms": "2"}, SALT),
    ]
    rates = wish_rates(rows)
    assert rates["band_gap"] is None
    counted = {name: (one["numerator"], one["denominator"]) for name, one in rates.items() if one}
    assert counted == {
        "formula": (2, 3),
        "e_above_hull": (1, 3),
        "num_atoms": (1, 1),
        "all": (2, 4),
    }
    assert (rates["all"]["low"], rates["all"]["high"]) == wilson_interval(2, 4)
