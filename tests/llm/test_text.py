"""The crystal text codec, against decimal arithmetic and hand-written texts."""

from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystals import perovskite, rocksalt
from flowllm.crystal import Crystal, lattice_has_volume
from flowllm.llm.crystal_text import Reason, Rejection, composition_of
from flowllm.llm.text import decode, encode

COORDINATES = st.one_of(
    st.sampled_from([0.0, 0.005, 0.015, 0.994, 0.995, 0.996, 0.9999, 1.0, -0.001, -0.25, 1.5]),
    st.floats(-2, 2, width=32),
)


def point(triple: tuple[float, float, float]) -> tuple[float, ...]:
    """What the text makes of coordinates."""
    return tuple(rounded(x % 1.0, "0.01") % 1.0 for x in np.float32(triple).tolist())


@st.composite
def crystals(draw) -> Crystal:
    """One to twenty atoms, no two at one rounded point."""
    count = draw(st.integers(1, 20))
    triples = st.tuples(COORDINATES, COORDINATES, COORDINATES)
    # The angles of a cell whose rounded angles still span a volume.
    angles = draw(
        st.tuples(*[st.floats(50, 130, width=32)] * 3).filter(
            lambda a: lattice_has_volume(np.array(a)) and lattice_has_volume(np.rint(a))
        )
    )
    return Crystal.from_arrays(
        draw(st.lists(st.integers(1, 118), min_size=count, max_size=count)),
        draw(st.lists(triples, min_size=count, max_size=count, unique_by=point)),
        draw(st.tuples(*[st.floats(0.0625, 999, width=32)] * 3)),
        angles,
    )


def rounded(value: float, places: str) -> float:
    return float(Decimal(value).quantize(Decimal(places), ROUND_HALF_EVEN))


@settings(deadline=None)  # the first example loads the periodic table
@given(crystals())
def test_decoding_gives_back_the_rounded_crystal(crystal):
    decoded = decode(encode(crystal), max_atoms=20)
    assert isinstance(decoded, Crystal), decoded
    assert decoded.atomic_numbers.tolist() == crystal.atomic_numbers.tolist()
    coords = [[rounded(x, "0.01") % 1.0 for x in row] for row in crystal.frac_coords.tolist()]
    np.testing.assert_array_equal(decoded.frac_coords, np.array(coords, dtype=np.float32))
    lengths = [rounded(x, "0.1") for x in crystal.lengths.tolist()]
    np.testing.assert_array_equal(decoded.lengths, np.array(lengths, dtype=np.float32))
    angles = [rounded(x, "1") for x in crystal.angles.tolist()]
    np.testing.assert_array_equal(decoded.angles, angles)
    assert encode(decoded) == encode(crystal)


def test_encoding_has_the_form_of_the_paper():
    assert encode(rocksalt()) == "4.0 4.0 4.0\n60 60 60\nNa\n0.00 0.00 0.00\nCl\n0.50 0.50 0.50"


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0, "0.00"), (0.994, "0.99"), (0.996, "0.00"), (0.9999, "0.00"), (-0.001, "0.00")],
)
def test_rounded_coordinates_stay_below_one(value, written):
    crystal = Crystal(
        np.array([11], dtype=np.uint8),
        np.array([[value, 0.25, 0.5]], dtype=np.float32),
        np.array([3, 4, 5], dtype=np.float32),
        np.array([90, 90, 90], dtype=np.float32),
    )
    assert encode(crystal).split("\n")[-1] == f"{written} 0.25 0.50"


def test_angles_are_rounded_and_not_truncated():
    crystal = Crystal.from_arrays([11], [[0, 0, 0]], [3, 3, 3], [59.99, 89.6, 119.5])
    assert encode(crystal).split("\n")[1] == "60 90 120"


LATTICE = "5.0 5.0 5.0\n90 90 90\n"
ATOM = "Na\n0.00 0.00 0.00"
OTHER = "Cl\n0.50 0.50 0.50"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.WRONG_COUNT),
        (LATTICE, Reason.WRONG_COUNT),
        (LATTICE + "Na", Reason.WRONG_COUNT),
        (LATTICE + ATOM + "\nCl", Reason.WRONG_COUNT),
        (LATTICE + "Na\n0.00 0.00", Reason.WRONG_COUNT),
        (LATTICE + "Na\n0.00 0.00 0.00 0.00", Reason.WRONG_COUNT),
        ("5.0 5.0\n90 90 90\n" + ATOM, Reason.WRONG_COUNT),
        (LATTICE + "Na\n0.00 x 0.00", Reason.BAD_NUMBER),
        (LATTICE + "Na\nnan inf 1e2", Reason.BAD_NUMBER),
        (LATTICE + "Na\n0.00 1_0 0.00", Reason.BAD_NUMBER),
        (LATTICE + "Na\n0.00 ٣ 0.00", Reason.BAD_NUMBER),
        ("5.0 5.0 " + "9" * 400 + "\n90 90 90\n" + ATOM, Reason.BAD_NUMBER),
        (LATTICE + "Xx\n0.00 0.00 0.00", Reason.UNKNOWN_ELEMENT),
        (LATTICE + "D\n0.00 0.00 0.00", Reason.UNKNOWN_ELEMENT),
        (LATTICE + "na\n0.00 0.00 0.00", Reason.UNKNOWN_ELEMENT),
        (LATTICE + "\n".join([ATOM] * 4), Reason.TOO_MANY_ATOMS),
        ("0.0 5.0 5.0\n90 90 90\n" + ATOM, Reason.NONPHYSICAL_LATTICE),
        ("-5.0 5.0 5.0\n90 90 90\n" + ATOM, Reason.NONPHYSICAL_LATTICE),
        ("1000.0 5.0 5.0\n90 90 90\n" + ATOM, Reason.NONPHYSICAL_LATTICE),
        ("5.0 5.0 5.0\n0 90 90\n" + ATOM, Reason.NONPHYSICAL_LATTICE),
        ("5.0 5.0 5.0\n90 90 180\n" + ATOM, Reason.NONPHYSICAL_LATTICE),
        ("5.0 5.0 5.0\n120 120 120\n" + ATOM, Reason.NONPHYSICAL_LATTICE),
        ("5.0 5.0 5.0\n60 60 120\n" + ATOM, Reason.NONPHYSICAL_LATTICE),
        (LATTICE + ATOM, Reason.FORMULA_MISMATCH),
        (LATTICE + "\n".join([ATOM, OTHER, OTHER]), Reason.FORMULA_MISMATCH),
        (LATTICE + ATOM + "\nCl\n0.00 0.00 0.00", Reason.COINCIDING_ATOMS),
        (LATTICE + ATOM + "\nCl\n1.00 -1.00 2.00", Reason.COINCIDING_ATOMS),
    ],
)
def test_each_defect_has_its_reason(text, reason):
    rejection = decode(text, max_atoms=3, composition={11: 1, 17: 1})
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason
    assert rejection.detail


@pytest.mark.parametrize("second", ["0.00 0.00 0.00", "1.00 -1.00 2.00"])
@pytest.mark.parametrize("symbol", ["Na", "Cl"])
def test_two_atoms_at_one_point_are_a_crystal_where_they_are_not_rejected(symbol, second):
    text = f"{LATTICE}{ATOM}\n{symbol}\n{second}"
    found = decode(text, max_atoms=3, reject_close_atoms=False)
    assert isinstance(found, Crystal)
    assert found.frac_coords.tolist() == [[0, 0, 0], [0, 0, 0]]
    bad = decode(text + "\nX\n0 0 0", max_atoms=3, reject_close_atoms=False)
    assert bad.reason == Reason.UNKNOWN_ELEMENT


def test_the_order_of_atoms_does_not_matter_for_the_formula():
    decoded = decode(LATTICE + OTHER + "\n" + ATOM, max_atoms=3, composition={11: 1, 17: 1})
    assert isinstance(decoded, Crystal)
    assert decoded.atomic_numbers.tolist() == [17, 11]


def test_spaces_around_lines_and_coordinates_outside_the_cell_are_read():
    decoded = decode(" 5.0  5.0 5.0 \r\n90 90 90\n Na \n1.25 -0.25 0.00\n\n", max_atoms=1)
    assert isinstance(decoded, Crystal)
    assert decoded.frac_coords.tolist() == [[0.25, 0.75, 0.0]]


def test_composition_of_counts_atoms():
    assert composition_of(perovskite().atomic_numbers) == {8: 3, 22: 1, 38: 1}


LINES = st.sampled_from(
    [*LATTICE.split("\n"), *ATOM.split("\n"), "", "90 90", "1e400 nan -inf", "Og", "0 0 0", "\x0b"]
)


@given(
    st.one_of(
        st.text(),
        st.binary().map(lambda raw: raw.decode("utf-8", errors="replace")),
        st.lists(LINES).map("\n".join),
        st.text(alphabet="0123456789. \nNaCl-+e"),
    ),
)
def test_no_text_raises(text):
    decoded = decode(text, max_atoms=3, composition={11: 1})
    if isinstance(decoded, Rejection):
        assert decoded.reason in Reason
        assert decoded.detail
    else:
        assert composition_of(decoded.atomic_numbers) == {11: 1}
