"""Asked and got: what the draws of a base with conditions were asked for, and what they are.

Formula, elements and number of atoms are those of the generated crystal. Space group and energies
are those of the relaxed crystal. The band gap and the configuration's own properties are not
measured. A draw without a crystal meets no condition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import spglib
from pymatgen.core import Composition

from flowllm.crystal import Crystal
from flowllm.data.properties import SPACE_GROUP, parse_number
from flowllm.data.spglib_calls import or_none
from flowllm.data.wishes import ELEMENTS_MODE, NUM_ATOMS, WISHES, Wish, Words, parse_wish
from flowllm.errors import FlowllmError
from flowllm.evaluate.statistics import rate
from flowllm.evaluate.validity import reduced_composition

SYMPREC = 0.1
"""Angstrom. spglib's tolerance of the space group, that of the Materials Project."""

ANGLE_TOLERANCE = 5.0
"""Degrees. spglib's tolerance of angles, pymatgen's default."""

ENERGY_TOLERANCE = 0.1
"""eV/atom. A formation energy within it of the asked one is met."""

E_ABOVE_HULL = "e_above_hull"
FORMATION_ENERGY = "formation_energy_per_atom"

MEASURED = ("formula", "elements", NUM_ATOMS, SPACE_GROUP, FORMATION_ENERGY, E_ABOVE_HULL)
"""Conditions that are measured; of the others the tables say that nothing measures them."""

ALL_DRAWS = "draws that were asked for it"


@dataclass(frozen=True)
class Got:
    """The measured properties of one draw.

    Attributes:
        generated: the generated crystal, None where there is none.
        relaxed: the relaxed crystal, None where there is none.
        e_above_hull: eV per atom of the relaxed crystal, None if unknown.
        formation_energy: the same from the elements of the hull.
    """

    generated: Crystal | None
    relaxed: Crystal | None
    e_above_hull: float | None
    formation_energy: float | None


@dataclass(frozen=True)
class Judged:
    """A wish beside its crystal.

    Attributes:
        got: measured conditions as text by name; those without a value are left out.
        met: whether each measured condition is met, by name; the others are left out.
    """

    got: dict[str, str]
    met: dict[str, bool]

    @property
    def all_met(self) -> bool | None:
        """Whether all measured conditions are met, None if there are none."""
        return all(self.met.values()) if self.met else None


def judge(wish: Wish, got: Got) -> Judged:
    """Compare a wish with its crystal.

    A formula is met if the reduced formulas are equal, an energy above the hull if it is at most
    the asked one, and a formation energy if it is within `ENERGY_TOLERANCE` of the asked one.
    """
    asked = [name for name in MEASURED if name in wish.given()]
    texts = _texts(asked, got)
    energies = dict(wish.energies)
    tests = {
        "formula": lambda: _same_formula(wish, got),
        "elements": lambda: _has_elements(wish, got),
        NUM_ATOMS: lambda: texts[NUM_ATOMS] == str(wish.num_atoms),
        SPACE_GROUP: lambda: texts[SPACE_GROUP] == str(wish.space_group_number),
        E_ABOVE_HULL: lambda: (got.e_above_hull or 0.0) <= energies[E_ABOVE_HULL],
        FORMATION_ENERGY: lambda: (
            abs((got.formation_energy or 0.0) - energies[FORMATION_ENERGY]) <= ENERGY_TOLERANCE
        ),
    }
    return Judged(texts, {name: name in texts and tests[name]() for name in asked})


def space_group_of(crystal: Crystal) -> int | None:
    """Return the number of a crystal's space group, None where spglib finds none."""
    structure = crystal.to_structure()
    found = or_none(
        spglib.get_symmetry_dataset,
        (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers),  # type: ignore[arg-type]  # its stub allows lists only
        symprec=SYMPREC,
        angle_tolerance=ANGLE_TOLERANCE,
    )
    return None if found is None else int(found.number)


def asked_columns(words: Words, got: Got) -> dict[str, Any]:
    """Return the columns of `schemas.REQUESTED_METRICS` of one draw."""
    judged = judge(parse_words(words), got)
    return {
        "asked": list(words.items()),
        "got": list(judged.got.items()),
        "met": list(judged.met.items()),
        "all_met": judged.all_met,
    }


def parse_words(words: Words) -> Wish:
    """Return the wish of a row, whose own properties may have any value.

    Raises:
        FlowllmError: the row has another condition than sample_base writes.
    """
    known = (*WISHES, ELEMENTS_MODE)
    own = {name: _one_value(text) for name, text in words.items() if name not in known}
    try:
        return parse_wish(words, own=own)
    except ValueError as error:
        raise FlowllmError(f"asked {dict(words)}: {error}; run sample_base again") from error


def wish_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the share of draws that meet each condition, and all measured ones.

    Args:
        rows: rows with the columns of `asked_columns`.

    Returns:
        Rates by name of the condition; None for one that is not measured. `all` is the rate of the
        draws that meet all measured conditions.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name, _ in row["asked"]):
        if name == ELEMENTS_MODE:
            continue
        verdicts = [dict(row["met"]).get(name) for row in rows if name in dict(row["asked"])]
        known = [one for one in verdicts if one is not None]
        found[name] = rate(sum(known), len(known), ALL_DRAWS) if known else None
    whole = [row["all_met"] for row in rows if row["all_met"] is not None]
    found["all"] = rate(sum(whole), len(whole), ALL_DRAWS) if whole else None
    return found


def _one_value(text: str) -> tuple[str, ...] | None:
    """Return the text as the only category, None where it is a number."""
    try:
        return None if parse_number(text) is not None else (text,)
    except ValueError:
        return (text,)


def _texts(asked: Sequence[str], got: Got) -> dict[str, str]:
    """Return the measured values as text, without those that are unknown."""
    crystal, relaxed = got.generated, got.relaxed
    texts: dict[str, str | None] = {
        E_ABOVE_HULL: None if got.e_above_hull is None else f"{got.e_above_hull:.4f}",
        FORMATION_ENERGY: None if got.formation_energy is None else f"{got.formation_energy:.4f}",
    }
    if crystal is not None:
        texts["formula"] = crystal.formula
        texts["elements"] = ",".join(Composition(crystal.formula).as_dict())
        texts[NUM_ATOMS] = str(crystal.num_atoms)
    if relaxed is not None and SPACE_GROUP in asked:
        group = space_group_of(relaxed)
        texts[SPACE_GROUP] = None if group is None else str(group)
    return {name: text for name in asked if (text := texts.get(name)) is not None}


def _same_formula(wish: Wish, got: Got) -> bool:
    if wish.formula is None or got.generated is None:
        return False
    asked = reduced_composition(np.array(wish.formula))
    return asked == reduced_composition(got.generated.atomic_numbers)


def _has_elements(wish: Wish, got: Got) -> bool:
    if wish.elements is None or got.generated is None:
        return False
    asked, found = set(wish.elements), set(Composition(got.generated.formula).as_dict())
    return found <= asked and (wish.elements_mode == "subset" or found == asked)
