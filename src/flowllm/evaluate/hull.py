"""Energy above the convex hull of reference entries (eV per atom).

The hull's energy at a composition is the lowest energy of any mixture of reference entries with
that composition, a linear programme over the entries of its chemical system: min e·x such that
A x = b, x >= 0, with an entry's atomic fractions as a column of A and its energy per atom in e. No
facet is ever built, so a crystal of ten elements costs what one of two does, and the entry itself
takes no part: below the hull the distance is negative.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pymatgen.core import Composition
from scipy.optimize import linprog

from flowllm.dft.entries import ReferenceEntry
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables

EnergySource = Literal["potential", "dft"]
"""Whose energies: a machine-learned potential's, or DFT's. The two are never in one hull."""

MAX_SUBSETS = 12
"""Up to this many elements the subsystems are listed; beyond it all systems are looked through."""


class MissingReference(Exception):  # noqa: N818
    """The reference has no elemental entry for an element, so it says nothing of the crystal."""


class ReferenceHull:
    """Reference entries by chemical system, and the hull energy at any composition of them.

    Of entries with the same reduced composition only the lowest can lie on a hull; the others are
    dropped. The order of the entries has no influence on any result.
    """

    def __init__(self, entries: Iterable[tuple[Mapping[str, float], float]]) -> None:
        """Sort reference entries by their chemical systems.

        Args:
            entries: amounts by element symbol, and energy in eV per atom.
        """
        lowest: dict[tuple[tuple[str, float], ...], float] = {}
        for amounts, energy in entries:
            key = _fractions(amounts)
            lowest[key] = min(energy, lowest.get(key, np.inf))
        self._systems: dict[frozenset[str], list[tuple[tuple[tuple[str, float], ...], float]]] = {}
        for key in sorted(lowest):
            system = frozenset(symbol for symbol, _ in key)
            self._systems.setdefault(system, []).append((key, lowest[key]))
        self.elements = {next(iter(system)) for system in self._systems if len(system) == 1}
        self._programme = lru_cache(maxsize=64)(self._make_programme)

    def __len__(self) -> int:
        """Number of reduced compositions that have an entry."""
        return sum(map(len, self._systems.values()))

    def hull_energy(self, amounts: Mapping[str, float]) -> float:
        """Energy per atom of the hull at a composition, eV.

        Args:
            amounts: amounts by element symbol.

        Raises:
            MissingReference: an element has no elemental entry.
        """
        missing = sorted(set(amounts) - self.elements)
        if missing:
            raise MissingReference(f"no elemental reference entry for {', '.join(missing)}")
        fractions = dict(_fractions(amounts))
        symbols = tuple(sorted(fractions))
        matrix, energies = self._programme(symbols)
        target = np.array([fractions[symbol] for symbol in symbols])
        solution = linprog(energies, A_eq=matrix, b_eq=target, method="highs")
        if not solution.success:
            raise RuntimeError(f"hull of {'-'.join(symbols)}: {solution.message}")
        return float(solution.fun)

    def e_above_hull(self, amounts: Mapping[str, float], energy_per_atom: float) -> float:
        """Distance of an energy per atom to the hull, eV per atom, negative below it.

        Raises:
            MissingReference: an element has no elemental entry.
        """
        return energy_per_atom - self.hull_energy(amounts)

    def _make_programme(self, symbols: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Atomic fractions (elements, entries) and energies (entries,) of a chemical system."""
        row = {symbol: place for place, symbol in enumerate(symbols)}
        entries = [entry for system in self._subsystems(symbols) for entry in self._systems[system]]
        matrix = np.zeros((len(symbols), len(entries)))
        for column, (key, _) in enumerate(entries):
            for symbol, fraction in key:
                matrix[row[symbol], column] = fraction
        return matrix, np.array([energy for _, energy in entries])

    def _subsystems(self, symbols: tuple[str, ...]) -> Iterator[frozenset[str]]:
        """The chemical systems with entries within a system, always in the same order."""
        if len(symbols) > MAX_SUBSETS:
            whole = frozenset(symbols)
            yield from sorted((s for s in self._systems if s <= whole), key=sorted)
            return
        for size in range(1, len(symbols) + 1):
            for subset in combinations(symbols, size):
                if frozenset(subset) in self._systems:
                    yield frozenset(subset)


def _fractions(amounts: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Atomic fractions by element, sorted, rounded so that equal compositions are equal keys."""
    total = sum(amounts.values())
    return tuple(sorted((symbol, round(n / total, 12)) for symbol, n in amounts.items() if n > 0))


_RELAXED = ", relaxed to "
_NOT_RECORDED = ", relaxation not recorded"


def potential_label(potential: str, max_force: float, max_steps: int) -> str:
    """Return the name of a potential's energies: energies with one name can be compared.

    Args:
        potential: name and version of the potential.
        max_force: threshold on the forces of the relaxation, eV/angstrom.
        max_steps: its limit of optimizer steps.
    """
    return f"{potential}{_RELAXED}{max_force:g} eV/Å in at most {max_steps} steps"


def unrecorded_label(potential: str) -> str:
    """Return the name of a potential's energies from a file, which has no relaxation criterion."""
    return potential + _NOT_RECORDED


def short_label(label: str) -> str:
    """Return a name of energies without the criterion of their relaxation."""
    return label.partition(_RELAXED)[0]


def dft_label(correction_scheme: str) -> str:
    """Return the name of corrected DFT energies: energies with one name are on one scale."""
    if correction_scheme == "GPAW":
        return "DFT by GPAW"
    return f"DFT, correction {correction_scheme}"


def measured_against(energy_source: str) -> frozenset[str]:
    """Return the names that a hull can have for energies of a name: the same name.

    There are two exceptions. `MP2020_plus_u_only` shows what energies without their correction
    come to against the hull that has it. A file of a potential's entries does not say how they
    were relaxed; the hull's name says so in every table of the report.
    """
    return frozenset(
        (
            energy_source.replace("_plus_u_only", ""),
            unrecorded_label(short_label(energy_source)),
        )
    )


def entry_row(
    entry: ReferenceEntry, *, kind: EnergySource, source: str, converged: bool | None = None
) -> dict[str, Any]:
    """Return the row of a reference entry in `schemas.HULL_ENTRIES`."""
    return {
        "entry_id": entry.entry_id,
        "formula": entry.formula,
        "num_atoms": round(sum(entry.amounts.values())),
        "energy_per_atom": entry.energy_per_atom,
        "kind": kind,
        "source": source,
        "converged": converged,
    }


@dataclass(frozen=True)
class HullFile:
    """A table of reference entries.

    Attributes:
        hull: the hull of its entries.
        sources: names of its energies, in the order of the table.
        not_converged: entries whose relaxation stopped at its limit of steps. Their energies are
            upper bounds.
    """

    hull: ReferenceHull
    sources: tuple[str, ...]
    not_converged: int


def read_hull(path: Path, kind: EnergySource) -> HullFile:
    """Read a table of reference entries, which must be of one kind.

    Raises:
        FlowllmError: the file is missing, not such a table, empty, or of the other kind.
    """
    table = tables.read_table(path, schemas.HULL_ENTRIES)
    kinds = set(table.column("kind").to_pylist())
    if kinds != {kind}:
        makers = {"potential": "reference_hull", "dft": "dft_hull"}
        raise FlowllmError(
            f"{path}: contains {' and '.join(sorted(kinds)) or 'no'} energies, but {kind} energies "
            f"are required; the two cannot be compared. Give --hull the file of {makers[kind]}"
        )
    formulas = [Composition(text).get_el_amt_dict() for text in table.column("formula").to_pylist()]
    energies = table.column("energy_per_atom").to_pylist()
    return HullFile(
        hull=ReferenceHull(zip(formulas, energies, strict=True)),
        sources=tuple(dict.fromkeys(table.column("source").to_pylist())),
        not_converged=table.column("converged").to_pylist().count(False),
    )
