"""The text and the atoms of CIFs: blocks, values, charges, distances, and every refusal."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cif_texts import (
    NAME,
    ROCK_SALT,
    make_cif,
    named,
    reason_of,
    volume_per_atom,
)
from flowllm.data.cif import crystal_from_cif, structure_from_cif
from flowllm.data.cif_blocks import read_block, read_cif_text, split_blocks
from flowllm.data.external import read_samples
from flowllm.data.wishes import atoms_of

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases" / "cif"


def test_atoms_nearer_than_half_an_angstrom_are_rejected():
    cdi2 = {"cell": (4.24, 4.24, 6.84, 90, 90, 120)}
    assert reason_of(named("P -3 m 1", "Cd 0 0 0", "I 0.333 0.667 0.25", **cdi2)) == "close_atoms"
    exact = named("P -3 m 1", "Cd 0 0 0", "I 0.3333 0.6667 0.25", **cdi2)
    assert crystal_from_cif(exact, "primitive", 20).formula == "Cd1I2"
    for x in (0.0, 0.0025, 0.1, 0.999):
        text = make_cif("Mg 0 0 0", f"Mg {x} 0 0", "O 0.5 0.5 0.5", cell=(4, 4, 4, 90, 90, 90))
        assert reason_of(text) == "close_atoms"
    # An atom's own image, seen in the reduced cell only.
    text = make_cif("Mg 0 0 0", cell=(4, 4, 4.1, 90, 90, 5))
    assert reason_of(text) == "close_atoms"


@pytest.mark.parametrize("places", [4, 5])
def test_special_positions_of_four_decimal_places_are_found(places):
    """Twelfths and sixths, in a group with as many operations as there are."""
    for x in (1 / 6, 5 / 6, 1 / 12, 1 / 3):
        rounded = round(x, places)
        atom = f"Mg {rounded} {round(2 * x % 1, places)} 0.25"
        text = named("P 63/m m c", atom, cell=(6.0, 6.0, 5.2, 90, 90, 120))
        expected = 2 if x == 1 / 3 else 6
        assert len(structure_from_cif(text)) == expected
        crystal_from_cif(text, "as_given", 20)


@pytest.mark.parametrize("cell", ["primitive", "standard"])
@pytest.mark.parametrize(
    ("symbols", "numbers"),
    [
        (("Sr", "O"), [38, 8]),  # strontium is more electropositive, but behind in the alphabet
        (("Na", "He"), [11, 2]),  # helium has no electronegativity
    ],
)
def test_atoms_of_a_reduced_cell_are_in_the_order_of_formulas(cell, symbols, numbers):
    atoms = [f"{symbols[s == 'Cl']} {x} {y} {z}" for s, x, y, z in ROCK_SALT]
    crystal = crystal_from_cif(make_cif(*atoms), cell, 20)
    assert crystal.atomic_numbers.tolist() == numbers
    assert crystal.atomic_numbers.tolist() == atoms_of("".join(symbols), 20).tolist()


def test_charges_do_not_hide_the_primitive_cell():
    """Rock salt of iron in two charges: one formula unit in the primitive cell."""
    charged = {("Na", 0): "Fe2+", ("Na", 0.5): "Fe3+", ("Cl", 0): "O2-", ("Cl", 0.5): "O2-"}
    atoms = [f"{charged[symbol, z]} {x} {y} {z}" for symbol, x, y, z in ROCK_SALT]
    numbers = "loop_\n_atom_type_symbol\n_atom_type_oxidation_number\nFe2+ 2\nFe3+ 3\nO2- -2\n"
    assert crystal_from_cif(make_cif(*atoms) + numbers, "primitive", 20).formula == "Fe1O1"
    # Both on one place, half each: iron, fully occupied.
    half = ["Fe2+ 0 0 0 0.5", "Fe3+ 0 0 0 0.5", "O2- 0.5 0.5 0.5 1"]
    text = make_cif(*half, columns="occupancy", **{NAME: "F m -3 m"})
    assert crystal_from_cif(text, "primitive", 20).formula == "Fe1O1"


@pytest.mark.parametrize(
    ("atom", "columns", "reason"),
    [
        ("Na 0 0 0 0.5", "occupancy", "disordered"),
        ("Na 0 0 0 1.5", "occupancy", "disordered"),
        ("Na 0 0 0 -1", "occupancy", "disordered"),
        ("Na 0 0 0 0.97(2)", "occupancy", "disordered"),
        ("Na 0 0 0 2", "disorder_group", "disordered"),
        ("'0.8Nb + 0.2Zr' 0 0 0", "", "disordered"),
        ("Na,K 0 0 0", "", "disordered"),
        ("Na 0 0 0 2", "attached_hydrogens", "missing_atoms"),
        ("Na ? 0 0", "", "bad_cif"),
        ("Na 0,5 0 0", "", "bad_cif"),
        ("Na nan 0 0", "", "bad_cif"),
        ("OH 0 0 0", "", "no_element"),
        ("Wat 0 0 0", "", "no_element"),
        ("Va 0 0 0", "", "no_element"),
        ("? 0 0 0", "", "no_element"),
    ],
)
def test_atoms_that_are_not_those_of_an_ordered_crystal(atom, columns, reason):
    assert reason_of(make_cif(atom, columns=columns)) == reason


def test_atoms_that_are_absent_are_left_out():
    for columns, absent, there in (("occupancy", "0", "1.0"), ("calc_flag", "dum", "d")):
        atoms = [f"Na 0 0 0 {there}", f"K ? ? ? {absent}", f"H 0.1 0 0 {absent}"]
        assert structure_from_cif(make_cif(*atoms, columns=columns)).formula == "Na1"


@pytest.mark.parametrize(
    ("symbol", "element"),
    [("Na1+", "Na"), ("NA", "Na"), ("Cl-", "Cl"), ("Fe+3", "Fe"), ("D", "H"), ("o", "O")],
)
def test_symbols(symbol, element):
    assert structure_from_cif(make_cif(f"{symbol} 0 0 0")).composition.reduced_formula in (
        element,
        f"{element}2",
    )


@pytest.mark.parametrize(
    ("label", "formula", "element"),
    [
        ("Na1", None, "Na"),
        ("Cl2A", None, "Cl"),
        ("C(12)", None, "C"),
        ("NA1", None, None),
        ("CA1", "C", "C"),
        ("CA1", "Ca", "Ca"),
        ("CA1", "Ca C", None),
        ("OW1", None, None),
        ("HO1", "H", "H"),
        ("1", None, None),
    ],
)
def test_labels_are_read_only_where_they_mean_one_element(label, formula, element):
    items = {} if formula is None else {"_chemical_formula_sum": formula}
    text = make_cif(f"{label} 0 0 0", **items).replace("_type_symbol", "_label")
    if element is None:
        assert reason_of(text) == "no_element"
    else:
        assert [site.specie.symbol for site in structure_from_cif(text)] == [element]


# The text of a CIF.

REMARK = "_refine_special_details\n;\ndata_reduction by hand\nloop_ over all\n_cell_length_a 9\n;\n"
GLOBAL = "data_global\n_journal_year 1999\n_publ_section_title 'data_ of salt'\n\n"
SALT = named("F m -3 m")


@pytest.mark.parametrize(
    "text",
    [
        GLOBAL + SALT,
        SALT.replace("loop_", f"{REMARK}loop_", 1),
        SALT + REMARK,
        SALT.replace("loop_", "# data_comment\n_a 'data_x'\n_b\n'data_y z'\nloop_", 1),
        SALT.replace("loop_", "loop_\n_a\n_b\n;\ndata_in_a_loop\n;\n'O' Brien' 1 2\nloop_", 1),
        SALT.replace("data_made", "DATA_Made # data_other"),
        SALT.replace("data_made\n", "data_made\nsave_frame\n_cell_length_a 9\nsave_\n"),
        SALT.replace("loop_", "_cell_measurement_pressure\n_cell_measurement_pressure 1\nloop_", 1),
        SALT + "loop_\n_atom_type_symbol\n_atom_type_scat_source\nNa International Tables\n",
        SALT.replace("loop_", "_publ_author_name A\n_publ_author_name B\nloop_", 1),
        SALT.replace("loop_", "_publ_section_title 'not closed\nloop_", 1),
        SALT.replace("5.64", "5.6400(3)"),
        SALT.replace("\n", "\r\n"),
        SALT.replace("\n", "\r"),
        (GLOBAL + SALT).replace("\n", "\r\n"),
        "\ufeff" + SALT,
        SALT.replace(" ", "\t"),
    ],
)
def test_blocks_and_values_of_any_text(tmp_path, text):
    assert volume_per_atom(text) == pytest.approx(22.43, abs=0.01)
    (tmp_path / "one.cif").write_text(text, newline="")
    (sample,) = read_samples(tmp_path)
    assert sample().formula == "Na4Cl4"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_files_of_any_code_page(tmp_path, encoding):
    path = tmp_path / "one.cif"
    path.write_bytes(f"# José, 5 Å\n{SALT}".replace("\n", "\r\n").encode(encoding))
    assert volume_per_atom(read_cif_text(path)) == pytest.approx(22.43, abs=0.01)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "bad_cif"),
        ("data_empty", "bad_cif"),
        (GLOBAL, "bad_cif"),
        (SALT + SALT, "bad_cif"),
        (SALT.replace("data_made", ""), "bad_cif"),
        (SALT.replace("_cell_angle_gamma 90\n", ""), "bad_cif"),
        (SALT.replace("gamma 90", "gamma 180"), "bad_cif"),
        (SALT.replace("length_b 5.64", "length_b 0"), "bad_cif"),
        (SALT.replace("length_b 5.64", "length_b 1e999"), "bad_cif"),
        (SALT.replace("length_b 5.64", "length_b 1e200"), "bad_cif"),
        (SALT.replace("Cl 0.5 0.5 0.5", "Cl 0.5 0.5"), "bad_cif"),
        (SALT + "_cell_length_a 6\n", "bad_cif"),
        (SALT.replace("_fract_", "_Cartn_"), "bad_cif"),
    ],
)
def test_texts_without_one_crystal(text, reason):
    assert reason_of(text) == reason


def test_a_text_field_that_is_not_closed_leaves_the_blocks_before_it():
    assert split_blocks(SALT + "data_b\n_a\n;\n" + SALT) == [SALT]


@given(text=st.text(alphabet="data_loop_;'\"#\n\r _x.1?", max_size=60))
def test_any_text_has_blocks(text):
    for block in split_blocks(text):
        assert split_blocks(block) == [block]
    with contextlib.suppress(Exception):
        read_block(text)


@pytest.mark.parametrize(
    ("name", "volume"),
    [
        ("data_in_text", 22.43),
        ("global_block", 22.43),
        ("only_identity", 22.43),
        ("windows", 22.43),
        ("diamond_origin1", 20.01),
        ("diamond_origin2", 20.01),
        ("diamond_no_choice", "ambiguous_symmetry"),
        ("mixed_valence_feo", 10.15),
        ("rhomb_r_number_only", 35.38),
        ("rounded_special", "close_atoms"),
        ("near_duplicates", "close_atoms"),
        ("sum_in_symbol", "disordered"),
    ],
)
def test_cases_of_others(name, volume):
    path = CASES / f"{name}.cif"
    if not path.exists():
        pytest.skip(f"needs {path}")
    text = read_cif_text(path)
    if isinstance(volume, str):
        assert reason_of(text) == volume
    else:
        assert volume_per_atom(text) == pytest.approx(volume, abs=0.01)
