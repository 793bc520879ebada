"""Energy above the convex hull of reference entries (eV per atom).

The energy of the hull at a composition is the lowest energy of any mixture of reference entries
with that composition. It is the solution of a linear program over the entries of the chemical
system: min e·x such that A x = b, x >= 0, where a column of A is an entry's atomic fractions and e
is its energy per atom. No facets are built, so that the cost hardly depends on the number of
elements. The crystal itself is not an entry, so that its distance is negative below the hull.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from flowllm.io import hull_schemas, schemas, tables
from flowllm.runtime.log import log

EnergySource = Literal["potential", "dft"]
"""Source of energies: a machine-learned potential or DFT. One hull never contains both."""

MAX_SUBSETS = 12
"""Maximum number of elements for which the subsystems are listed; beyond it, all are searched."""

MIN_FORMATION_ENERGY = -5.0
"""Lowest formation energy in eV per atom that is taken for real; the lowest in 14,801 crystals of
MP-20 is -4.47. A potential far from its training data can give -10 to -100, and such a crystal
would be the best of a run and change its means."""

IMPLAUSIBLE_ENERGY = "implausible_energy"
"""Status of a crystal whose formation energy is lower; it counts as not relaxed."""


class MissingReference(Exception):  # noqa: N818
    """The reference has no elemental entry for an element, so that the hull is undefined."""


class ImplausibleEnergy(Exception):  # noqa: N818
    """A formation energy is below `MIN_FORMATION_ENERGY`."""


class ReferenceHull:
    """Reference entries by chemical system, and the hull energy at any composition of them.

    Of the entries with one reduced composition only the lowest can be on the hull; the others are
    dropped. The order of the entries does not affect any result.
    """

    def __init__(self, entries: Iterable[tuple[Mapping[str, float], float]]) -> None:
        """Sort reference entries by their chemical systems.

        Args:
            entries: pairs of amounts by element symbol and energy in eV per atom.
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
        self._linear_program = lru_cache(maxsize=64)(self._make_linear_program)

    def __len__(self) -> int:
        """Return the number of reduced compositions that have an entry."""
        return sum(map(len, self._systems.values()))

    def hull_energy(self, amounts: Mapping[str, float]) -> float:
        """Return the energy of the hull at a composition, eV per atom.

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
        matrix, energies = self._linear_program(symbols)
        target = np.array([fractions[symbol] for symbol in symbols])
        solution = linprog(energies, A_eq=matrix, b_eq=target, method="highs")
        if not solution.success or solution.fun is None:
            raise RuntimeError(f"hull of {'-'.join(symbols)}: {solution.message}")
        return float(solution.fun)

    def e_above_hull(self, amounts: Mapping[str, float], energy_per_atom: float) -> float:
        """Return the distance of an energy per atom to the hull, eV per atom, negative below it.

        Raises:
            MissingReference: an element has no elemental entry.
        """
        return energy_per_atom - self.hull_energy(amounts)

    def place(self, amounts: Mapping[str, float], energy_per_atom: float) -> tuple[float, float]:
        """Return the distance to the hull, and the formation energy, both in eV per atom.

        Raises:
            MissingReference: an element has no elemental entry.
            ImplausibleEnergy: the formation energy is below `MIN_FORMATION_ENERGY`.
        """
        formation = self.formation_energy(amounts, energy_per_atom)
        if formation < MIN_FORMATION_ENERGY:
            raise ImplausibleEnergy(
                f"formation energy {formation:.3f} eV/atom, below {MIN_FORMATION_ENERGY:g}"
            )
        return self.e_above_hull(amounts, energy_per_atom), formation

    def is_plausible(self, amounts: Mapping[str, float], energy_per_atom: float) -> bool:
        """Return whether a crystal may have an energy, as far as the elements' entries tell."""
        try:
            return self.formation_energy(amounts, energy_per_atom) >= MIN_FORMATION_ENERGY
        except MissingReference:
            return True

    def num_compounds(self, elements: Iterable[str]) -> int:
        """Return the number of compositions with several elements, all among the given ones."""
        symbols = tuple(sorted(elements))
        systems = self._subsystems(symbols)
        return sum(len(self._systems[system]) for system in systems if len(system) > 1)

    def formation_energy(self, amounts: Mapping[str, float], energy_per_atom: float) -> float:
        """Return an energy minus that of the elements' lowest entries, eV per atom.

        Raises:
            MissingReference: as in `hull_energy`.
        """
        missing = sorted(set(amounts) - self.elements)
        if missing:
            raise MissingReference(f"no elemental reference entry for {', '.join(missing)}")
        of_elements = sum(
            fraction * self._systems[frozenset([symbol])][0][1]
            for symbol, fraction in _fractions(amounts)
        )
        return energy_per_atom - of_elements

    def _make_linear_program(self, symbols: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Return atomic fractions (elements, entries) and energies (entries,) of a system."""
        row = {symbol: place for place, symbol in enumerate(symbols)}
        entries = [entry for system in self._subsystems(symbols) for entry in self._systems[system]]
        matrix = np.zeros((len(symbols), len(entries)))
        for column, (key, _) in enumerate(entries):
            for symbol, fraction in key:
                matrix[row[symbol], column] = fraction
        return matrix, np.array([energy for _, energy in entries])

    def _subsystems(self, symbols: tuple[str, ...]) -> Iterator[frozenset[str]]:
        """Yield the chemical systems with entries within a system, always in the same order."""
        if len(symbols) > MAX_SUBSETS:
            whole = frozenset(symbols)
            yield from sorted((s for s in self._systems if s <= whole), key=sorted)
            return
        for size in range(1, len(symbols) + 1):
            for subset in combinations(symbols, size):
                if frozenset(subset) in self._systems:
                    yield frozenset(subset)


def _fractions(amounts: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Return sorted atomic fractions, rounded so that equal compositions give equal keys."""
    total = sum(amounts.values())
    return tuple(sorted((symbol, round(n / total, 12)) for symbol, n in amounts.items() if n > 0))


_RELAXED = ", relaxed to "
_NOT_RECORDED = ", relaxation not recorded"
_SYMMETRY_KEPT = ", symmetry kept"
_CELL_FIXED = ", cell fixed (upper bounds)"


def potential_label(
    potential: str,
    max_force: float,
    max_steps: int,
    *,
    keep_symmetry: bool = False,
    fixed_cell: bool = False,
) -> str:
    """Return the name of a potential's energies; energies with one name can be compared.

    Args:
        potential: name and version of the potential.
        max_force: convergence threshold of the relaxation on the forces, eV/angstrom.
        max_steps: maximum number of optimizer steps of the relaxation.
        keep_symmetry: whether the crystals kept their space groups.
        fixed_cell: whether the crystals kept their cells.
    """
    name = f"{potential}{_RELAXED}{max_force:g} eV/Å in at most {max_steps} steps"
    return name + _SYMMETRY_KEPT * keep_symmetry + _CELL_FIXED * fixed_cell


def is_of_fixed_cells(label: str) -> bool:
    """Return whether a name is that of energies of crystals in cells that were not relaxed."""
    return label.endswith(_CELL_FIXED)


def unrecorded_label(potential: str) -> str:
    """Return the name of a potential's energies from a file that states no criterion."""
    return potential + _NOT_RECORDED


def short_label(label: str) -> str:
    """Return a name of energies without the criterion of their relaxation."""
    return label.partition(_RELAXED)[0]


def dft_label(correction_scheme: str) -> str:
    """Return the name of corrected DFT energies; energies with one name can be compared."""
    if correction_scheme == "GPAW":
        return "DFT by GPAW"
    return f"DFT, correction {correction_scheme}"


def measured_against(energy_source: str) -> frozenset[str]:
    """Return the names of the hulls against which energies can be measured.

    A hull must have the name of the energies, with three exceptions. Energies of
    `MP2020_plus_u_only` are measured against the fully corrected hull. Crystals that were relaxed
    with a constraint are measured against those that were relaxed without; their energies are upper
    bounds. A file of a potential's
    entries does not state the criterion of their relaxation; every table of the report shows this
    in the name of the hull.
    """
    free = energy_source.replace(_CELL_FIXED, "").replace(_SYMMETRY_KEPT, "")
    return frozenset(
        (
            free.replace("_plus_u_only", ""),
            unrecorded_label(short_label(energy_source)),
        )
    )


def entry_row(
    entry: ReferenceEntry, *, kind: EnergySource, source: str, converged: bool | None = None
) -> dict[str, Any]:
    """Return a reference entry as a row of `schemas.HULL_ENTRIES`."""
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
        not_converged: number of entries whose relaxation stopped at its maximum number of steps.
            Their energies are upper bounds.
        check_hull: hull of the same entries by the second potential; empty without one.
        check_sources: names of the second potentials; empty without one.
    """

    hull: ReferenceHull
    sources: tuple[str, ...]
    not_converged: int
    check_hull: ReferenceHull
    check_sources: frozenset[str]


def read_hull(path: Path, kind: EnergySource, second: Path | None = None) -> HullFile:
    """Read a table of reference entries, all with energies of one kind.

    Entries with implausible energies (`MIN_FORMATION_ENERGY`) are left out, and named in the log.

    Args:
        path: the table.
        kind: source of the energies.
        second: energies of the same entries by the second potential; None without one.

    Raises:
        FlowllmError: a file is missing, empty, has another schema, or energies of the other kind,
            or the second energies are of other entries.
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
    names = table.column("entry_id").to_pylist()
    by_check, labels = read_second(second, names)
    return HullFile(
        hull=_plausible_hull(path, names, formulas, energies),
        sources=tuple(dict.fromkeys(table.column("source").to_pylist())),
        not_converged=table.column("converged").to_pylist().count(False),
        check_hull=_plausible_hull(second or path, names, formulas, by_check),
        check_sources=labels,
    )


def ground_state_name(symbol: str, entry_id: str) -> str:
    """Return the id of the entry of an element's ground state.

    Args:
        symbol: of the element.
        entry_id: id of the crystal in the Materials Project.
    """
    return f"{symbol}, {entry_id}"


def is_ground_state(name: str, amounts: Mapping[str, float]) -> bool:
    """Return whether an entry of one element has the id of a ground state."""
    return name.startswith(ground_state_name(next(iter(amounts)), ""))


def _plausible_hull(
    path: Path,
    names: Sequence[str],
    formulas: Sequence[Mapping[str, float]],
    energies: Sequence[float | None],
) -> ReferenceHull:
    """Return the hull of the entries with a plausible energy."""
    entries = [
        (formulas[place], energies[place])
        for place in plausible_places(path, names, formulas, energies)
    ]
    return ReferenceHull((amounts, energy) for amounts, energy in entries if energy is not None)


def plausible_places(
    path: Path,
    names: Sequence[str],
    formulas: Sequence[Mapping[str, float]],
    energies: Sequence[float | None],
) -> list[int]:
    """Return the places of the entries with a plausible energy; the log names the others.

    Args:
        path: the table of the entries, for messages.
        names: ids of the entries.
        formulas: amounts by element symbol.
        energies: eV per atom, None for an entry without one.
    """
    given = [
        (place, name, amounts, energy)
        for place, (name, amounts, energy) in enumerate(zip(names, formulas, energies, strict=True))
        if energy is not None
    ]
    elements = [one for one in given if len(one[2]) == 1]
    # An energy of an element is compared with that of its ground state, if the table has it.
    ground = ReferenceHull(one[2:] for one in elements if is_ground_state(*one[1:3]))
    lowest = ReferenceHull(one[2:] for one in elements if ground.is_plausible(*one[2:]))
    kept = []
    for place, name, amounts, energy in given:
        if lowest.is_plausible(amounts, energy):
            kept.append(place)
        else:
            log.warning(
                "%s: entry %s left out of the hull: formation energy below %g eV/atom",
                *(path, name, MIN_FORMATION_ENERGY),
            )
    return kept


def read_second(
    path: Path | None, names: Sequence[str]
) -> tuple[list[float | None], frozenset[str]]:
    """Return energies by the second potential, and the names of the potentials in the table.

    Args:
        path: table of the stage second_energies; None without a second potential.
        names: ids of the crystals, in the order of the table.

    Raises:
        FlowllmError: the table cannot be read, or has other ids.
    """
    if path is None:
        return [None] * len(names), frozenset()
    table = tables.read_table(path, hull_schemas.SECOND_ENERGIES)
    if table.column("id").to_pylist() != list(names):
        raise FlowllmError(
            f"{path}: its ids are not those of the crystals that are placed on the hull; run "
            "second_energies again"
        )
    labels = frozenset(table.column("check_potential").to_pylist())
    return table.column("check_energy_per_atom").to_pylist(), labels
