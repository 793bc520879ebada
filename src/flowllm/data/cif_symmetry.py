"""The symmetry operations of a CIF: what it lists, what it names, and whether both can be.

A program that finds a group's name without operations must not take the atoms for all atoms of
the cell. Here the name's operations are looked up, and what contradicts itself is rejected.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import numpy as np
import spglib
from pymatgen.core import Lattice

from flowllm.data.cif_blocks import Block, read_number
from flowllm.data.rejected import RejectedError
from flowllm.data.space_groups import (
    Operations,
    number_of,
    operations_of,
    settings_of_choice,
    settings_of_hall,
    settings_of_name,
    settings_of_number,
    settings_of_schoenflies,
)

METRIC_TOLERANCE = 1e-3
"""Relative change of an element of the metric that an operation may make: 0.05 % in a length,
0.06 degrees in a right angle. Refined cells obey their group to the last digit."""

MAX_DENOMINATOR = 48
"""Of translations. 0.333 is 1/3, and the smallest step of a table is 1/24."""

MAX_OPERATIONS = 768
"""192 in the largest space group; a cell of several unit cells has a multiple."""

IDENTITY = Operations(np.eye(3, dtype=int)[None], np.zeros((1, 3)))

_NAMES = (
    "_space_group_name_h_m_alt",
    "_space_group_name_h_m_full",
    "_space_group_name_h_m",
    "_symmetry_space_group_name_h_m",
    "_symmetry_space_group_name_h_m_full",
)
_HALL_NAMES = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_SCHOENFLIES_NAMES = ("_space_group_name_schoenflies", "_symmetry_space_group_name_schoenflies")
_NUMBERS = ("_space_group_it_number", "_symmetry_int_tables_number")
_CHOICE = "_space_group_it_coordinate_system_code"
_SYSTEMS = ("_space_group_crystal_system", "_symmetry_cell_setting")
_WITHOUT_SYMMETRY = ("triclinic", "anorthic")
_LISTS = ("_space_group_symop_operation_xyz", "_symmetry_equiv_pos_as_xyz")
_MAGNETIC = "_space_group_symop_magn_operation_xyz"
_MAGNETIC_CENTERING = "_space_group_symop_magn_centering_xyz"
_MODULATED = ("_cell_modulation", "_cell_wave_vector", "_space_group_ssg", "_atom_site_fourier")

_TERM = re.compile(r"([+-]?)(?:([0-9]+\.?[0-9]*|\.[0-9]+)(?:/([0-9]+))?|([xyz]))")


@dataclass(frozen=True)
class Symmetry:
    """What the operations of a CIF may be.

    Attributes:
        possible: sets of operations, each of which the CIF allows and the cell obeys.
        confirmed: whether the CIF says enough; where the group is unknown, the formula and Z must
            confirm the atoms.
    """

    possible: tuple[Operations, ...]
    confirmed: bool = True


def symmetry_of(block: Block, lattice: Lattice) -> Symmetry:
    """Return the operations that a CIF may mean.

    Raises:
        RejectedError: bad_cif (an operation cannot be read), modulated, unknown_symmetry (a group
            is named that is not known, and no operations are listed) or symmetry_mismatch (the
            operations, the names and the cell contradict each other).
    """
    if modulated := [name for name in block.values if name.startswith(_MODULATED)]:
        raise RejectedError("modulated", f"{modulated[0]}: the crystal has no cell of its own")
    listed = _magnetic(block) or _listed(block)
    if listed is not None and _keys(listed) != _keys(IDENTITY):
        _check_group(listed)
        _check_metric(listed, lattice)
        if _MAGNETIC not in block.values:
            _check_names(listed, _named(block), lattice)
        return Symmetry((listed,))
    return _from_names(listed, block, lattice)


@dataclass(frozen=True)
class _Named:
    """What the names of a CIF say.

    Attributes:
        text: the names, for a person; empty where no group is named.
        sets: sets of settings, of which the first that fits the cell is meant; no set where none
            of the names is known.
    """

    text: str
    sets: tuple[frozenset[int], ...]

    @property
    def numbers(self) -> set[int]:
        return {number_of(method) for one in self.sets for method in one}


def _from_names(listed: Operations | None, block: Block, lattice: Lattice) -> Symmetry:
    """Return the possible operations where no more than the identity is listed."""
    named = _named(block)
    if not named.text:
        # A group given as `?` is one that the CIF's author did not know.
        is_unknown = any(name in block.values for name in (*_NAMES, *_HALL_NAMES, *_NUMBERS))
        return Symmetry((IDENTITY,), confirmed=listed is not None or not is_unknown)
    if not named.sets:
        if listed is None:
            raise RejectedError(
                "unknown_symmetry",
                f"the group {named.text} is not known and no operations are listed",
            )
        return Symmetry((IDENTITY,), confirmed=False)
    fitting: list[Operations] = []
    for settings in named.sets:
        operations = [operations_of(method) for method in sorted(settings)]
        fitting = [one for one in operations if _metric_error(one, lattice) <= METRIC_TOLERANCE]
        if fitting:
            break
    if listed is not None:
        # The group's name often stays where a program has written all atoms of the cell.
        return Symmetry((IDENTITY, *fitting))
    if not fitting:
        raise RejectedError(
            "symmetry_mismatch", f"the cell {_cell(lattice)} does not fit the group {named.text}"
        )
    return Symmetry(tuple(fitting))


def _named(block: Block) -> _Named:
    """Return the settings that all names of a CIF agree on.

    Raises:
        RejectedError: symmetry_mismatch, where they agree on none.
    """
    names = _said(block, _NAMES)
    halls = _said(block, _HALL_NAMES)
    others = _said(block, (*_SCHOENFLIES_NAMES, *_NUMBERS))
    if not (names or halls or others):
        systems = [one for one in _said(block, _SYSTEMS) if one.lower() not in _WITHOUT_SYMMETRY]
        return _Named(", ".join(systems), ())
    text = ", ".join(dict.fromkeys([*names, *halls, *others]))
    known_names = [sets for name in names if (sets := settings_of_name(name))]
    known_halls = [sets for hall in halls if (sets := settings_of_hall(hall))]
    if (names or halls) and not (known_names or known_halls):
        # The number alone would be that of a method which the unknown name may not mean.
        return _Named(text, ())
    if len(known_halls) < len(halls) and any("(" in hall for hall in halls):
        return _Named(text, ())
    alone = [*known_halls, *_of_groups(block)]
    if choice := block.first(_CHOICE):
        alone.append(settings_of_choice(choice))
        text += f", method {choice}"
    sets = _intersection([*known_names, *((one,) for one in alone)])
    if not sets:
        raise RejectedError("symmetry_mismatch", f"{text}: no group and method is all of these")
    return _Named(text, sets)


def _of_groups(block: Block) -> list[frozenset[int]]:
    """Return the settings of each number and Schoenflies symbol of a CIF."""
    found = [settings_of_schoenflies(one) for one in _said(block, _SCHOENFLIES_NAMES)]
    for text in _said(block, _NUMBERS):
        try:
            number = read_number(text)
        except ValueError:
            number = 0.0
        if number not in range(1, 231):
            raise RejectedError("bad_cif", f"space group number {text!r}, expected 1 to 230")
        found.append(settings_of_number(int(number)))
    return found


def _intersection(
    statements: Sequence[tuple[frozenset[int], ...]],
) -> tuple[frozenset[int], ...]:
    """Return the settings that all statements allow, in the order of the first's preference."""
    sets, *others = statements
    for other in others:
        sets = tuple(one & two for one in sets for two in other if one & two)
    return sets


def _said(block: Block, names: Sequence[str]) -> list[str]:
    """Return the distinct values of several names."""
    values = [one for name in names for one in block.values.get(name, ()) if one]
    return [*dict.fromkeys(values)]


def _listed(block: Block) -> Operations | None:
    """Return the operations that a CIF lists, each once; None where it lists none."""
    found: list[Operations] = []
    for name in _LISTS:
        if texts := _texts(block, name):
            found.append(_distinct([parse_operation(text) for text in texts]))
    if len(found) == 2 and _keys(found[0]) != _keys(found[1]):
        raise RejectedError("symmetry_mismatch", f"{_LISTS[0]} and {_LISTS[1]} are not the same")
    return found[0] if found else None


def _texts(block: Block, name: str) -> list[str]:
    """Return the operations of a list as text; none where all of them are unknown."""
    values = block.values.get(name, ())
    texts = [text for text in values if text]
    if texts and len(texts) < len(values):
        raise RejectedError("bad_cif", f"{name}: {len(values) - len(texts)} operations are missing")
    return texts


def _magnetic(block: Block) -> Operations | None:
    """Return the operations of a magnetic group without time reversal; None where it has none.

    They map the atoms of the magnetic cell onto each other, whatever their moments.
    """
    texts = _texts(block, _MAGNETIC)
    if not texts:
        if any(name.startswith("_space_group_magn") for name in block.values):
            raise RejectedError(
                "unknown_symmetry", "a magnetic group is named and its operations are not listed"
            )
        return None
    centering = _texts(block, _MAGNETIC_CENTERING) or ["x,y,z,+1"]
    spatial = [[parse_operation(text.rpartition(",")[0]) for text in c] for c in (texts, centering)]
    pairs = product(*spatial)
    return _distinct([(r2 @ r1, (r2 @ t1 + t2) % 1) for (r1, t1), (r2, t2) in pairs])


def parse_operation(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return rotation (3, 3) and translation (3,) of an operation such as `-x, y+1/2, 0.5-z`.

    Raises:
        RejectedError: bad_cif.
    """
    rotation, translation = np.zeros((3, 3), dtype=int), np.zeros(3)
    parts = re.sub(r"\s", "", text).lower().split(",")
    for row, part in enumerate(parts[:3]):
        terms = [*_TERM.finditer(part)]
        if "".join(term[0] for term in terms) != part or any(not one[1] for one in terms[1:]):
            raise RejectedError("bad_cif", f"{text!r} is not a symmetry operation")
        for sign, number, divisor, axis in (term.groups() for term in terms):
            factor = -1 if sign == "-" else 1
            if axis:
                rotation[row, "xyz".index(axis)] += factor
            elif int(divisor or 1):
                translation[row] += factor * float(number) / int(divisor or 1)
    if len(parts) != 3 or abs(round(np.linalg.det(rotation))) != 1:
        raise RejectedError("bad_cif", f"{text!r} is not a symmetry operation")
    exact = [Fraction(one).limit_denominator(MAX_DENOMINATOR) for one in translation.tolist()]
    return rotation, np.array([float(one) for one in exact]) % 1


def _distinct(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Operations:
    every = Operations(np.array([r for r, _ in pairs]), np.array([t for _, t in pairs]))
    _, first = np.unique(_rows(every), axis=0, return_index=True)
    kept = np.sort(first)
    return Operations(every.rotations[kept], every.translations[kept])


def _rows(operations: Operations) -> np.ndarray:
    """Return operations as integers (m, 12), equal for those that differ by a lattice vector."""
    steps = np.rint(operations.translations * 100_000).astype(int) % 100_000
    return np.hstack([operations.rotations.reshape(-1, 9), steps])


def _keys(operations: Operations) -> set[tuple[int, ...]]:
    return set(map(tuple, _rows(operations).tolist()))


def _check_group(operations: Operations) -> None:
    """Reject operations that are not a group: one is missing or mistyped."""
    if len(operations) > MAX_OPERATIONS:
        raise RejectedError("bad_cif", f"{len(operations)} operations, at most {MAX_OPERATIONS}")
    rotations, translations = operations.rotations, operations.translations
    products = Operations(
        np.einsum("aij,bjk->abik", rotations, rotations).reshape(-1, 3, 3),
        (np.einsum("aij,bj->abi", rotations, translations) + translations[:, None]).reshape(-1, 3),
    )
    if not _keys(products) <= _keys(operations):
        raise RejectedError(
            "symmetry_mismatch",
            f"the {len(operations)} operations listed are not a group: one is missing or mistyped",
        )


def _check_metric(operations: Operations, lattice: Lattice) -> None:
    if _metric_error(operations, lattice) > METRIC_TOLERANCE:
        raise RejectedError(
            "symmetry_mismatch", f"the cell {_cell(lattice)} does not fit the operations listed"
        )


def _metric_error(operations: Operations, lattice: Lattice) -> float:
    """Return the largest relative change that the operations make of the metric (R^T G R = G)."""
    metric = lattice.matrix @ lattice.matrix.T
    scale = np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    moved = np.einsum("mji,jk,mkl->mil", operations.rotations, metric, operations.rotations)
    return float(np.max(np.abs(moved - metric) / scale))


def _check_names(operations: Operations, named: _Named, lattice: Lattice) -> None:
    """Reject operations of another space group than the one that is named."""
    if not named.numbers:
        return
    found = spglib.get_spacegroup_type_from_symmetry(
        operations.rotations, operations.translations, lattice=lattice.matrix
    )
    if found is None or found.number not in named.numbers:
        number = "unknown" if found is None else found.number
        raise RejectedError(
            "symmetry_mismatch",
            f"the {len(operations)} operations listed are of space group {number}, "
            f"and {named.text} is named",
        )


def _cell(lattice: Lattice) -> str:
    return " ".join(f"{one:.6g}" for one in lattice.parameters)
