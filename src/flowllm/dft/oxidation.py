"""Oxidation states guessed from a composition of any size.

pymatgen's `Composition.oxi_state_guesses` lists every assignment, so that the correction scheme
asks it for reduced formulas of at most 20 atoms only, and of larger ones knows no anion but the
most electronegative element. The same guess is found here without the list: an element's total
charge, and then the composition's, is built up atom by atom, and of the ways to one charge the most
probable is kept.
"""

from functools import lru_cache

from pymatgen.core import Composition, Element, Species


def guessed_oxidation_states(composition: Composition) -> dict[str, float]:
    """Return the most probable neutral assignment: the mean oxidation state by element symbol.

    It is the first of `composition.oxi_state_guesses(max_sites=-1)`: the sum of the probabilities
    of the species in the ICSD is largest. It is empty where no assignment is neutral.
    """
    reduced = composition.reduced_composition.get_el_amt_dict()
    if len(reduced) == 1:
        return dict.fromkeys(reduced, 0.0)
    if any(amount != int(amount) for amount in reduced.values()):
        return {}
    return dict(_guess(tuple((symbol, int(amount)) for symbol, amount in reduced.items())))


@lru_cache(maxsize=4096)
def _guess(amounts: tuple[tuple[str, int], ...]) -> tuple[tuple[str, float], ...]:
    # By total charge: score, places of the elements' charges in their lists (pymatgen takes the
    # first of equally probable assignments in that order), and the charges themselves.
    best: dict[int, tuple[float, tuple[int, ...], tuple[int, ...]]] = {0: (0.0, (), ())}
    for symbol, number in amounts:
        longer: dict[int, tuple[float, tuple[int, ...], tuple[int, ...]]] = {}
        for total, (score, places, charges) in best.items():
            for place, (charge, gain) in enumerate(_charges(symbol, number)):
                found = (score + gain, (*places, place), (*charges, charge))
                if _is_better(found, longer.get(total + charge)):
                    longer[total + charge] = found
        best = longer
    if 0 not in best:
        return ()
    charges = best[0][2]
    return tuple(
        (symbol, charge / number) for (symbol, number), charge in zip(amounts, charges, strict=True)
    )


@lru_cache(maxsize=4096)
def _charges(symbol: str, number: int) -> tuple[tuple[int, float], ...]:
    """Return the total charges that so many atoms can have, each with its best score.

    They are in pymatgen's order: that of their first appearance among the combinations with
    replacement, so by the largest counts of the earlier states.
    """
    states = Element(symbol).icsd_oxidation_states or Element(symbol).common_oxidation_states
    gains = [_probability(symbol, state) for state in states]
    # By atoms used and their charge: the best score, and the counts that appear first.
    scores: dict[tuple[int, int], float] = {(0, 0): 0.0}
    first: dict[tuple[int, int], tuple[int, ...]] = {(0, 0): ()}
    for state, gain in zip(states, gains, strict=True):
        new_scores: dict[tuple[int, int], float] = {}
        new_first: dict[tuple[int, int], tuple[int, ...]] = {}
        for (used, charge), score in scores.items():
            for count in range(number - used + 1):
                key = (used + count, charge + count * state)
                new_scores[key] = max(new_scores.get(key, 0.0), score + count * gain)
                counts = (*first[used, charge], count)
                new_first[key] = max(new_first.get(key, counts), counts)
        scores, first = new_scores, new_first
    whole = [charge for used, charge in scores if used == number]
    whole.sort(key=lambda charge: first[number, charge], reverse=True)
    return tuple((charge, scores[number, charge]) for charge in whole)


def _is_better(
    found: tuple[float, tuple[int, ...], tuple[int, ...]],
    known: tuple[float, tuple[int, ...], tuple[int, ...]] | None,
) -> bool:
    """Whether an assignment is more probable, or as probable and earlier in pymatgen's order."""
    return known is None or (-found[0], found[1]) < (-known[0], known[1])


def _probability(symbol: str, state: int) -> float:
    """Return how often the ICSD has a species, as pymatgen weighs it."""
    if Composition.oxi_prob is None:
        Composition("NaCl").oxi_state_guesses()  # reads pymatgen's table
    return float(Composition.oxi_prob.get(Species(symbol, state), 0))
