"""The MP2020 correction, by one rule for DFT results and for the entries they are measured against.

pymatgen corrects an anion by its oxidation state, and `strict_anions` says by which ones. Its
versions before May 2024 know the rule `no_check` alone (pull request 3803), and the Materials
Project's entries of 2023 are corrected by it: CoSb3 has 0.144 eV/atom that `require_bound` does not
give. Entries and results are therefore corrected here, with the same guess of oxidation states.
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
"""The functionals, in pymatgen's words, whose energies MP2020 makes comparable."""


def scheme_name(scheme: str, strict_anions: StrictAnions) -> str:
    """Return the name of a correction scheme with its rule for anions."""
    return f"{scheme} ({strict_anions})" if scheme.startswith("MP2020") else scheme


def mp2020_correction(
    crystal: Structure | Composition,
    parameters: Mapping[str, Any],
    strict_anions: StrictAnions,
    data: Mapping[str, Any] | None = None,
) -> float | None:
    """Return the correction of a cell's energy in eV, None where the scheme does not cover it.

    Args:
        crystal: the structure; a composition does where `data` has the types of O and S.
        parameters: run_type, and hubbards of a GGA+U run.
        strict_anions: which oxidation states let an anion be corrected.
        data: oxide_type and sulfide_type, where they are known.
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
        warnings.simplefilter("ignore")  # no neutral assignment of oxidation states
        processed = _compatibility(strict_anions).process_entry(entry)
    return None if processed is None else float(processed.correction)


def rules_agree(composition: Composition, strict_anions: StrictAnions) -> bool:
    """Whether a composition's correction is the same by a rule for anions and by `no_check`."""
    found = {
        rule: mp2020_correction(
            composition,
            {"run_type": "GGA+U", "hubbards": _expected_hubbards(composition)},
            rule,
            {"oxide_type": "oxide", "sulfide_type": "sulfide"},
        )
        for rule in (strict_anions, "no_check")
    }
    return found[strict_anions] == found["no_check"]


def is_corrected(composition: Composition) -> bool:
    """Whether the scheme corrects runs of a composition in some way."""
    parameters = {"run_type": "GGA+U", "hubbards": _expected_hubbards(composition)}
    types = {"oxide_type": "oxide", "sulfide_type": "sulfide"}
    return bool(mp2020_correction(composition, parameters, "no_check", types))


def _expected_hubbards(composition: Composition) -> Mapping[str, float]:
    """Return the U values that the input sets give a composition, eV."""
    anion = max(composition.elements, key=lambda element: element.X)
    return _compatibility("no_check").u_settings.get(anion.symbol, {})


@lru_cache
def _compatibility(strict_anions: StrictAnions) -> MaterialsProject2020Compatibility:
    return MaterialsProject2020Compatibility(check_potcar=False, strict_anions=strict_anions)


def needs_structure(composition: Composition, data: Mapping[str, Any]) -> bool:
    """Whether the correction needs bonds: those of O and S, where their type is not known."""
    return any(
        Element(symbol) in composition and not data.get(name)
        for symbol, name in (("O", "oxide_type"), ("S", "sulfide_type"))
    )
