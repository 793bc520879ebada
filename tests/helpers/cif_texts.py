"""CIFs written for tests: cells, atoms, and the reason of a rejection."""

import pytest

from flowllm.data.cif import crystal_from_cif, structure_from_cif
from flowllm.data.rejected import RejectedError

CUBIC = (5.64, 5.64, 5.64, 90, 90, 90)
DIAMOND = (5.43, 5.43, 5.43, 90, 90, 90)
HEXAGONAL = (4.546, 4.546, 11.862, 90, 90, 120)
RHOMBOHEDRAL = (4.746, 4.746, 4.746, 57.23, 57.23, 57.23)
MONOCLINIC = (5.1, 6.2, 7.3, 90, 101, 90)
NACL = ("Na 0 0 0", "Cl 0.5 0.5 0.5")

NAME = "_symmetry_space_group_name_H-M"
HALL = "_space_group_name_Hall"
NUMBER = "_space_group_IT_number"
SCHOENFLIES = "_space_group_name_Schoenflies"


def make_cif(*atoms: str, cell=CUBIC, operations=(), columns="", **items: object) -> str:
    """CIF of atoms `symbol x y z ...`; `items` are names (with _ for what they begin with)."""
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [
        "data_made",
        *(f"_cell_{name} {value}" for name, value in zip(names, cell, strict=True)),
    ]
    lines += [f"{name} '{value}'" for name, value in items.items()]
    if operations:
        lines += ["loop_", "_symmetry_equiv_pos_as_xyz", *(f"'{one}'" for one in operations)]
    lines += ["loop_", "_atom_site_type_symbol"]
    lines += [f"_atom_site_fract_{axis}" for axis in "xyz"]
    lines += [f"_atom_site_{name}" for name in columns.split()]
    return "\n".join([*lines, *atoms]) + "\n"


def named(name: str, *atoms: str, cell=CUBIC, **items: object) -> str:
    return make_cif(*(atoms or NACL), cell=cell, **{NAME: name, **items})


def volume_per_atom(text: str) -> float:
    structure = structure_from_cif(text)
    return structure.volume / len(structure)


def reason_of(text: str) -> str:
    with pytest.raises(RejectedError) as caught:
        crystal_from_cif(text, "primitive", 20)
    assert caught.value.detail
    return caught.value.reason


ROCK_SALT = [
    (symbol, (x + shift) % 1, y, z)
    for symbol, shift in (("Na", 0), ("Cl", 0.5))
    for x, y, z in ((0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
]
