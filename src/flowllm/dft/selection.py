"""Selection of relaxed crystals for DFT, with the reason and the probability of each."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pymatgen.core import Composition

from flowllm import seeds
from flowllm.config.sections.energies import DftInputs

TakenAs = Literal["selected", "candidate", "control"]


@dataclass(frozen=True)
class Relaxed:
    """What is known by the potential about a relaxed crystal for which DFT can be run.

    Attributes:
        name: id of the draw.
        formula: of the whole cell.
        e_above_hull: eV per atom by the potential, None without a reference.
        group: smallest id in its class of matching crystals; None if it could not be compared, or
            was not.
        novel: whether it matches no known crystal; None if it was not compared.
        known_as: id of the known crystal that it matches.
        bare_hull: whether the hull has no compound of its elements, which makes e_above_hull too
            low.
    """

    name: str
    formula: str
    e_above_hull: float | None
    group: str | None = None
    novel: bool | None = None
    known_as: str | None = None
    bare_hull: bool = False


@dataclass(frozen=True)
class Choice:
    """Whether a crystal is computed, and why.

    Attributes:
        taken_as: why the crystal is computed: `selected` by the rule of the selection, `candidate`,
            or `control`; None if it is not computed.
        probability: probability of being taken, over the seeds; None for a selection from which
            the rates over all crystals are not estimated.
        leads_class: whether it is novel and has the lowest energy above the hull of the novel
            crystals of its class; None if it was not compared.
        reason: why the crystal is computed or not, as text.
    """

    taken_as: TakenAs | None
    probability: float | None
    leads_class: bool | None
    reason: str


def choose(crystals: Sequence[Relaxed], section: DftInputs, seed: int) -> dict[str, Choice]:
    """Choose the crystals that are computed.

    The random choices depend on the seed and the ids alone, so that a larger sample contains the
    smaller one.

    Args:
        crystals: the crystals for which DFT can be run.
        section: section `dft_inputs` of the configuration.
        seed: seed of the configuration.

    Returns:
        The choice of every crystal by id.
    """
    if section.selection == "candidates":
        return _choose_candidates(crystals, section, seed)
    taken = {one.name for one in _taken(crystals, section, seed)}
    # By the rules of the other selections a crystal that is left out never had a chance.
    known = section.selection in ("all", "random") and bool(crystals)
    probability = len(taken) / len(crystals) if known else None
    choices = {}
    for one in crystals:
        reason = f"selection {section.selection}, e_above_hull {_shown(one.e_above_hull)}"
        taken_as: TakenAs | None = "selected" if one.name in taken else None
        choices[one.name] = Choice(taken_as, probability, None, reason)
    return choices


def _taken(crystals: Sequence[Relaxed], section: DftInputs, seed: int) -> list[Relaxed]:
    """Return the crystals that a selection other than `candidates` takes."""
    found = list(crystals)
    if section.selection == "all":
        return found
    if section.selection == "e_above_hull":
        # Nearest to the hull first where there are more than max_crystals.
        found = sorted((one for one in found if _is_near(one, section)), key=_energy_order)
    elif section.selection in ("random", "n_ary"):
        weights = [1.0] * len(found)
        if section.selection == "n_ary":
            weights = n_ary_weights([one.formula for one in found])
        found = _in_random_order(found, weights, seed)
    return found[: section.max_crystals]


def _choose_candidates(
    crystals: Sequence[Relaxed], section: DftInputs, seed: int
) -> dict[str, Choice]:
    """Choose the candidates, and a simple random sample of fixed size from the others."""
    leaders = _leaders(crystals)
    near = (one for one in leaders.values() if _is_near(one, section))
    order = [one.name for one in sorted(near, key=_energy_order)]
    ranks = {name: rank for rank, name in enumerate(order, 1)}
    candidates = set(order[: section.max_crystals])
    others = [one for one in crystals if one.name not in candidates]
    size = math.ceil(section.control_share * len(others))
    controls = {one.name for one in _in_random_order(others, [1.0] * len(others), seed)[:size]}
    choices = {}
    for one in crystals:
        leads = one.group is not None and leaders.get(one.group) is one
        if one.name in candidates:
            reason = (
                f"candidate {ranks[one.name]}: novel, the first of its class, e_above_hull "
                f"{_shown(one.e_above_hull)}{_doubt(one)}"
            )
            choices[one.name] = Choice("candidate", 1.0, leads, reason)
            continue
        reason = _why_no_candidate(one, leaders, ranks, section)
        if one.name in controls:
            drawn = f"control: one of {size} drawn from {len(others)} others; "
            choices[one.name] = Choice("control", size / len(others), leads, drawn + reason)
        else:
            choices[one.name] = Choice(None, size / len(others), leads, reason)
    return choices


def _leaders(crystals: Iterable[Relaxed]) -> dict[str, Relaxed]:
    """Return the novel crystal of each class with the lowest energy above the hull."""
    leaders: dict[str, Relaxed] = {}
    for one in crystals:
        if one.novel and one.group is not None:
            best = leaders.setdefault(one.group, one)
            leaders[one.group] = min(best, one, key=_energy_order)
    return leaders


def _why_no_candidate(
    one: Relaxed,
    leaders: Mapping[str, Relaxed],
    ranks: Mapping[str, int],
    section: DftInputs,
) -> str:
    """Return why a crystal is not a candidate."""
    if one.group is None:
        return "no candidate: the matcher cannot compare it"
    if not one.novel:
        return f"no candidate: known, matches {one.known_as}"
    if (leader := leaders[one.group]) is not one:
        return f"no candidate: matches {leader.name}, which is nearer to the hull"
    if one.name in ranks:
        return (
            f"no candidate: {ranks[one.name] - 1} come before it, and max_crystals is "
            f"{section.max_crystals}{_doubt(one)}"
        )
    return (
        f"no candidate: e_above_hull {_shown(one.e_above_hull)} is not within "
        f"{section.max_e_above_hull:g}"
    )


def _is_near(one: Relaxed, section: DftInputs) -> bool:
    """Return whether a crystal is within the bound of the energy above the hull."""
    return one.e_above_hull is not None and one.e_above_hull <= section.max_e_above_hull


def _energy_order(one: Relaxed) -> tuple[bool, float, str]:
    """Sort key: lowest energy above the hull first, crystals without one last.

    Crystals of whose elements the hull has no compound come after all others: their energies above
    the hull are the lowest because the reference is missing.
    """
    distance = math.inf if one.e_above_hull is None else one.e_above_hull
    return (one.bare_hull, distance, one.name)


def _doubt(one: Relaxed) -> str:
    """Return what makes a crystal's energy above the hull doubtful, as the end of a reason."""
    return "; the hull has no compound of its elements" if one.bare_hull else ""


def n_ary_weights(formulas: Sequence[str]) -> list[float]:
    """Return weights with which each number of elements has the same total probability."""
    numbers = [len(Composition(formula)) for formula in formulas]
    counts = Counter(numbers)
    return [1 / counts[number] for number in numbers]


def _in_random_order(
    crystals: Sequence[Relaxed], weights: Sequence[float], seed: int
) -> list[Relaxed]:
    """Return crystals in the order of a weighted draw without replacement.

    The keys are those of Efraimidis and Spirakis (2006). Each depends on its crystal alone.
    """
    keys = {
        one.name: _draw_key(seed, one.name, weight)
        for one, weight in zip(crystals, weights, strict=True)
    }
    return sorted(crystals, key=lambda one: keys[one.name])


def _draw_key(seed: int, name: str, weight: float) -> float:
    uniform = seeds.generator(seed, "dft_inputs", name).random()
    return -math.log1p(-uniform) / weight


def _shown(distance: float | None) -> str:
    return "unknown" if distance is None else f"{distance:.3f} eV/atom"
