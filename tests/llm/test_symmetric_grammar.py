"""The grammar of the symmetric text, by xgrammar's own parser and the codec."""

import pytest

from crystals import fcc, perovskite, rocksalt
from flowllm.llm.symmetric_grammar import symmetric_cell_grammar, symmetric_grammar
from flowllm.llm.symmetric_text import SymmetricText

testing = pytest.importorskip("xgrammar.testing", reason="xgrammar comes with vLLM")

FREE = symmetric_grammar([8, 11, 17, 22, 29, 38], 20, 30)
SALT = "225\n5.6\nNa 4a\n0.00 0.00 0.00\nCl 4b\n0.50 0.50 0.50"


def accepts(grammar: str, text: str) -> bool:
    found: bool = testing._is_grammar_accept_string(grammar, text)
    return found


@pytest.mark.parametrize("crystal", [rocksalt(), perovskite(), fcc()])
def test_training_texts_match(crystal):
    described = SymmetricText().describe(crystal)
    assert accepts(FREE, described.text)
    assert accepts(symmetric_cell_grammar(described.atomic_numbers.tolist(), 30), described.text)


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
    one_one = symmetric_cell_grammar([11, 17], 30)
    assert accepts(one_one, SALT)
    assert not accepts(one_one, SALT.replace("Cl 4b\n0.50 0.50 0.50", "Cl 8c\n0.25 0.25 0.25"))
    one_two = symmetric_cell_grammar([11, 17, 17], 30)
    assert accepts(one_two, SALT.replace("Cl 4b\n0.50 0.50 0.50", "Cl 8c\n0.25 0.25 0.25"))
    assert not accepts(one_two, SALT)
    # One element on two sites.
    both = SALT.replace("Na", "Cl")
    assert accepts(symmetric_cell_grammar([17, 17], 30), both)
