"""Oxidation states guessed from a composition of any size.

pymatgen's `Composition.oxi_state_guesses` lists every assignment of oxidation states to atoms. The
list grows so fast that pymatgen's correction scheme uses it for reduced formulas of up to 20 atoms
only. In larger formulas the scheme treats the most electronegative element as the only anion.

This module finds the same guess without the list, by dynamic programming over the total charge:
atoms (`_element_charges`) and then elements (`_guess`) are added one after the other, and for each
total charge only the most probable assignment is kept.
"""

from functools import lru_cache
from typing import NamedTuple

from pymatgen.core import Composition, Element, Species


class _Assignment(NamedTuple):
    """Charges of the elements that were added so far.

    Attributes:
        score: sum of the probabilities of all atoms' species in the ICSD.
        ranks: for each element, the position of its charge in `_element_charges`.
        charges: for each element, the total charge of its atoms.
    """

    score: float
    ranks: tuple[int, ...]
    charges: tuple[int, ...]


def guessed_oxidation_states(composition: Composition) -> dict[str, float]:
    """Return the most probable neutral assignment: the mean oxidation state by element symbol.

    The result equals the first of `composition.oxi_state_guesses(max_sites=-1)`: the assignment
    with the largest sum of the probabilities of its species in the ICSD. It is empty where no
    assignment is neutral, and where an amount of the reduced formula is not an integer.
    """
    amounts = composition.reduced_composition.get_el_amt_dict()
    if len(amounts) == 1:
        return dict.fromkeys(amounts, 0.0)
    if any(amount != int(amount) for amount in amounts.values()):
        return {}
    return dict(_guess(tuple((symbol, int(amount)) for symbol, amount in amounts.items())))


@lru_cache(maxsize=4096)
def _guess(amounts: tuple[tuple[str, int], ...]) -> tuple[tuple[str, float], ...]:
    """Return the guess for pairs of symbol and number of atoms."""
    best_by_charge = {0: _Assignment(0.0, (), ())}
    for symbol, number in amounts:
        extended: dict[int, _Assignment] = {}
        for total, known in best_by_charge.items():
            for rank, (charge, score) in enumerate(_element_charges(symbol, number)):
                candidate = _Assignment(
                    known.score + score, (*known.ranks, rank), (*known.charges, charge)
                )
                if _is_better(candidate, extended.get(total + charge)):
                    extended[total + charge] = candidate
        best_by_charge = extended
    neutral = best_by_charge.get(0)
    if neutral is None:
        return ()
    return tuple(
        (symbol, charge / number)
        for (symbol, number), charge in zip(amounts, neutral.charges, strict=True)
    )


def _is_better(candidate: _Assignment, known: _Assignment | None) -> bool:
    """Return whether a candidate is more probable, or as probable and earlier in pymatgen's order.

    pymatgen takes the first of equally probable assignments, in the order of the ranks.
    """
    return known is None or (-candidate.score, candidate.ranks) < (-known.score, known.ranks)


@lru_cache(maxsize=4096)
def _element_charges(symbol: str, number: int) -> tuple[tuple[int, float], ...]:
    """Return the total charges that `number` atoms of an element can have, with their best scores.

    The order is pymatgen's: a charge comes where it first appears among the combinations with
    replacement of the oxidation states. This is the descending order of the tuples of counts, where
    a count is the number of atoms in one oxidation state.
    """
    states = Element(symbol).icsd_oxidation_states or Element(symbol).common_oxidation_states
    # Keys: number of atoms that have a state, and their total charge.
    scores: dict[tuple[int, int], float] = {(0, 0): 0.0}
    first_counts: dict[tuple[int, int], tuple[int, ...]] = {(0, 0): ()}
    for state in states:
        probability = _probability(symbol, state)
        new_scores: dict[tuple[int, int], float] = {}
        new_counts: dict[tuple[int, int], tuple[int, ...]] = {}
        for (used, charge), score in scores.items():
            for count in range(number - used + 1):
                key = (used + count, charge + count * state)
                counts = (*first_counts[used, charge], count)
                new_scores[key] = max(new_scores.get(key, 0.0), score + count * probability)
                new_counts[key] = max(new_counts.get(key, counts), counts)
        scores, first_counts = new_scores, new_counts
    charges = [charge for used, charge in scores if used == number]
    charges.sort(key=lambda charge: first_counts[number, charge], reverse=True)
    return tuple((charge, scores[number, charge]) for charge in charges)


def _probability(symbol: str, state: int) -> float:
    """Return the probability of a species in the ICSD, from pymatgen's table."""
    if Composition.oxi_prob is None:
        Composition("NaCl").oxi_state_guesses()  # loads pymatgen's table
    table = Composition.oxi_prob
    assert table is not None
    return float(table.get(Species(symbol, state), 0))
