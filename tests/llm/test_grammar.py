"""The expressions of structured decoding, against Python's own `re` and the codec."""

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystals import perovskite, rocksalt
from flowllm.crystal import Crystal, lattice_has_volume
from flowllm.llm.crystal_text import Reason, composition_of
from flowllm.llm.grammar import cell_regex, crystal_regex
from flowllm.llm.text import decode, encode


@given(st.from_regex(crystal_regex([1, 8, 11, 17, 92], 20, 99), fullmatch=True))
def test_every_match_decodes_or_has_two_atoms_at_one_point(text):
    decoded = decode(text, max_atoms=20)
    if not isinstance(decoded, Crystal):
        assert decoded.reason == Reason.COINCIDING_ATOMS
    else:
        assert set(decoded.atomic_numbers.tolist()) <= {1, 8, 11, 17, 92}


@given(st.from_regex(cell_regex([22, 38, 8, 8, 8], 99), fullmatch=True))
def test_the_atoms_of_a_cell_are_fixed(text):
    decoded = decode(text, max_atoms=5, composition={8: 3, 22: 1, 38: 1})
    if isinstance(decoded, Crystal):
        assert decoded.atomic_numbers.tolist() == [22, 38, 8, 8, 8]
    else:
        assert decoded.reason == Reason.COINCIDING_ATOMS


def test_angles_match_if_they_span_a_volume():
    regex = re.compile(cell_regex([11], 9))
    for angles in product((60, 61, 62, 90, 118, 119, 120), repeat=3):
        text = f"3.0 3.0 3.0\n{' '.join(map(str, angles))}\nNa\n0.00 0.00 0.00"
        assert bool(regex.fullmatch(text)) == lattice_has_volume(np.array(angles)), angles


@pytest.mark.parametrize("crystal", [rocksalt(), perovskite()])
def test_training_texts_match(crystal):
    text = encode(crystal)
    numbers = crystal.atomic_numbers.tolist()
    assert re.fullmatch(cell_regex(numbers, 9), text)
    assert re.fullmatch(crystal_regex(sorted(set(numbers)), 5, 9), text)
    assert not re.fullmatch(crystal_regex(sorted(set(numbers)), 1, 9), text)
    assert not re.fullmatch(crystal_regex([1], 5, 9), text)
    assert not re.fullmatch(cell_regex(numbers[::-1], 9), text)
    assert composition_of(crystal.atomic_numbers)


@pytest.mark.parametrize(
    ("angle", "allowed"),
    [
        *[(angle, True) for angle in range(60, 121)],
        *[(angle, False) for angle in (0, 9, 59, 121, 130, 200, 600)],
    ],
)
def test_angles_are_those_of_reduced_cells(angle, allowed):
    text = encode(rocksalt()).replace("60 60 60", f"90 90 {angle}")
    assert bool(re.fullmatch(cell_regex([11, 17], 9), text)) == allowed


@pytest.mark.parametrize("longest", [1, 5, 9, 10, 14, 19, 20, 38, 90, 99])
def test_lengths_go_to_the_longest(longest):
    regex = cell_regex([11, 17], longest)
    a = encode(rocksalt()).split()[0]
    for whole in range(120):
        text = encode(rocksalt()).replace(f"{a} {a} {a}", f"{whole}.9 {a} {a}")
        allowed = 1 <= whole <= longest and float(a) < longest + 1
        assert bool(re.fullmatch(regex, text)) == allowed, whole
