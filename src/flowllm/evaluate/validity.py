"""Structural and compositional validity, by the rules that CDVAE set and its successors share."""

from functools import cache
from math import gcd, prod

import numpy as np
import smact
from pymatgen.core import Element
from smact.screening import smact_validity

from flowllm.crystal import MIN_DISTANCE, Crystal
from flowllm.errors import FlowllmError

MIN_VOLUME = 0.1
"""Cubic angstrom; the peers' code, which the paper's numbers come from."""

MAX_COMBINATIONS = 10_000_000
"""Oxidation state combinations above which DiffCSP's rule gives up and says invalid."""

_STATES_OF_SET = {
    "smact14": "oxidation_states_smact14",
    "icsd16": "oxidation_states_icsd16",
    "icsd24": "oxidation_states_icsd24",
}

Composition = tuple[tuple[int, int], ...]
"""Pairs of atomic number and count, by atomic number, the counts without common divisor."""


def reduced_composition(atomic_numbers: np.ndarray) -> Composition:
    """Return the composition of a cell's atoms (n,) with the counts divided by their divisor."""
    numbers, counts = np.unique(atomic_numbers, return_counts=True)
    divisor = gcd(*counts.tolist())
    return tuple(
        (int(number), int(count) // divisor) for number, count in zip(numbers, counts, strict=True)
    )


def is_structurally_valid(crystal: Crystal) -> bool:
    """Whether no two atoms are closer than 0.5 A and the cell holds at least 0.1 cubic angstrom.

    A cell whose distances cannot be computed is not valid.

    Distances are to the nearest periodic image. An atom's distance to its own images does not
    count, as in the peers' code: the volume is what rules out collapsed cells of one atom.
    """
    structure = crystal.to_structure()
    if structure.volume < MIN_VOLUME:
        return False
    try:
        distances = structure.distance_matrix
    except OverflowError:  # lengths beyond what pymatgen counts cells in; other models have them
        return False
    pairs = np.triu_indices(crystal.num_atoms, k=1)
    return bool(np.all(distances[pairs] >= MIN_DISTANCE))


@cache
def is_compositionally_valid(composition: Composition, oxidation_states: str) -> bool:
    """Whether some oxidation states are neutral and fit the electronegativities (SMACT).

    One element alone, and metals alone, are valid. Rule of CDVAE and DiffCSP: more than ten million
    combinations are not searched and count as invalid.

    Args:
        composition: as `reduced_composition` gives it.
        oxidation_states: smact's set of oxidation states, e.g. `smact14`, the peers' set.

    Raises:
        FlowllmError: the set is unknown.
    """
    if oxidation_states not in _STATES_OF_SET:
        raise FlowllmError(
            f"oxidation_states {oxidation_states!r} is none of {sorted(_STATES_OF_SET)}"
        )
    symbols = [Element.from_Z(number).symbol for number, _ in composition]
    if len(symbols) > 1 and not all(symbol in smact.metals for symbol in symbols):
        try:
            elements = [smact.Element(symbol) for symbol in symbols]
        except KeyError:
            return False  # smact has no data of the heaviest elements
        states = [getattr(element, _STATES_OF_SET[oxidation_states]) or () for element in elements]
        if prod(len(of_element) for of_element in states) > MAX_COMBINATIONS:
            return False
    formula = "".join(
        f"{symbol}{count}" for symbol, (_, count) in zip(symbols, composition, strict=True)
    )
    return bool(smact_validity(formula, oxidation_states_set=oxidation_states))
