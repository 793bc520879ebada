"""The MP2020 correction, by one rule for DFT results and for the reference entries.

pymatgen corrects an anion depending on its oxidation state, and `strict_anions` selects the states
that qualify. pymatgen's versions before May 2024 have the rule `no_check` only (pull request 3803),
and the Materials Project's entries of 2023 are corrected by that rule: CoSb3 has a correction of
-0.144 eV/atom, but none by `require_bound`. This module therefore corrects entries and results
alike, with the same guess of oxidation states.

Source: Wang et al., Scientific Reports 11, 15496 (2021).
"""

import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from pymatgen.core import Composition, Element, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

from flowllm.dft.oxidation import guessed_oxidation_states

StrictAnions = Literal["require_bound", "require_exact", "no_check"]

RUN_TYPES = ("GGA", "GGA+U")
"""Functionals, named as in pymatgen, whose energies MP2020 makes comparable."""


def scheme_name(scheme: str, strict_anions: StrictAnions) -> str:
    """Return the name of a correction scheme, with the rule for anions where it has one."""
    return f"{scheme} ({strict_anions})" if scheme.startswith("MP2020") else scheme


def mp2020_correction(
    crystal: Structure | Composition,
    parameters: Mapping[str, Any],
    strict_anions: StrictAnions,
    data: Mapping[str, Any] | None = None,
) -> float | None:
    """Return the correction in eV per cell, None where the scheme does not cover the run.

    Args:
        crystal: the structure; a composition is enough where `data` has the types of O and S.
        parameters: run_type, and hubbards for a GGA+U run.
        strict_anions: rule that selects the oxidation states at which an anion is corrected.
        data: oxide_type and sulfide_type where they are known.
    """
    composition = crystal if isinstance(crystal, Composition) else crystal.composition
    known = {**(data or {}), "oxidation_states": guessed_oxidation_states(composition)}
    given: dict[str, Any] = {"parameters": dict(parameters), "data": known}
    entry = (
        ComputedEntry(crystal, 0.0, **given)
        if isinstance(crystal, Composition)
        else ComputedStructureEntry(crystal, 0.0, **given)
    )
    with warnings.catch_warnings():
        # pymatgen warns where no assignment of oxidation states is neutral.
        warnings.simplefilter("ignore")
        processed = _compatibility(strict_anions).process_entry(entry)
    return None if processed is None else float(processed.correction)


def rules_agree(composition: Composition, strict_anions: StrictAnions) -> bool:
    """Return whether `strict_anions` and `no_check` give a composition the same correction."""
    return _nominal_correction(composition, strict_anions) == _nominal_correction(
        composition, "no_check"
    )


def is_corrected(composition: Composition) -> bool:
    """Return whether the scheme has a nonzero correction for a composition."""
    return bool(_nominal_correction(composition, "no_check"))


def _nominal_correction(composition: Composition, strict_anions: StrictAnions) -> float | None:
    """Return the correction of a run with the U values of the input sets.

    O and S are taken as oxide and sulfide.
    """
    parameters = {"run_type": "GGA+U", "hubbards": _expected_hubbards(composition)}
    types = {"oxide_type": "oxide", "sulfide_type": "sulfide"}
    return mp2020_correction(composition, parameters, strict_anions, types)


def _expected_hubbards(composition: Composition) -> Mapping[str, float]:
    """Return the U values in eV that the input sets assign to a composition."""
    anion = max(composition.elements, key=lambda element: element.X)
    hubbards: Mapping[str, float] = _compatibility("no_check").u_settings.get(anion.symbol, {})
    return hubbards


@lru_cache
def _compatibility(strict_anions: StrictAnions) -> MaterialsProject2020Compatibility:
    return MaterialsProject2020Compatibility(check_potcar=False, strict_anions=strict_anions)


def needs_structure(composition: Composition, data: Mapping[str, Any]) -> bool:
    """Return whether the correction needs a structure: bonds of O or S whose type is not known."""
    return any(
        Element(symbol) in composition and not data.get(name)
        for symbol, name in (("O", "oxide_type"), ("S", "sulfide_type"))
    )
