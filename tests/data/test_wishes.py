"""Wishes as users write them: values, contradictions, and which draw has which wish."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Element

from flowllm.data.wishes import parse_wish, read_wishes, wish_of_draw
from flowllm.errors import FlowllmError

OWN = {"moment": None, "magnetism": ("FM", "AFM")}

formulas = st.dictionaries(st.integers(1, 94), st.integers(1, 20), min_size=1, max_size=5)


@given(formulas)
def test_a_formula_is_its_atoms(counts):
    text = "".join(f"{Element.from_Z(z).symbol}{n}" for z, n in counts.items())
    wish = parse_wish({"formula": text})
    assert Counter(wish.formula) == counts
    assert wish.given() == ("formula",)


@given(st.lists(st.sampled_from(["Na", "Cl", "O", "Fe"]), min_size=1), st.sampled_from(", "))
def test_elements_are_given_once_in_any_order(symbols, separator):
    wish = parse_wish({"elements": separator.join(symbols)})
    assert sorted(wish.elements) == sorted(set(symbols))


@given(st.floats(-1000, 1000))
def test_numbers_keep_their_value(value):
    assert parse_wish({"e_above_hull": repr(value)}).energies == (("e_above_hull", value + 0.0),)
    assert parse_wish({"moment": repr(value)}, own=OWN).own == (("moment", value + 0.0),)


def test_every_condition_at_once():
    words = {
        "formula": "Cl2Na2",
        "elements": "Cl,Na",
        "num_atoms": "4",
        "space_group_number": "225",
        "e_above_hull": "0.05",
        "magnetism": "AFM",
    }
    wish = parse_wish(words, own=OWN)
    assert wish.formula == (11, 11, 17, 17)
    assert wish.own == (("magnetism", "AFM"),)
    expected = ("formula", "elements", "e_above_hull", "space_group_number", "num_atoms")
    assert wish.given() == (*expected, "magnetism")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"num_atoms": "2.5"}, "num_atoms is '2.5', expected a whole number"),
        ({"num_atoms": "0"}, "num_atoms is '0'"),
        ({"num_atoms": "9999"}, "num_atoms 9999 has 9999 atoms, .* at most 1000"),
        ({"formula": "NaCl", "num_atoms": "4"}, "has 2 atoms, but num_atoms is 4"),
        ({"formula": "NaCl", "elements": "Na"}, "other elements than Na"),
        ({"formula": "NaCl", "elements": "Na,Cl,K"}, "other elements than Na,Cl,K"),
        ({"elements": "Na,Cl,K", "num_atoms": "2"}, "less than the 3 elements"),
        ({"elements": "Na", "elements_mode": "some"}, "expected exact or subset"),
        ({"elements_mode": "subset", "formula": "Na"}, "without elements"),
        ({"magnetism": "PM"}, "magnetism is 'PM', expected one of FM, AFM"),
        ({"moment": "high"}, "moment is 'high', expected a number"),
        ({"moment": "nan"}, "moment is 'nan', expected a number; leave it out"),
        ({"color": "red"}, "color is not a condition; there are formula"),
    ],
)
def test_what_no_crystal_can_meet_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_wish(words, own=OWN)


def test_a_subset_may_have_fewer_elements_than_are_allowed():
    words = {"elements": "Na,Cl,K", "elements_mode": "subset", "num_atoms": "2"}
    assert parse_wish(words | {"formula": "NaCl"}).elements_mode == "subset"


def test_own_conditions_are_columns_of_a_file(tmp_path):
    path = tmp_path / "wishes.csv"
    path.write_text("magnetism,num_atoms\nFM,4\nPM,4\n")
    with pytest.raises(FlowllmError, match=r"wishes\.csv, line 3: magnetism is 'PM'"):
        read_wishes(path, OWN)
    with pytest.raises(FlowllmError, match=r"unknown columns \['magnetism'\]"):
        read_wishes(path)


@given(st.integers(1, 7), st.integers(1, 40), st.integers(1, 40))
def test_the_wish_of_a_draw_does_not_depend_on_the_shards(num_wishes, first, second):
    wishes = [{"num_atoms": str(n + 1)} for n in range(num_wishes)]
    whole = [wish_of_draw(wishes, draw) for draw in range(first + second)]
    assert whole[first:] == [wish_of_draw(wishes, first + i) for i in range(second)]
    counts = Counter(one["num_atoms"] for one in whole)
    assert max(counts.values()) - min(counts.get(w["num_atoms"], 0) for w in wishes) <= 1


def test_a_subset_may_name_more_elements_than_a_cell_has_atoms():
    words = {"elements": "Na,Cl,O,Fe,Ti", "elements_mode": "subset"}
    assert len(parse_wish(words, max_atoms=4).elements) == 5
    with pytest.raises(ValueError, match="5 atoms"):
        parse_wish({"elements": words["elements"]}, max_atoms=4)
