"""Structural and compositional validity, by the rules of CDVAE and its successors."""

from functools import cache
from math import gcd, prod

import numpy as np
import smact
from pymatgen.core import Element
from smact.screening import smact_validity

from flowllm.crystal import MIN_DISTANCE, Crystal
from flowllm.errors import FlowllmError

MIN_VOLUME = 0.1
"""Minimum volume of a cell in cubic angstrom, as in the code that the paper's numbers come from."""

MAX_COMBINATIONS = 10_000_000
"""Number of combinations of oxidation states above which DiffCSP's rule returns invalid."""

_STATES_OF_SET = {
    "smact14": "oxidation_states_smact14",
    "icsd16": "oxidation_states_icsd16",
    "icsd24": "oxidation_states_icsd24",
}

Composition = tuple[tuple[int, int], ...]
"""Pairs of atomic number and count, sorted by atomic number; the counts have no common divisor."""


def reduced_composition(atomic_numbers: np.ndarray) -> Composition:
    """Return the reduced composition of the atoms of a cell (n,)."""
    numbers, counts = np.unique(atomic_numbers, return_counts=True)
    divisor = gcd(*counts.tolist())
    return tuple(
        (int(number), int(count) // divisor) for number, count in zip(numbers, counts, strict=True)
    )


def is_structurally_valid(crystal: Crystal) -> bool:
    """Return whether all distances are at least 0.5 A and the volume is at least 0.1 A^3.

    Distances are those of different atoms, to the nearest periodic image. The distances of an atom
    to its own images are not tested, as in the peers' code; the minimum volume rejects collapsed
    cells of one atom. A cell whose distances cannot be computed is invalid.
    """
    structure = crystal.to_structure()
    if structure.volume < MIN_VOLUME:
        return False
    try:
        distances = structure.distance_matrix
    except OverflowError:  # samples of other models have lengths beyond pymatgen's cell indices
        return False
    pairs = np.triu_indices(crystal.num_atoms, k=1)
    return bool(np.all(distances[pairs] >= MIN_DISTANCE))


@cache
def is_compositionally_valid(composition: Composition, oxidation_states: str) -> bool:
    """Return whether some oxidation states are neutral and fit the electronegativities (SMACT).

    Single elements and compositions of metals only are valid. As in CDVAE and DiffCSP, a
    composition with more than ten million combinations is not searched and is invalid.

    Args:
        composition: a composition of `reduced_composition`.
        oxidation_states: smact's set of oxidation states, e.g. `smact14`, the peers' set.

    Raises:
        FlowllmError: the set is unknown.
    """
    if oxidation_states not in _STATES_OF_SET:
        known = ", ".join(sorted(_STATES_OF_SET))
        raise FlowllmError(
            f"metrics.oxidation_states is {oxidation_states!r}; set it to one of {known}."
        )
    symbols = [Element.from_Z(number).symbol for number, _ in composition]
    if len(symbols) > 1 and not all(symbol in smact.metals for symbol in symbols):
        try:
            elements = [smact.Element(symbol) for symbol in symbols]
        except KeyError:
            return False  # smact has no data for the heaviest elements
        states = [getattr(element, _STATES_OF_SET[oxidation_states]) or () for element in elements]
        if prod(len(of_element) for of_element in states) > MAX_COMBINATIONS:
            return False
    formula = "".join(
        f"{symbol}{count}" for symbol, (_, count) in zip(symbols, composition, strict=True)
    )
    return bool(smact_validity(formula, oxidation_states_set=oxidation_states))
