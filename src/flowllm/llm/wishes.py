"""Wishes as the language model is asked for them: prompt, form of the text, reasons of rejection.

What the text of a crystal shows is enforced: formula, elements, number of atoms and, in the
symmetric text, the space group. A draft without them is rejected. With structured decoding the
grammar has only the asked elements, number of atoms and group, so that few drafts are rejected.
Everything else is only asked, and measured later (`evaluate.requests`).

A model that is forced to what its prompt does not say has begun the text for other crystals: the
cell comes before the atoms. A subset of elements is therefore asked for as one choice of them per
draw, whose sentence the model knows, and the first drafts of a wish with a number of atoms are free
in it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from pymatgen.core import Element

from flowllm.config.sections.llm import Prompts
from flowllm.data.wishes import Wish, Words, parse_wish
from flowllm.data.wyckoff import space_group
from flowllm.errors import FlowllmError
from flowllm.llm.crystal_text import composition_of
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.model_record import ModelRecord
from flowllm.llm.orbit_sums import possible_groups
from flowllm.llm.prompts import Conditions, prompt_formula
from flowllm.llm.redraws import Form
from flowllm.llm.required import Required, reduced_formula
from flowllm.llm.sampling import DrawRequest


@dataclass(frozen=True)
class Target:
    """A wish for one model.

    Attributes:
        words: the wish as text.
        wish: its values.
        conditions: conditions of the prompt.
        numbers: atomic number of each atom that the text must have, in its order; None without a
            formula, and for a reduced formula, which is that of several cells.
        required: what drafts are rejected for besides these atoms.
        allowed: atomic numbers that the text of structured decoding may have.
    """

    words: Words
    wish: Wish
    conditions: Conditions
    numbers: tuple[int, ...] | None
    required: Required
    allowed: Collection[int]


MAX_CHOSEN = 4
"""Largest number of elements in a choice of a subset; nearly all of MP-20 has at most four."""


def target_of(prompts: Prompts, record: ModelRecord, words: Words) -> Target:
    """Return a wish for one model.

    Args:
        prompts: configured prompts.
        record: record of the model's fine-tuning.
        words: the wish as text.

    Raises:
        FlowllmError: the wish is invalid, or the model cannot be asked for it.
    """
    try:
        wish = parse_wish(words, record.max_atoms, record.own(prompts))
    except ValueError as error:
        raise FlowllmError(f"conditions {dict(words)}: {error}") from error
    is_reduced = prompts.formula_style == "reduced"
    numbers = None if is_reduced else wish.formula
    formula, elements = None, None
    if wish.formula is not None and is_reduced:
        formula = reduced_formula(np.array(wish.formula))
    if wish.elements is not None:
        elements = frozenset(Element(symbol).Z for symbol in wish.elements)
    chosen = formula or elements
    target = Target(
        words=words,
        wish=wish,
        conditions=prompt_conditions(prompts, wish),
        numbers=numbers,
        required=Required(
            formula=formula,
            elements=elements,
            elements_mode=wish.elements_mode,
            num_atoms=wish.num_atoms,
            space_group=wish.space_group_number,
        ),
        allowed=sorted(chosen) if chosen else record.elements,
    )
    _check_possible(prompts, record, target)
    return target


def prompt_conditions(prompts: Prompts, wish: Wish) -> Conditions:
    """Return what the prompt says of a wish; it does not give the number of atoms.

    A subset of elements is left out, since the sentence of the training gives all elements
    (`choose_elements`).
    """
    formula = None if wish.formula is None else prompt_formula(prompts, np.array(wish.formula))
    return Conditions(
        formula=formula,
        elements=wish.elements if wish.elements_mode == "exact" else None,
        space_group_number=wish.space_group_number,
        own=wish.own,
        **dict(wish.energies),
    )


def choose_elements(target: Target, record: ModelRecord, rng: np.random.Generator) -> Target:
    """Return the wish of one draw: a subset of elements is asked for as a random choice of them.

    The choice has two to `MAX_CHOSEN` elements, each number with the same probability. The draft
    still meets the wish with any subset of all asked elements.

    Args:
        target: the wish.
        record: record of the model's fine-tuning; a model that has learned no sentence of elements
            is asked for none.
        rng: random numbers of the draw.
    """
    symbols = target.wish.elements
    if symbols is None or target.wish.elements_mode == "exact" or target.wish.formula is not None:
        return target
    if "elements" not in record.prompts:
        return target
    most = min(len(symbols), MAX_CHOSEN, target.wish.num_atoms or MAX_CHOSEN)
    count = int(rng.integers(min(2, most), most, endpoint=True))
    places = sorted(rng.choice(len(symbols), count, replace=False).tolist())
    chosen = tuple(symbols[place] for place in places)
    return replace(
        target,
        conditions=replace(target.conditions, elements=chosen),
        allowed=sorted(Element(symbol).Z for symbol in chosen),
    )


def form_of(
    target: Target, prompts: Prompts, record: ModelRecord, *, any_number: bool = False
) -> Form:
    """Return the form of the texts of a wish for structured decoding.

    Args:
        target: the wish.
        prompts: configured prompts.
        record: record of the model's fine-tuning.
        any_number: whether the texts may have another number of atoms than the asked one.
    """
    text, required = crystal_text(prompts.crystal_text), target.required
    if target.numbers is not None:
        return partial(
            text.cell_grammar, target.numbers, record.max_length, group=required.space_group
        )
    return partial(
        text.grammar,
        target.allowed,
        record.max_atoms,
        record.max_length,
        num_atoms=None if any_number else required.num_atoms,
        group=required.space_group,
    )


def request_of(
    target: Target,
    prompts: Prompts,
    record: ModelRecord,
    *,
    structured: bool,
    seed: Callable[[int], int],
) -> DrawRequest:
    """Return the request of one draw.

    Args:
        target: the wish, see `choose_elements`.
        prompts: configured prompts.
        record: record of the model's fine-tuning.
        structured: whether the text has the form of the wish.
        seed: function from the number of the attempt to its seed.
    """
    is_late = target.numbers is None and target.required.num_atoms is not None
    free = form_of(target, prompts, record, any_number=True) if structured and is_late else None
    return DrawRequest(
        conditions=target.conditions,
        composition=None if target.numbers is None else composition_of(np.array(target.numbers)),
        form=form_of(target, prompts, record) if structured else None,
        first_form=free,
        seed=seed,
        required=target.required,
    )


def _check_possible(prompts: Prompts, record: ModelRecord, target: Target) -> None:
    """Refuse elements that the model has never seen, and cells that a space group cannot have."""
    asked = set(target.wish.formula or ()) | set(target.required.elements or ())
    if unknown := sorted(asked - set(record.elements)):
        symbols = ", ".join(Element.from_Z(z).symbol for z in unknown)
        raise FlowllmError(
            f"conditions {dict(target.words)}: no training crystal of the model has {symbols}; ask "
            "for other elements, or fine-tune on crystals that have them"
        )
    group = target.required.space_group
    if group is None or prompts.crystal_text != "symmetric":
        return
    counts: tuple[int, ...] = ()
    if target.numbers is not None:
        counts = tuple(composition_of(np.array(target.numbers)).values())
    elif target.required.num_atoms is not None:
        counts = (target.required.num_atoms,)
    smallest = min(site.num_atoms for site in space_group(group).sites.values())
    if not counts and smallest > record.max_atoms:
        raise FlowllmError(
            f"conditions {dict(target.words)}: a primitive cell of space group {group} has at "
            f"least {smallest} atoms, but the model was trained on crystals of at most "
            f"{record.max_atoms}; ask for another group"
        )
    if counts and group not in possible_groups(counts):
        raise FlowllmError(
            f"conditions {dict(target.words)}: no primitive cell of space group {group} has orbits "
            "that add up to these atoms; ask for another number of atoms or another group"
        )
