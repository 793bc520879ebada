"""Atoms that are kept apart: distances, checks of lines, masks of tokens, rests of texts."""

import re
from copy import copy

import numpy as np
import pytest
import xgrammar
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice

from crystals import perovskite, rocksalt
from flowllm.crystal import lattice_has_volume
from flowllm.data.wyckoff import FREE_PARAMETERS, space_group
from flowllm.llm.apart import HUNDREDTHS
from flowllm.llm.coordinate_lines import CoordinateLines
from flowllm.llm.crystal_text import Decoded, Limits
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.grammar import cell_regex, crystal_regex
from flowllm.llm.masks import leads_nowhere
from flowllm.llm.orbit_lines import OrbitLines
from flowllm.llm.periodic_points import MARGIN, PeriodicPoints
from flowllm.llm.read_lines import read_lines
from flowllm.llm.text import encode

COORDINATES = st.lists(st.integers(0, 99), min_size=3, max_size=3).map(lambda c: np.array(c) / 100)
LENGTHS = st.lists(st.integers(10, 120).map(lambda n: n / 10), min_size=3, max_size=3)
ANGLES = st.lists(st.integers(30, 150), min_size=3, max_size=3).filter(
    lambda angles: lattice_has_volume(np.array(angles, dtype=float))
)
DISTANCES = st.sampled_from([0.5, 1.0, 1.7])
IMAGES = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


def shortest(lattice: Lattice, displacement: np.ndarray, *, own: bool = False) -> float:
    """The shortest image of a displacement, by enumeration of 17 x 17 x 17 cells."""
    images = IMAGES[IMAGES.any(axis=1)] if own else IMAGES
    return float(np.linalg.norm((displacement + images) @ lattice.matrix, axis=1).min())


def cell(lengths: list[float], angles: list[int]) -> Lattice:
    lattice = Lattice.from_parameters(*lengths, *angles)
    # Within these heights, 8 images per side contain every one below 1.7 angstrom.
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice.matrix), axis=0)
    assume(heights.min() > 0.3)
    return lattice


@settings(deadline=None)
@given(LENGTHS, ANGLES, st.lists(COORDINATES, min_size=1, max_size=4), DISTANCES)
def test_points_are_apart_as_by_enumeration(lengths, angles, points, limit):
    lattice = cell(lengths, angles)
    found = PeriodicPoints(lattice, limit)
    own = shortest(lattice, np.zeros(3), own=True)
    assert found.has_room == (own >= limit + MARGIN)
    kept = []
    for point in points:
        near = [shortest(lattice, point - other) for other in kept]
        apart = found.has_room and min(near, default=np.inf) >= limit + MARGIN
        assert found.add(point[None]) == apart
        if apart:
            kept.append(point)


@settings(deadline=None)
@given(LENGTHS, ANGLES, st.lists(COORDINATES, min_size=1, max_size=3), COORDINATES, DISTANCES)
def test_blocked_values_are_those_that_could_not_be_added(lengths, angles, points, start, limit):
    found = PeriodicPoints(cell(lengths, angles), limit)
    assume(found.has_room)
    for point in points:
        found.add(point[None])
    start[2] = 0.0
    line = start + HUNDREDTHS[:, None] * np.array([0, 0, 1])
    expected = [not copy(found).add(point[None]) for point in line]
    assert found.near_on_line(start, HUNDREDTHS).tolist() == expected


@settings(deadline=None)
@given(st.data(), st.integers(1, 230), st.lists(COORDINATES, min_size=1, max_size=2), DISTANCES)
def test_an_orbit_is_apart_as_its_atoms_are_one_by_one(data, number, points, limit):
    group = space_group(number)
    lengths, angles = data.draw(LENGTHS), [90, data.draw(st.integers(90, 130)), 90]
    values = np.array([*lengths, *angles])[list(FREE_PARAMETERS[group.system])]
    conventional = Lattice.from_parameters(*np.concatenate(group.cell(values))).matrix
    found = PeriodicPoints(Lattice(group.primitive @ conventional), limit)
    for point in points:
        site = data.draw(st.sampled_from(list(group.sites.values())))
        moved = site.projector @ point + site.offset
        orbit = group.orbits(site, moved[None])[0] @ np.linalg.inv(group.primitive)
        expected = copy(found).add(orbit)
        assert found.add_orbit(orbit) == expected


def test_a_text_is_drawn_again_from_the_coordinates_that_are_too_near():
    check = CoordinateLines(0.5)
    lines = encode(rocksalt()).split("\n")
    assert not any(map(check.add, lines))
    assert not check.add("Na")
    # 0.04 of 4.0 angstrom away from the first atom, across the border of the cell.
    assert check.add("0.96 0.00 0.00")
    assert check.redraw_line == len(lines) + 1


def test_a_lattice_with_a_short_vector_is_drawn_again_from_its_beginning():
    check = CoordinateLines(0.5)
    assert not check.add("1.0 1.0 1.0")
    assert check.add("60 60 119")  # nearly flat: a + b - c is 0.1 angstrom long
    assert check.redraw_line == 0


@pytest.mark.parametrize(
    "lines", [["x"], ["1 1 1", "90 90"], ["1 1 1", "60 60 120"], ["0 1 1", "90 90 90"]]
)
def test_a_text_that_decoding_rejects_is_not_checked(lines):
    check = CoordinateLines(0.5)
    assert not any(map(check.add, [*lines, "Na", "0 0 0", "Na", "0 0 0"]))
    assert check.blocked("0.00 0.00") is None


@given(st.lists(st.booleans(), min_size=100, max_size=100).map(np.array))
def test_a_beginning_leads_nowhere_if_all_its_values_are_blocked(blocked):
    values = [f"0.{i:02d}" for i in range(100)]
    for start in ["", "0", "0.", *(f"0.{d}" for d in range(10)), *values]:
        reached = [b for value, b in zip(values, blocked, strict=True) if value.startswith(start)]
        expected = all(reached) and len(start) > 2
        assert leads_nowhere(start, blocked) == expected
    assert leads_nowhere("0.5\n", blocked) == blocked[50]
    assert not leads_nowhere("1.0", blocked)


@pytest.mark.parametrize("crystal", [rocksalt(), perovskite()])
def test_the_rest_of_a_text_matches_after_each_of_its_lines(crystal):
    text, numbers = encode(crystal), crystal.atomic_numbers.tolist()
    ends = [match.end() for match in re.finditer("\n", text)]
    for end in [0, *ends]:
        written, rest = text[:end], text[end:]
        assert re.fullmatch(cell_regex(numbers, 9, written), rest)
        assert re.fullmatch(crystal_regex(numbers, len(numbers), 9, written), rest)
        assert not re.fullmatch(cell_regex([*numbers, 8], 9, written), rest)
        assert not re.fullmatch(crystal_regex([1], 9, 9, written), rest) or end == ends[-1]
        if end > ends[0]:
            assert not re.fullmatch(crystal_regex(numbers, len(numbers) - 1, 9, written), rest)


RUTILE = "136\n4.6 3.0\nTi 2a\n0.00 0.00 0.00\nO 4f\n0.31 0.31 0.00"


def accepts(grammar: str, text: str) -> bool:
    vocabulary = [bytes([i]) for i in range(256)] + [b"<end>"]
    info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256])
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_grammar(grammar))
    return matcher.accept_string(text) and matcher.accept_token(256)


def test_the_rest_of_a_symmetric_text_matches_after_each_of_its_lines():
    codec, numbers = crystal_text("symmetric"), [22] * 2 + [8] * 4
    for end in [match.end() for match in re.finditer("\n", RUTILE)]:
        written, rest = RUTILE[:end], RUTILE[end:]
        assert accepts(codec.cell_grammar(numbers, 9, written), rest)
        assert accepts(codec.grammar([8, 22], 6, 9, written), rest)
    written = RUTILE[: RUTILE.index("O 4f")]
    assert not accepts(codec.cell_grammar([22, 22, 8, 8], 9, written), "O 4f\n0.31 0.31 0.00")
    # A fixed site that is used is not offered again; 2b has the same size.
    grammar = codec.cell_grammar([22] * 4, 9, written)
    assert not accepts(grammar, "Ti 2a\n0.00 0.00 0.00")
    assert accepts(grammar, "Ti 2b\n0.00 0.00 0.50")


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ("O 4f\n0.02 0.02 0.00", 5),  # near Ti at the origin
        ("O 4f\n0.00 0.00 0.00", 5),  # the four atoms are two
        ("O 2a\n0.00 0.00 0.00", 4),  # the site has no other coordinates
    ],
)
def test_an_orbit_is_drawn_again_from_where_it_can_differ(last, line):
    check = OrbitLines(0.5)
    *before, orbit = [*RUTILE.split("\n")[:4], *last.split("\n")]
    assert not any(map(check.add, before))
    assert check.add(orbit)
    assert check.redraw_line == line


@pytest.mark.parametrize(("label", "on_site"), [("96k", range(100)), ("32f", range(7, 14))])
def test_blocked_values_of_an_orbit_are_those_that_decoding_rejects(label, on_site):
    codec = crystal_text("symmetric")
    text = f"225\n5.6\nNa 4a\n0.00 0.00 0.00\nO {label}\n"
    check = codec.line_check(0.5)
    assert not any(map(check.add, text.split("\n")[:-1]))
    blocked = check.blocked("0.10 0.10")
    for value in range(100):
        decoded = codec.decode(f"{text}0.10 0.10 0.{value:02d}", Limits(200, None, True, 0.5))
        # Values that are on another position of the site only are blocked too.
        expected = isinstance(decoded, Decoded) and value in on_site
        assert expected == (not blocked[value])


def test_a_coordinate_that_follows_from_the_others_is_masked_only_where_it_is_free_itself():
    """A grammar allows 0.10 alone as the third coordinate of (x, x, x)."""
    check = OrbitLines(0.5)
    lines = ["225", "5.6", "Na 4a", "0.00 0.00 0.00", "O 32f"]
    assert not any(map(check.add, lines))
    assert not check.blocked("0.10 0.10")[10]
    assert check.blocked("0.02 0.02") is None


@pytest.mark.parametrize(
    ("kind", "written", "apart", "near"),
    [
        ("symmetric", RUTILE[: RUTILE.rindex("\n")], "0.31 0.31 0.00", "0.02 0.02 0.00"),
        ("coordinates", "4.0 4.0 4.0\n90 90 90\nH\n0.0 0.0 0.0\nH", "0.5 0.5 0.5", "0.0 0.0 0.1"),
    ],
)
def test_what_follows_some_lines_does_not_change_what_is_known_after_them(
    kind, written, apart, near
):
    lines = tuple(written.split("\n"))
    for last in (apart, near, apart):
        read_lines.cache_clear()
        assert read_lines(kind, 0.5, (*lines, last)).is_near == (last == near)
        assert read_lines(kind, 0.5, (*lines, near)).is_near
        assert not read_lines(kind, 0.5, (*lines, apart)).is_near
    # A second atom at the place of the last one is too near to it alone.
    again = (*lines, apart, lines[-1], apart)
    assert read_lines(kind, 0.5, again).is_near
    assert not read_lines(kind, 0.5, (*lines, apart)).is_near
