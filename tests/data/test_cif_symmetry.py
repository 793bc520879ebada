"""CIFs whose symmetry must be expanded: the true crystal, or a reason why it is not known."""

import contextlib

import numpy as np
import pytest
import spglib
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice

from cif_texts import (
    CUBIC,
    DIAMOND,
    HALL,
    HEXAGONAL,
    MONOCLINIC,
    NACL,
    NAME,
    NUMBER,
    RHOMBOHEDRAL,
    ROCK_SALT,
    SCHOENFLIES,
    make_cif,
    named,
    reason_of,
    volume_per_atom,
)
from flowllm.data.cif import crystal_from_cif, structure_from_cif
from flowllm.data.rejected import RejectedError
from flowllm.data.space_groups import operations_of, settings_of_hall
from flowllm.data.symmetry_operations import parse_operation

# Every setting of Hall's table, named in every way.


def fitting_cell(setting: int) -> Lattice:
    """A cell that is as general as the group allows: the mean metric over its operations."""
    edges = Lattice.from_parameters(5.1, 6.3, 7.7, 97, 104, 82).matrix
    rotations = operations_of(setting).rotations
    metric = np.mean([r.T @ (edges @ edges.T) @ r for r in rotations], axis=0)
    return Lattice(np.linalg.cholesky(metric))


def written(setting: int, index: int) -> str:
    """One operation as text."""
    operations = operations_of(setting)
    parts = []
    for row, shift in zip(operations.rotations[index], operations.translations[index], strict=True):
        axes = "".join(
            f"{'+' if n > 0 else '-'}{axis}" for n, axis in zip(row, "xyz", strict=True) if n
        )
        parts.append(f"{round(shift * 24)}/24{axes}")
    return ", ".join(parts)


POSITION = (0.1234, 0.0567, 0.2891)


def is_true(text: str, setting: int) -> bool:
    """Whether a CIF is read as the orbit of POSITION under the setting's operations."""
    operations = operations_of(setting)
    expected = (operations.rotations @ np.array(POSITION) + operations.translations) % 1
    found = structure_from_cif(text).frac_coords
    difference = found[:, None] - expected[None]
    close = np.abs(difference - np.rint(difference)).max(axis=-1) < 1e-6
    return len(found) == len(expected) and bool(close.any(axis=1).all() and close.any(axis=0).all())


def setting_cif(setting: int, operations=(), **items: object) -> str:
    cell = fitting_cell(setting).parameters
    atom = " ".join(["Na", *map(str, POSITION)])
    return make_cif(atom, cell=cell, operations=operations, **items)


@pytest.mark.parametrize("number", [range(1, 75), range(75, 195), range(195, 231)])
def test_every_setting_that_is_named_in_full_is_expanded(number):
    for setting in range(1, 531):
        found = spglib.get_spacegroup_type(setting)
        if found.number not in number:
            continue
        suffix = f" :{found.choice}" if found.choice else ""
        full = {NAME: found.international_full + suffix}
        hall = {HALL: found.hall_symbol}
        assert is_true(setting_cif(setting, **hall), setting)
        assert is_true(setting_cif(setting, **full, **hall, **{NUMBER: found.number}), setting)
        # C m m e alone may be C m m a or C m m b, two settings.
        if "e" not in found.international_full[1:] or found.choice:
            assert is_true(setting_cif(setting, **full), setting)


@given(setting=st.integers(1, 530), data=st.data())
def test_listed_operations_are_taken_in_any_order(setting, data):
    count = len(operations_of(setting))
    order = data.draw(st.permutations(range(count)))
    operations = [written(setting, i) for i in order]
    found = spglib.get_spacegroup_type(setting)
    assert is_true(setting_cif(setting, operations, **{NUMBER: found.number}), setting)
    # One of them twice changes nothing, one of them missing is noticed.
    assert is_true(setting_cif(setting, [*operations, operations[0]]), setting)
    if count > 2:
        assert reason_of(setting_cif(setting, operations[1:])) == "symmetry_mismatch"


@given(setting=st.integers(1, 530), identity=st.booleans())
def test_a_short_or_incomplete_name_is_never_another_crystal(setting, identity):
    """The true orbit in the cell of one setting, while the name may mean others."""
    found = spglib.get_spacegroup_type(setting)
    operations = ["x, y, z"] if identity else []
    formula = {
        "_chemical_formula_sum": f"Na{len(operations_of(setting))}",
        "_cell_formula_units_Z": 1,
    }
    name = found.international.rpartition("=")[2]
    for items in ({NAME: name}, {NUMBER: found.number}, {SCHOENFLIES: found.schoenflies}):
        for said in (items, items | formula):
            text = setting_cif(setting, operations, **said)
            with contextlib.suppress(RejectedError):
                assert is_true(text, setting)


# What the names of the literature mean.


@pytest.mark.parametrize(
    "name",
    ["F m -3 m", "Fm-3m", "Fm3m", "F m 3 m", "f m -3 m", "F_m_-3_m", "F 4/m -3 2/m", "F4/m32/m"],
)
def test_rock_salt_by_the_names_of_its_group(name):
    assert volume_per_atom(named(name)) == pytest.approx(22.43, abs=0.01)
    assert crystal_from_cif(named(name), "primitive", 20).formula == "Na1Cl1"


@pytest.mark.parametrize(
    "line",
    [
        "_symmetry_space_group_name_H-M F m -3 m",  # the quotes forgotten
        '_symmetry_space_group_name_H-M "F m -3 m"',
        "_symmetry_space_group_name_H-M\n;\nF m -3 m\n;",
        "_space_group_name_H-M_alt 'F m -3 m'",
        "_space_group.name_H-M_alt 'F m -3 m'",
        "_SYMMETRY_SPACE_GROUP_NAME_H-M 'F m -3 m'",
        "_symmetry_space_group_name_H_M_ 'F m -3 m'",
        "_space_group_name_Hall '-F 4 2 3'",
        "_symmetry_space_group_name_Hall '-F_4_2_3'",
        "_symmetry_Int_Tables_number 225",
        "_space_group_IT_number 225.0",
        "_space_group_name_Schoenflies 'Oh^5'",
        "_symmetry_space_group_name_H-M ?\n_space_group_IT_number 225",
    ],
)
def test_rock_salt_by_every_item_that_names_a_group(line):
    text = make_cif(*NACL).replace("loop_", f"{line}\nloop_", 1)
    assert volume_per_atom(text) == pytest.approx(22.43, abs=0.01)


@pytest.mark.parametrize(
    ("name", "cell", "atoms", "count"),
    [
        ("P 21/c", MONOCLINIC, ["Na 0.1 0.2 0.3"], 4),
        ("P 2(1)/c", MONOCLINIC, ["Na 0.1 0.2 0.3"], 4),
        ("P 1 21/n 1", MONOCLINIC, ["Na 0.1 0.2 0.3"], 4),
        ("C 2/c", MONOCLINIC, ["Na 0.1 0.2 0.3"], 8),
        ("B 2/b", (5.1, 6.2, 7.3, 90, 90, 101), ["Na 0.1 0.2 0.3"], 8),
        ("F d -3 m :1", DIAMOND, ["Si 0 0 0"], 8),
        ("F d -3 m S", DIAMOND, ["Si 0 0 0"], 8),
        ("F d -3 m :2", DIAMOND, ["Si 0.125 0.125 0.125"], 8),
        ("F d -3 m Z", DIAMOND, ["Si 0.125 0.125 0.125"], 8),
        ("Fd-3m O2", DIAMOND, ["Si 0.125 0.125 0.125"], 8),
        ("R -3 m :H", HEXAGONAL, ["Bi 0 0 0.2339"], 6),
        ("R -3 m H", HEXAGONAL, ["Bi 0 0 0.2339"], 6),
        # The cell decides between both axes.
        ("R -3 m", HEXAGONAL, ["Bi 0 0 0.2339"], 6),
        ("R -3 m", RHOMBOHEDRAL, ["Bi 0.2339 0.2339 0.2339"], 2),
        ("R -3 m :R", RHOMBOHEDRAL, ["Bi 0.2339 0.2339 0.2339"], 2),
        ("C m c a", (4.1, 5.2, 6.3, 90, 90, 90), ["I 0 0.1 0.2"], 8),
        ("P 63/m m c", (3.21, 3.21, 5.21, 90, 90, 120), ["Mg 0.3333 0.6667 0.25"], 2),
    ],
)
def test_names_that_mean_one_setting(name, cell, atoms, count):
    assert len(structure_from_cif(named(name, *atoms, cell=cell))) == count


@pytest.mark.parametrize(
    ("items", "cell", "atoms", "reason"),
    [
        ({NAME: "F d -3 m"}, DIAMOND, ["Si 0.125 0.125 0.125"], "ambiguous_symmetry"),
        ({NUMBER: 227}, DIAMOND, ["Si 0.125 0.125 0.125"], "ambiguous_symmetry"),
        ({NAME: "P 4/n m m"}, (4, 4, 6, 90, 90, 90), ["Na 0 0.5 0.2"], "ambiguous_symmetry"),
        ({NUMBER: 14}, MONOCLINIC, ["Na 0.1 0.2 0.3"], "ambiguous_symmetry"),
        ({NUMBER: 62}, (4, 5, 6, 90, 90, 90), ["Na 0.1 0.25 0.3"], "ambiguous_symmetry"),
        ({NAME: "P 3 m"}, HEXAGONAL, ["Na 0.1 0.2 0.3"], "unknown_symmetry"),
        ({NAME: "unknown group"}, CUBIC, NACL, "unknown_symmetry"),
        ({NAME: "B 1 21/d 1", NUMBER: 14}, MONOCLINIC, NACL, "unknown_symmetry"),
        ({HALL: "-F 4 2 3 (x-1/8,y,z)", NUMBER: 225}, CUBIC, NACL, "unknown_symmetry"),
        ({"_symmetry_cell_setting": "cubic"}, CUBIC, NACL, "unknown_symmetry"),
        ({NAME: "R -3 m :H"}, RHOMBOHEDRAL, ["Bi 0.2 0.2 0.2"], "symmetry_mismatch"),
        ({NAME: "F m -3 m"}, (5.64, 5.65, 5.64, 90, 90, 90), NACL, "symmetry_mismatch"),
        ({NAME: "F m -3 m"}, (5.64, 5.64, 5.64, 90, 90, 90.2), NACL, "symmetry_mismatch"),
        ({NAME: "P 63/m m c"}, CUBIC, NACL, "symmetry_mismatch"),
        ({NAME: "P 21/c"}, (5, 6, 7, 90, 90, 100), NACL, "symmetry_mismatch"),
        ({NAME: "F m -3 m", NUMBER: 221}, CUBIC, NACL, "symmetry_mismatch"),
        ({NAME: "F d -3 m :1", HALL: "-F 4vw 2vw 3"}, CUBIC, NACL, "symmetry_mismatch"),
        ({NAME: "P 1", NUMBER: 225}, CUBIC, NACL, "symmetry_mismatch"),
        ({NUMBER: 231}, CUBIC, NACL, "bad_cif"),
        ({NUMBER: "225.5"}, CUBIC, NACL, "bad_cif"),
        ({"_space_group_magn.name_BNS": "P 2"}, CUBIC, NACL, "unknown_symmetry"),
        ({"_cell_modulation_dimension": 1, NAME: "P 1"}, CUBIC, NACL, "modulated"),
    ],
)
def test_symmetry_that_is_not_known_is_a_reason(items, cell, atoms, reason):
    assert reason_of(make_cif(*atoms, cell=cell, **items)) == reason


def test_origin_choice_by_formula_or_multiplicity():
    """Silicon on 8a with the origin at the center; with the other one it would be on 16c."""
    items = {NAME: "F d -3 m", "_chemical_formula_sum": "Si"}
    text = named("F d -3 m", "Si 0.125 0.125 0.125", cell=DIAMOND, _cell_formula_units_Z=8, **items)
    assert volume_per_atom(text) == pytest.approx(20.01, abs=0.01)
    assert reason_of(text.replace("Z '8'", "Z '4'")) == "formula_mismatch"
    multiplicity = {"columns": "site_symmetry_multiplicity", "cell": DIAMOND}
    text = make_cif("Si 0.125 0.125 0.125 8", **multiplicity, **items)
    assert volume_per_atom(text) == pytest.approx(20.01, abs=0.01)
    assert reason_of(text.replace(" 8\n", " 1\n")) == "ambiguous_symmetry"


# Formula and Z.


@pytest.mark.parametrize(
    ("formula", "units", "volume"),
    [
        ("Na Cl", 4, 22.43),
        ("Na4 Cl4", 4, 22.43),
        ("NA CL", 4, 22.43),
        ("Na Cl", 1, 89.7),
        ("Na Cl", None, None),
        (None, None, None),
        ("Na Cl", 2, None),
        ("Na2 Cl", 4, None),
        ("Na4 Cl4", 3, None),
    ],
)
def test_identity_beside_a_group_is_what_the_formula_says(formula, units, volume):
    items = {"_chemical_formula_sum": formula, "_cell_formula_units_Z": units}
    items = {name: value for name, value in items.items() if value is not None}
    text = named("F m -3 m", operations=["x, y, z"], **items)
    if volume is None:
        assert reason_of(text) in ("ambiguous_symmetry", "formula_mismatch")
    else:
        assert volume_per_atom(text) == pytest.approx(volume, abs=0.01)


@pytest.mark.parametrize("formula", ["Na Cl", "Na4 Cl4", None])
def test_identity_alone_beside_units_of_four_is_rejected(formula):
    items = {} if formula is None else {"_chemical_formula_sum": formula}
    text = make_cif(*NACL, operations=["x, y, z"], _cell_formula_units_Z=4, **items)
    assert reason_of(text) == "formula_mismatch"


def test_all_atoms_listed_beside_the_name_of_their_group():
    atoms = [f"{symbol} {x} {y} {z}" for symbol, x, y, z in ROCK_SALT]
    for operations in ([], ["x, y, z"]):
        assert len(structure_from_cif(named("F m -3 m", *atoms, operations=operations))) == 8
    # In the primitive cell the group of the name cannot act, and all atoms are listed.
    cell = (3.988, 3.988, 3.988, 60, 60, 60)
    assert len(structure_from_cif(named("F m -3 m", *NACL, cell=cell, operations=["x,y,z"]))) == 2
    assert reason_of(named("F m -3 m", *NACL, cell=cell)) == "symmetry_mismatch"


def test_an_unknown_group_needs_formula_and_units_beside_the_identity():
    text = named("X 5 y", operations=["x,y,z"])
    assert reason_of(text) == "unknown_symmetry"
    confirmed = {"_chemical_formula_sum": "Na Cl", "_cell_formula_units_Z": 1}
    assert len(structure_from_cif(named("X 5 y", operations=["x,y,z"], **confirmed))) == 2


@pytest.mark.parametrize("name", [NAME, HALL, NUMBER])
@pytest.mark.parametrize("word", ["?", ".", "'?'", "", "\n;\n?\n;"])
def test_a_group_that_the_cif_calls_unknown(name, word):
    text = make_cif(*NACL).replace("loop_", f"{name} {word}\nloop_", 1)
    assert reason_of(text) == "unknown_symmetry"
    confirmed = "_chemical_formula_sum 'Na Cl'\n_cell_formula_units_Z 1\n"
    assert len(structure_from_cif(text.replace("loop_", f"{confirmed}loop_", 1))) == 2


def test_a_formula_that_is_not_the_atoms_is_a_mismatch():
    for formula in ("Na Cl H", "Na2 Cl", "Na", "Na Br"):
        text = named("F m -3 m", **{"_chemical_formula_sum": formula})
        assert reason_of(text) == "formula_mismatch"
    assert reason_of(named("F m -3 m", **{"_cell_formula_units_Z": "0"})) == "bad_cif"


# Operations that are listed.


@pytest.mark.parametrize(
    ("text", "rotation", "translation"),
    [
        ("x, y, z", np.eye(3), [0, 0, 0]),
        ("-X,1/2+Y,-Z+0.5", np.diag([-1, 1, -1]), [0, 0.5, 0.5]),
        ("+x-y , x , z + 0.333", [[1, -1, 0], [1, 0, 0], [0, 0, 1]], [0, 0, 1 / 3]),
        ("-y,-x,-1/4-z", [[0, -1, 0], [-1, 0, 0], [0, 0, -1]], [0, 0, 0.75]),
    ],
)
def test_operations_as_text(text, rotation, translation):
    found = parse_operation(text)
    np.testing.assert_array_equal(found[0], rotation)
    np.testing.assert_allclose(found[1], translation)


@given(text=st.one_of(st.text(max_size=20), st.text("xyz+-/,1234567890. ", max_size=20)))
def test_any_text_is_an_operation_or_a_reason(text):
    with contextlib.suppress(RejectedError):
        rotation, translation = parse_operation(text)
        assert abs(round(np.linalg.det(rotation))) == 1
        assert ((translation >= 0) & (translation < 1)).all()


@pytest.mark.parametrize(
    "text",
    [
        *("x,y", "x,y,z,z", "x,y,2", "x,x,z", "x,y,a", "x y z", "xy,y,z", ""),
        *("x,y,z+1/0", f"x,y,z+{'9' * 5000}", f"x,y,z+1/{'9' * 5000}"),
    ],
)
def test_what_is_no_operation_is_a_reason(text):
    assert reason_of(make_cif(*NACL, operations=["x,y,z", text or "."])) == "bad_cif"


def test_operations_of_another_group_than_named_or_another_cell():
    operations = [written(523, i) for i in range(192)]
    assert len(structure_from_cif(named("F m -3 m", operations=operations))) == 8
    assert len(structure_from_cif(named("not known", operations=operations))) == 8
    assert reason_of(named("P 1", operations=operations)) == "symmetry_mismatch"
    assert reason_of(named("P m -3 m", operations=operations)) == "symmetry_mismatch"
    # Rhombohedral cell, hexagonal operations.
    hexagonal = [written(458, i) for i in range(36)]
    text = make_cif("Bi 0.2339 0.2339 0.2339", cell=RHOMBOHEDRAL, operations=hexagonal)
    assert reason_of(text) == "symmetry_mismatch"
    # The centering left out, as the first programs did.
    text = named("F m -3 m", operations=[written(517, i) for i in range(48)])
    assert reason_of(text) == "symmetry_mismatch"
    assert reason_of(make_cif(*NACL, operations=["-x,-y,-z"])) == "symmetry_mismatch"


def test_two_lists_of_operations_must_be_the_same():
    text = make_cif(*NACL, operations=["x,y,z", "-x,-y,-z"])
    again = "loop_\n_space_group_symop_operation_xyz\n'-x,-y,-z'\n'x,y,z'\n"
    assert len(structure_from_cif(text + again)) == 2
    assert reason_of(text + again.replace("-x,-y,-z", "-x,-y,z")) == "symmetry_mismatch"


def test_magnetic_operations_map_the_atoms_whatever_the_moments():
    lists = (
        "loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1\n-x,-y,-z,-1\n"
        "loop_\n_space_group_symop_magn_centering.xyz\nx,y,z,+1\nx,y,z+1/2,-1\n"
    )
    text = make_cif("Na 0.1 0.2 0.1", **{"_space_group_magn.name_BNS": "P_c -1"}) + lists
    assert len(structure_from_cif(text)) == 4


def test_hall_symbols_that_differ_in_a_space():
    """P 3 2 and P 32 are different groups."""
    numbers = [
        spglib.get_spacegroup_type(*settings_of_hall(hall)).number for hall in ("P 32", "P 3 2")
    ]
    assert numbers == [145, 149]
