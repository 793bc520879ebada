"""What a wish makes of prompt, grammar and rejections."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Element

from crystals import caesium_chloride, perovskite, rocksalt
from flowllm.config.load import load_config
from flowllm.config.sections.llm import Prompts
from flowllm.crystal import Crystal
from flowllm.data.wishes import parse_wish
from flowllm.errors import FlowllmError
from flowllm.llm.crystal_text import Decoded, Reason
from flowllm.llm.grammar import crystal_regex
from flowllm.llm.model_record import ModelRecord
from flowllm.llm.prompts import conditions_of, prompt_text
from flowllm.llm.required import Required
from flowllm.llm.symmetric_grammar import symmetric_cell_grammar, symmetric_grammar
from flowllm.llm.text import CoordinatesText
from flowllm.llm.wishes import choose_elements, prompt_conditions, request_of, target_of
from llm_run import CONFIGS

PLAIN = load_config(CONFIGS).prompts
SALT = "225\n5.6\nNa 4a\n0.00 0.00 0.00\nCl 4b\n0.50 0.50 0.50"


def prompts(**changes) -> Prompts:
    own = {"moment": "Its moment is {moment}.", "magnetism": "It is {magnetism}."}
    return Prompts.model_validate(PLAIN.model_dump() | {"properties": own} | changes)


def record(**changes) -> ModelRecord:
    values = {
        "base_model": "tiny",
        "precision": "fp32",
        "quantization": "none",
        "val_loss": 1.0,
        "prompts": dict.fromkeys((*prompts().sentences,), ""),
        "elements": (8, 11, 17, 22, 38),
        "max_atoms": 8,
        "max_length": 9,
        "categories": {"magnetism": ["AFM", "FM"]},
    }
    return ModelRecord(**(values | changes))


@given(st.from_regex(crystal_regex([11, 17], 20, 9, num_atoms=3), fullmatch=True))
def test_structured_texts_have_the_asked_elements_and_number_of_atoms(text):
    symbols = text.split("\n")[2::2]
    assert len(symbols) == 3
    assert set(symbols) <= {"Na", "Cl"}


@pytest.mark.parametrize("lines", range(12))
def test_the_rest_of_a_text_has_the_atoms_that_are_left(lines):
    text = CoordinatesText().describe(perovskite()).text
    written = "".join(f"{line}\n" for line in text.split("\n")[:lines])
    rest = text[len(written) :] if lines < 12 else ""
    elements = [8, 22, 38]
    for num_atoms in range(1, 8):
        if num_atoms < lines // 2:
            continue
        regex = crystal_regex(elements, 8, 9, written, num_atoms=num_atoms)
        assert bool(re.fullmatch(regex, rest)) == (num_atoms == 5)


def test_symmetric_texts_have_the_asked_group_and_number_of_atoms():
    testing = pytest.importorskip("xgrammar.testing", reason="xgrammar comes with vLLM")
    accepts = testing._is_grammar_accept_string
    first = symmetric_grammar([11, 17], 20, 9, num_atoms=2, group=225)
    assert re.fullmatch(first, "225\n")
    assert not re.fullmatch(first, "221\n")
    assert re.fullmatch(symmetric_cell_grammar([11, 17], 9), "216\n")
    assert not re.fullmatch(symmetric_cell_grammar([11, 17], 9, group=225), "216\n")
    # The smallest orbit of group 227 has two atoms per primitive cell.
    assert not re.fullmatch(symmetric_grammar([11], 20, 9, num_atoms=1), "227\n")
    for lines in range(1, 6):
        written = "".join(f"{line}\n" for line in SALT.split("\n")[:lines])
        rest = SALT[len(written) :]
        assert accepts(symmetric_grammar([11, 17], 20, 9, written, num_atoms=2), rest)
        assert accepts(symmetric_grammar([11, 17], 20, 9, written), rest)
        if lines < 5:  # no text of three atoms begins with all five lines
            assert not accepts(symmetric_grammar([11, 17], 20, 9, written, num_atoms=3), rest)
            assert not accepts(symmetric_grammar([11, 8], 20, 9, written, num_atoms=2), rest)


@pytest.mark.parametrize(
    ("required", "reason"),
    [
        (Required(), None),
        (Required(elements=frozenset([11, 17])), None),
        (Required(elements=frozenset([11])), Reason.ELEMENTS_MISMATCH),
        (Required(elements=frozenset([11, 17, 8])), Reason.ELEMENTS_MISMATCH),
        (Required(elements=frozenset([11, 17, 8]), elements_mode="subset"), None),
        (Required(elements=frozenset([11, 8]), elements_mode="subset"), Reason.ELEMENTS_MISMATCH),
        (Required(formula={11: 1, 17: 1}), None),
        (Required(formula={11: 1, 17: 2}), Reason.FORMULA_MISMATCH),
        (Required(num_atoms=2), None),
        (Required(num_atoms=4), Reason.ATOMS_MISMATCH),
        (Required(space_group=225), None),
        (Required(space_group=221), Reason.GROUP_MISMATCH),
    ],
)
def test_drafts_are_rejected_for_what_their_text_shows(required, reason):
    found = required.rejection(Decoded(rocksalt(), group=225))
    assert (found and found.reason) == reason


def test_a_reduced_formula_is_that_of_several_cells():
    """The prompt does not give the number of atoms, and any cell of the formula is accepted."""
    target = target_of(prompts(formula_style="reduced"), record(), {"formula": "Na4Cl4"})
    assert (target.numbers, target.required.num_atoms, target.allowed) == (None, None, [11, 17])
    salt = rocksalt().to_structure()
    for cell in (salt, salt.to_conventional(), salt * (1, 1, 3)):
        assert target.required.rejection(Decoded(Crystal.from_structure(cell))) is None
    cesium = target.required.rejection(Decoded(caesium_chloride()))
    assert cesium.reason == Reason.FORMULA_MISMATCH
    assert cesium.detail == "Cs1Cl1, asked for cells of Na1Cl1"


def test_a_reduced_formula_leaves_no_choice_of_its_elements():
    words = {"formula": "NaCl"} | SUBSET
    target = target_of(prompts(formula_style="reduced"), record(), words)
    assert target.allowed == [11, 17]
    assert choose_elements(target, record(), np.random.default_rng(1)) == target


def test_a_text_without_groups_is_not_rejected_for_its_group():
    assert Required(space_group=221).rejection(Decoded(rocksalt())) is None


def test_a_wish_has_its_sentences_in_the_prompt():
    wish = parse_wish(
        {"elements": "Cl,Na", "e_above_hull": "0.05", "moment": "0.123456", "magnetism": "FM"},
        own={"moment": None, "magnetism": ("FM",)},
    )
    text = prompt_text(prompts(), prompt_conditions(prompts(), wish))
    expected = ("Na, Cl", "hull 0.050.", "Its moment is 0.1235.", "It is FM.")
    places = [text.index(part) for part in expected]
    assert places == sorted(places)


def test_a_subset_and_a_number_of_atoms_are_not_in_the_prompt():
    words = {"elements": "Cl,Na", "elements_mode": "subset", "num_atoms": "2"}
    assert prompt_conditions(prompts(), parse_wish(words)).given() == ()


def test_own_properties_of_a_training_crystal_are_in_its_prompt_as_asked():
    row = {
        "atomic_numbers": [11, 17],
        "numbers": [("moment", 2.0)],
        "labels": [("magnetism", "FM")],
    }
    known = conditions_of(prompts(), row)
    wish = parse_wish(
        {"moment": "2", "magnetism": "FM"}, own={"moment": None, "magnetism": ("FM",)}
    )
    assert known.only(["moment", "magnetism"]) == prompt_conditions(prompts(), wish)


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        ({"magnetism": "PM"}, "coordinates", "expected one of AFM, FM"),
        ({"elements": "Fe"}, "coordinates", "no training crystal of the model has Fe"),
        ({"num_atoms": "9"}, "coordinates", "at most 8"),
        (
            {"num_atoms": "1", "space_group_number": "227"},
            "symmetric",
            "no primitive cell of space",
        ),
        (
            {"formula": "Na2Cl", "space_group_number": "227"},
            "symmetric",
            "no primitive cell of space group 227",
        ),
    ],
)
def test_what_a_model_cannot_be_asked_for_is_refused(words, text, message):
    with pytest.raises(FlowllmError, match=message):
        target_of(prompts(crystal_text=text), record(), words)


def test_a_group_whose_smallest_orbit_is_larger_than_the_crystals_of_the_model_is_refused():
    small = replace(record(), max_atoms=7)
    with pytest.raises(FlowllmError, match=r"group 230 has at least 8 atoms.* at most 7"):
        target_of(prompts(crystal_text="symmetric"), small, {"space_group_number": "230"})
    target_of(prompts(crystal_text="symmetric"), record(), {"space_group_number": "230"})


def test_a_property_that_no_training_text_gave_is_no_condition():
    sentences = dict.fromkeys(PLAIN.sentences, "")
    with pytest.raises(FlowllmError, match="moment is not a condition"):
        target_of(prompts(), record(prompts=sentences), {"moment": "1"})


def test_the_request_has_form_and_requirements():
    words = {"elements": "Na,Cl", "num_atoms": "2"}
    target = target_of(prompts(), record(), words)
    request = request_of(target, prompts(), record(), structured=True, seed=lambda attempt: attempt)
    text = CoordinatesText().describe(rocksalt()).text
    assert re.fullmatch(request.form(""), text)
    assert not re.fullmatch(request.form(""), CoordinatesText().describe(perovskite()).text)
    assert request.required.num_atoms == 2
    # The first drafts have the asked elements, and any number of atoms.
    assert re.fullmatch(request.first_form(""), text)
    assert re.fullmatch(request.first_form(""), f"{text}\nNa\n0.25 0.25 0.25")
    assert not re.fullmatch(request.first_form(""), text.replace("Cl", "O"))


SUBSET = {"elements": "O,Cl,Na,Ti,Sr", "elements_mode": "subset"}


@given(st.integers(0, 2**32 - 1))
def test_a_subset_is_asked_for_as_a_choice_of_its_elements(seed):
    target = target_of(prompts(), record(), SUBSET)
    chosen = choose_elements(target, record(), np.random.default_rng(seed))
    names = chosen.conditions.elements
    assert 2 <= len(names) <= 4
    # In the order of the training's sentence, and with the same elements in the grammar.
    assert list(names) == [symbol for symbol in target.wish.elements if symbol in names]
    assert {Element(symbol).Z for symbol in names} == set(chosen.allowed)
    assert chosen.required == target.required
    assert chosen.required.rejection(Decoded(rocksalt())) is None


def test_choices_have_each_number_of_elements_and_each_element_equally_often():
    target, rng = target_of(prompts(), record(), SUBSET), np.random.default_rng(1)
    drawn = [choose_elements(target, record(), rng).conditions.elements for _ in range(3000)]
    sizes, symbols = Counter(map(len, drawn)), Counter(one for part in drawn for one in part)
    assert all(abs(sizes[size] - 1000) < 100 for size in (2, 3, 4))
    assert all(abs(count - 1800) < 120 for count in symbols.values())


@pytest.mark.parametrize(
    ("words", "known", "chosen"),
    [
        ({"elements": "Na,Cl"}, True, ("Na", "Cl")),
        ({"elements": "Na", "elements_mode": "subset"}, True, ("Na",)),
        ({"elements": "Na,Cl,O", "elements_mode": "subset"}, False, None),
        ({"num_atoms": "2"}, True, None),
        ({"formula": "NaCl", "elements": "Na,Cl,O", "elements_mode": "subset"}, True, None),
    ],
)
def test_other_wishes_are_asked_for_as_they_are(words, known, chosen):
    sentences = dict.fromkeys(prompts().sentences, "")
    trained = record(prompts=sentences if known else {})
    target = target_of(prompts(), trained, words)
    drawn = choose_elements(target, trained, np.random.default_rng(1))
    assert drawn.conditions.elements == chosen


def test_a_choice_has_no_more_elements_than_the_cell_has_atoms():
    target = target_of(prompts(), record(), SUBSET | {"num_atoms": "2"})
    for seed in range(20):
        drawn = choose_elements(target, record(), np.random.default_rng(seed))
        assert len(drawn.conditions.elements) == 2
