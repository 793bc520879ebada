"""Properties as text: what is a number, what is missing, and what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowllm.data.properties import LEAST, MAX_ENERGY, MISSING, SPACE_GROUP, parse_property

NAMES = [*LEAST, SPACE_GROUP]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("word", [*sorted(MISSING), "None", "NaN", "NULL", "N/A", "  "])
def test_words_for_a_missing_value(name, word):
    assert parse_property(name, word) is None


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("band_gap", "1.5", 1.5),
        ("band_gap", " 1e-3 ", 0.001),
        ("band_gap", ".5", 0.5),
        ("e_above_hull", "-0.01", -0.01),
        ("formation_energy_per_atom", "+2.", 2.0),
        (SPACE_GROUP, "225", 225),
        (SPACE_GROUP, "225.0", 225),
        (SPACE_GROUP, "1", 1),
        (SPACE_GROUP, "230", 230),
    ],
)
def test_numbers(name, text, value):
    found = parse_property(name, text)
    assert (found, type(found)) == (value, type(value))


def test_there_is_no_negative_zero():
    assert math.copysign(1, parse_property("band_gap", "-0.0")) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        *((name, word, "expected") for name in NAMES for word in ("inf", "-Infinity", "1e400")),
        *(
            (name, word, "expected")
            for name in NAMES
            for word in ("wide", "1 2", "1_0", "0x1", "١")
        ),
        ("band_gap", "1,5", "decimal point"),
        ("band_gap", "1.5 eV", "expected a number"),
        ("band_gap", "-1", "0 to 1000 eV"),
        ("e_above_hull", "1e39", "-1000 to 1000 eV"),
        *((SPACE_GROUP, text, "1 to 230") for text in ("225.7", "0", "-1", "231", "999", "1e9")),
    ],
)
def test_what_is_refused(name, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_property(name, text)
    assert str(caught.value).startswith(repr(text))


@given(name=st.sampled_from(NAMES), text=st.one_of(st.text(), st.from_regex(r"[-+0-9.eE,nai]+")))
def test_any_text_is_a_finite_number_or_missing_or_refused(name, text):
    try:
        value = parse_property(name, text)
    except ValueError:
        return
    if name == SPACE_GROUP:
        assert value is None or (type(value) is int and 1 <= value <= 230)
    else:
        assert value is None or LEAST[name] <= value <= MAX_ENERGY


@given(value=st.floats(0, MAX_ENERGY))
def test_what_is_written_is_read(value):
    assert parse_property("band_gap", repr(value)) == value
