"""The grammar of the symmetric text, by xgrammar's own parser and the codec."""

import re
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest

from crystals import fcc, perovskite, rocksalt
from flowllm.data.wyckoff import space_group
from flowllm.llm.orbit_sums import possible_groups
from flowllm.llm.symmetric_grammar import symmetric_cell_grammar, symmetric_grammar
from flowllm.llm.symmetric_text import SymmetricText

testing = pytest.importorskip("xgrammar.testing", reason="xgrammar comes with vLLM")

FREE = partial(symmetric_grammar, [8, 11, 17, 22, 29, 38], 20, 30)
SALT = "225\n5.6\nNa 4a\n0.00 0.00 0.00\nCl 4b\n0.50 0.50 0.50"


def cell(atomic_numbers: list[int]) -> Callable[[str], str]:
    return partial(symmetric_cell_grammar, atomic_numbers, 30)


def accepts(form: Callable[[str], str], text: str) -> bool:
    """Whether the first line matches its form, and the rest that of the rest."""
    first, line_break, rest = text.partition("\n")
    if not re.fullmatch(form(""), first + line_break):
        return False
    found: bool = testing._is_grammar_accept_string(form(first + line_break), rest)
    return found


@pytest.mark.parametrize("crystal", [rocksalt(), perovskite(), fcc()])
def test_training_texts_match(crystal):
    described = SymmetricText().describe(crystal)
    assert accepts(FREE, described.text)
    assert accepts(cell(described.atomic_numbers.tolist()), described.text)


@pytest.mark.parametrize(
    "text",
    [
        SALT.replace("225", "231"),
        SALT.replace("5.6", "5.6 5.6"),
        SALT.replace("5.6", "31.6"),
        SALT.replace("Na 4a", "Na 4d"),
        SALT.replace("Na", "Fe"),
        SALT.replace("0.50 0.50 0.50", "0.50 0.50 0.49"),
        "136\n4.6 3.0\nTi 2a\n0.00 0.00 0.00\nO 4f\n0.31 0.32 0.00",
    ],
)
def test_other_groups_cells_sites_and_coordinates_do_not_match(text):
    assert accepts(FREE, SALT)
    assert not accepts(FREE, text)


def test_orbits_add_up_to_the_atoms_of_the_formula():
    one_one = cell([11, 17])
    assert accepts(one_one, SALT)
    assert not accepts(one_one, SALT.replace("Cl 4b\n0.50 0.50 0.50", "Cl 8c\n0.25 0.25 0.25"))
    one_two = cell([11, 17, 17])
    assert accepts(one_two, SALT.replace("Cl 4b\n0.50 0.50 0.50", "Cl 8c\n0.25 0.25 0.25"))
    assert not accepts(one_two, SALT)
    # One element on two sites.
    both = SALT.replace("Na", "Cl")
    assert accepts(cell([17, 17]), both)


def test_the_atoms_of_a_text_without_formula_are_limited():
    small = partial(symmetric_grammar, [11, 17], 3, 30)
    assert accepts(small, SALT)
    assert accepts(small, SALT.replace("Cl 4b\n0.50 0.50 0.50", "Cl 8c\n0.25 0.25 0.25"))
    assert not accepts(small, f"{SALT}\nNa 8c\n0.25 0.25 0.25")


def test_no_more_sites_without_freedom_are_used_than_the_group_has():
    """Fm-3m has two sites of one atom, so the third atom of an element has no place."""
    assert not accepts(cell([11, 11, 17]), f"{SALT.replace('Cl', 'Na')}\nCl 4a\n0.00 0.00 0.00")
    assert 225 not in possible_groups((1, 1, 1))
    assert 225 in possible_groups((1, 2, 1))


@pytest.mark.parametrize("counts", [(1, 1), (2, 1), (3, 3), (1, 1, 3), (5, 2)])
def test_possible_groups_are_those_by_enumeration(counts):
    """All choices of sites whose atoms add up, of cubic, tetragonal and hexagonal groups."""
    for number in [*range(75, 80), 123, 139, 166, 186, 191, *range(215, 231)]:
        sites = list(space_group(number).sites.values())
        uses = [range(sum(counts) + 1) if one.has_freedom else range(2) for one in sites]
        states = {tuple(counts)}
        for site, use in zip(sites, uses, strict=True):
            shares = [
                share
                for share in product(range(max(use) + 1), repeat=len(counts))
                if sum(share) in use
            ]
            states = {
                tuple(left - site.num_atoms * n for left, n in zip(state, share, strict=True))
                for state in states
                for share in shares
            }
            states = {state for state in states if min(state) >= 0}
        assert (number in possible_groups(counts)) == ((0,) * len(counts) in states), number
