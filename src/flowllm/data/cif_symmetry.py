"""The symmetry operations of a CIF: those listed, those named, and whether the two agree.

Where a CIF names a space group without its operations, the listed atoms are not all atoms of the
cell. The operations of the named group are looked up then, and contradictions are rejected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import spglib
from pymatgen.core import Lattice

from flowllm.data.cif_blocks import Block, parse_number
from flowllm.data.rejected import RejectedError
from flowllm.data.space_groups import (
    number_of,
    operations_of,
    settings_of_choice,
    settings_of_hall,
    settings_of_name,
    settings_of_number,
    settings_of_schoenflies,
)
from flowllm.data.spglib_calls import or_none
from flowllm.data.symmetry_operations import (
    IDENTITY,
    Operations,
    are_same,
    check_group,
    fit_cell,
    parse_operation,
    without_repeats,
)

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


@dataclass(frozen=True)
class Symmetry:
    """The sets of operations that a CIF may mean.

    Attributes:
        possible: sets of operations, each of which the CIF allows and the cell obeys.
        confirmed: whether the CIF gives enough information; where the group is unknown, the
            formula and Z must confirm the atoms.
    """

    possible: tuple[Operations, ...]
    confirmed: bool = True


@dataclass(frozen=True)
class _NamedGroup:
    """The space group that a CIF names.

    Attributes:
        text: the names as the CIF writes them; empty where it names no group.
        choices: sets of settings; the first set with a setting that fits the cell is meant. Empty
            where none of the names is known.
    """

    text: str
    choices: tuple[frozenset[int], ...]

    @property
    def numbers(self) -> set[int]:
        return {number_of(setting) for settings in self.choices for setting in settings}


def symmetry_of(block: Block, lattice: Lattice) -> Symmetry:
    """Return the operations that a CIF may mean.

    Raises:
        RejectedError: bad_cif (an operation cannot be read), modulated, unknown_symmetry (an
            unknown group is named and no operations are listed) or symmetry_mismatch (the
            operations, the names and the cell contradict each other).
    """
    if modulated := [name for name in block.values if name.startswith(_MODULATED)]:
        raise RejectedError("modulated", f"{modulated[0]}: a modulated crystal has no unit cell")
    listed = _magnetic(block) or _listed(block)
    if listed is None or are_same(listed, IDENTITY):
        return _from_names(block, lattice, has_identity=listed is not None)
    check_group(listed)
    if not fit_cell(listed, lattice):
        raise RejectedError(
            "symmetry_mismatch", f"the cell {_cell(lattice)} does not fit the operations listed"
        )
    if _MAGNETIC not in block.values:
        _check_names(listed, _named_group(block), lattice)
    return Symmetry((listed,))


def _from_names(block: Block, lattice: Lattice, *, has_identity: bool) -> Symmetry:
    """Return the possible operations of a CIF that lists none, or the identity alone."""
    named = _named_group(block)
    if not named.text:
        # A group given as `?` is one that the CIF's author did not know.
        is_unknown = any(name in block.values for name in (*_NAMES, *_HALL_NAMES, *_NUMBERS))
        return Symmetry((IDENTITY,), confirmed=has_identity or not is_unknown)
    if not named.choices:
        if not has_identity:
            raise RejectedError(
                "unknown_symmetry",
                f"the group {named.text} is not known and no operations are listed",
            )
        return Symmetry((IDENTITY,), confirmed=False)
    fitting: list[Operations] = []
    for settings in named.choices:
        operations = [operations_of(setting) for setting in sorted(settings)]
        fitting = [one for one in operations if fit_cell(one, lattice)]
        if fitting:
            break
    if has_identity:
        # Programs that write all atoms of the cell often keep the name of the group.
        return Symmetry((IDENTITY, *fitting))
    if not fitting:
        raise RejectedError(
            "symmetry_mismatch", f"the cell {_cell(lattice)} does not fit the group {named.text}"
        )
    return Symmetry(tuple(fitting))


def _named_group(block: Block) -> _NamedGroup:
    """Return the settings that agree with all names of the group in a CIF.

    Raises:
        RejectedError: symmetry_mismatch, where no setting agrees with all of them.
    """
    names = _values(block, _NAMES)
    halls = _values(block, _HALL_NAMES)
    others = _values(block, (*_SCHOENFLIES_NAMES, *_NUMBERS))
    if not (names or halls or others):
        systems = [one for one in _values(block, _SYSTEMS) if one.lower() not in _WITHOUT_SYMMETRY]
        return _NamedGroup(", ".join(systems), ())
    text = ", ".join(dict.fromkeys([*names, *halls, *others]))
    of_names = [choices for name in names if (choices := settings_of_name(name))]
    of_halls = [settings for hall in halls if (settings := settings_of_hall(hall))]
    if (names or halls) and not (of_names or of_halls):
        # The number alone would allow settings that the unknown name may not mean.
        return _NamedGroup(text, ())
    if len(of_halls) < len(halls) and any("(" in hall for hall in halls):
        # The symbol contains a change of basis, which no setting of the table has.
        return _NamedGroup(text, ())
    without_preference = [*of_halls, *_of_schoenflies_and_number(block)]
    if choice := block.first(_CHOICE):
        without_preference.append(settings_of_choice(choice))
        text += f", setting {choice}"
    choices = _intersection([*of_names, *((settings,) for settings in without_preference)])
    if not choices:
        raise RejectedError("symmetry_mismatch", f"{text}: no setting of a group has all of these")
    return _NamedGroup(text, choices)


def _of_schoenflies_and_number(block: Block) -> list[frozenset[int]]:
    """Return the settings of each Schoenflies symbol and each number of a CIF."""
    found = [settings_of_schoenflies(one) for one in _values(block, _SCHOENFLIES_NAMES)]
    for name in _NUMBERS:
        for text in _values(block, [name]):
            number = parse_number(text, name)
            if number not in range(1, 231):
                raise RejectedError("bad_cif", f"{name} is {text!r}, expected 1 to 230")
            found.append(settings_of_number(int(number)))
    return found


def _intersection(
    statements: Sequence[tuple[frozenset[int], ...]],
) -> tuple[frozenset[int], ...]:
    """Return the settings that all statements allow, in the first statement's preference."""
    choices, *others = statements
    for other in others:
        choices = tuple(one & two for one in choices for two in other if one & two)
    return choices


def _values(block: Block, names: Sequence[str]) -> list[str]:
    """Return the distinct known values of several data names."""
    values = [one for name in names for one in block.values.get(name, ()) if one]
    return [*dict.fromkeys(values)]


def _listed(block: Block) -> Operations | None:
    """Return the operations that a CIF lists, each once; None where it lists none."""
    found: list[Operations] = []
    for name in _LISTS:
        if texts := _operation_texts(block, name):
            found.append(without_repeats([parse_operation(text) for text in texts]))
    if len(found) == 2 and not are_same(*found):
        raise RejectedError("symmetry_mismatch", f"{_LISTS[0]} and {_LISTS[1]} are not the same")
    return found[0] if found else None


def _operation_texts(block: Block, name: str) -> list[str]:
    """Return the operations of a list as text; an empty list where all of them are unknown."""
    values = block.values.get(name, ())
    texts = [text for text in values if text]
    if texts and len(texts) < len(values):
        raise RejectedError("bad_cif", f"{name}: {len(values) - len(texts)} operations are missing")
    return texts


def _magnetic(block: Block) -> Operations | None:
    """Return the operations of a magnetic group without time reversal; None where it has none.

    They map the atoms of the magnetic cell onto each other, whatever their moments.
    """
    texts = _operation_texts(block, _MAGNETIC)
    if not texts:
        if any(name.startswith("_space_group_magn") for name in block.values):
            raise RejectedError(
                "unknown_symmetry", "a magnetic group is named but its operations are not listed"
            )
        return None
    centering = _operation_texts(block, _MAGNETIC_CENTERING) or ["x,y,z,+1"]
    spatial = [[parse_operation(text.rpartition(",")[0]) for text in c] for c in (texts, centering)]
    pairs = product(*spatial)
    return without_repeats([(r2 @ r1, (r2 @ t1 + t2) % 1) for (r1, t1), (r2, t2) in pairs])


def _check_names(operations: Operations, named: _NamedGroup, lattice: Lattice) -> None:
    """Reject operations of another space group than the one that is named."""
    if not named.numbers:
        return
    found = or_none(
        spglib.get_spacegroup_type_from_symmetry,
        operations.rotations,
        operations.translations,
        lattice=lattice.matrix,
    )
    if found is None or found.number not in named.numbers:
        number = "unknown" if found is None else found.number
        raise RejectedError(
            "symmetry_mismatch",
            f"the {len(operations)} operations listed are of space group {number}, "
            f"but {named.text} is named",
        )


def _cell(lattice: Lattice) -> str:
    return " ".join(f"{one:.6g}" for one in lattice.parameters)
