"""Names, order and notations of other models' samples: CSV, JSON, JSON lines, XYZ, POSCAR."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.io.vasp.inputs import Poscar

from crystals import fcc, perovskite, rocksalt
from flowllm.data.external import read_samples
from flowllm.data.sample_text import MAX_NOTATION, read_notation, read_poscar
from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.tables import read_table
from import_samples_parts import read_in
from sample_formats import outcomes

SHARED = Path(__file__).parents[3] / "shared" / "data"

BY_NAME = {"salt": rocksalt(), "oxide": perovskite(), "copper": fcc()}
DICTS = {name: crystal.to_structure().as_dict() for name, crystal in BY_NAME.items()}
FORMULAS = [crystal.formula for crystal in BY_NAME.values()]


def cif(name):
    return BY_NAME[name].to_structure().to(fmt="cif")


def names(path, column=None):
    return [sample.name for sample in read_samples(path, column)]


def write_csv(path, header, rows):
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def test_folders_give_paths_and_blocks_as_names_in_natural_order(tmp_path):
    for index in range(12):
        folder = tmp_path / f"batch_{index // 6}"
        folder.mkdir(exist_ok=True)
        (folder / f"gen_{index}.cif").write_text(cif("salt" if index != 10 else "copper"))
    with gzip.open(tmp_path / "both.cif.gz", "wt") as handle:
        handle.write(cif("salt") + cif("oxide"))
    found = names(tmp_path)
    expected = [f"batch_{index // 6}/gen_{index}.cif" for index in range(12)]
    assert found == [*expected, "both.cif.gz#1", "both.cif.gz#2"]
    said = outcomes(tmp_path)
    assert said[10] == BY_NAME["copper"].formula
    assert said[12:] == FORMULAS[:2]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (["material_id", "cif"], list(BY_NAME)),
        (["cif", "ID"], list(BY_NAME)),
        (["", "cif"], list(BY_NAME)),  # pandas' index
        (["Unnamed: 0", "cif"], list(BY_NAME)),
        (["remark", "cif"], ["row 0", "row 1", "row 2"]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_csv_names_its_rows(tmp_path, header, expected, packed):
    first = header[0] == "cif"
    rows = [(cif(name), name) if first else (name, cif(name)) for name in BY_NAME]
    path = write_csv(tmp_path / "all.csv", header, rows)
    if packed:
        path = tmp_path / "all.csv.gz"
        path.write_bytes(gzip.compress((tmp_path / "all.csv").read_bytes()))
    assert names(path) == expected
    assert outcomes(path) == FORMULAS


def test_a_csv_column_is_named_where_it_has_another_name_or_several_fit(tmp_path):
    rows = [(name, cif("copper"), cif(name)) for name in BY_NAME]
    path = write_csv(tmp_path / "odd.csv", ["id", "start", "relxed_structure"], rows)
    said = r"odd\.csv: has none of .*'relxed_structure'; name the one .* `column:`"
    with pytest.raises(FlowllmError, match=said):
        names(path)
    found = [sample().formula for sample in read_samples(path, "relxed_structure")]
    assert found == FORMULAS
    assert [sample().formula for sample in read_samples(path, "START")] == FORMULAS[2:] * 3
    with pytest.raises(FlowllmError, match=r"has no column 'end', but 'id', 'start'"):
        names(path, "end")
    for header in (["id", "cif", "structure"], ["id", "cif", "cif"]):
        path = write_csv(tmp_path / "two.csv", header, rows)
        with pytest.raises(FlowllmError, match=r"may contain the crystals; name one"):
            names(path)
    with pytest.raises(FlowllmError, match=r"may contain"):
        names(path, "cif")


def test_a_column_of_what_has_none_is_refused(tmp_path):
    (tmp_path / "a.cif").write_text(cif("salt"))
    for path in (tmp_path, tmp_path / "a.cif"):
        with pytest.raises(FlowllmError, match=r"column 'x' is named, which only CSV and JSON"):
            names(path, "x")


def test_odd_rows_of_a_csv_are_failed_samples(tmp_path):
    path = tmp_path / "odd.csv"
    write_csv(path, ["id", "cif"], [("a", cif("salt")), ("b", ""), ("c",), ("d", "x", "y")])
    good, *bad = outcomes(path)
    assert good == FORMULAS[0]
    assert "an empty cell" in bad[0]
    assert "an empty cell" in bad[1]
    assert "more cells than the header, which has 2" in bad[2]
    assert names(path) == ["a", "b", "c", "d"]


def test_dictionaries_in_pythons_notation_are_read_as_data(tmp_path):
    notes = {"magmom": float("nan"), "energy": float("-inf"), "pbc": (True, False, None)}
    rows = [(name, str(values | {"properties": notes})) for name, values in DICTS.items()]
    path = write_csv(tmp_path / "python.csv", ["material_id", "structure"], rows)
    assert "nan" in path.read_text()
    assert outcomes(path) == FORMULAS
    assert names(path) == list(BY_NAME)


@pytest.mark.parametrize(
    "text",
    [
        "{'a': __import__('os').system('touch {mark}')}",
        "{'a': open('{mark}', 'w')}",
        "{'a': [x for x in ()]}",
        "{'a': 1 and 2}",
        "{'a': array([1])}",
        "{'a': lattice}",
        "{1, 2",
        "{" * 1000,
        "{'a': " + "-" * 100_000 + "1}",
        "{'a': " + "1+" * 50_000 + "1j}",
        "{'a': " + "(" * 150 + ")" * 150 + "}}",
        "{'a': 9**9**9}",
        "{'a': 'x' * 10**9}",
        "{1, 2}",
        "{'a': '" + "x" * MAX_NOTATION + "'}",
    ],
)
def test_other_notations_are_one_error_and_nothing_is_run(tmp_path, text):
    mark = tmp_path / "ran"
    with pytest.raises(FlowllmError, match=r"dictionary"):
        read_notation(text.replace("{mark}", str(mark)))
    assert not mark.exists()


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_what_python_writes_is_read_back(values):
    assert read_notation(str({"x": values})) == {"x": values}
    assert read_notation(json.dumps({"x": values})) == {"x": values}


def test_json_keeps_keys_ids_and_order(tmp_path):
    path = tmp_path / "a.json"
    turned = dict(reversed(DICTS.items()))
    path.write_text(json.dumps(turned))
    assert names(path) == ["copper", "oxide", "salt"]
    assert outcomes(path) == FORMULAS[::-1]
    path.write_text(json.dumps([{"id": 7, "cif": cif("salt")}, {"name": "x", "cif": "no"}, 5]))
    assert names(path) == ["7", "x", "2"]
    path.write_text(json.dumps([DICTS["salt"]]))
    assert names(path) == ["0"]
    # Column by column, as pandas writes a table.
    path.write_text(json.dumps({"id": {"0": "a", "1": "b"}, "structure": {"4": DICTS["salt"]}}))
    assert (names(path), outcomes(path)) == (["4"], FORMULAS[:1])
    (sample,) = read_samples(path, "structure")
    assert sample().formula == FORMULAS[0]
    path.write_text(json.dumps([{"id": "a", "relaxed": DICTS["salt"]}, {"id": "b"}]))
    first, second = read_samples(path, "relaxed")
    assert first().formula == FORMULAS[0]
    with pytest.raises(FlowllmError, match=r"a record without the key 'relaxed'"):
        second()


def test_a_key_that_is_given_twice_does_not_lose_a_sample(tmp_path):
    text = json.dumps(DICTS["salt"])
    (tmp_path / "a.json").write_text(f'{{"x": {text}, "x": {text}}}')
    with pytest.raises(FlowllmError, match=r"a\.json: not JSON .*'x' is given twice"):
        names(tmp_path / "a.json")


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz"])
def test_json_lines(tmp_path, name):
    lines = [json.dumps({"id": key, "structure": values}) for key, values in DICTS.items()]
    lines.insert(1, "")
    lines += ["{broken", json.dumps({"cif": cif("salt")})]
    text = "\n".join(lines) + "\n"
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert names(tmp_path / name) == [*BY_NAME, "line 5", "line 6"]
    *good, broken, last = outcomes(tmp_path / name)
    assert [*good, last] == [*FORMULAS, FORMULAS[0]]
    assert "line 5: not JSON" in broken


def test_extended_xyz_names_and_order(tmp_path):
    frame = '1\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 {}\n{} 0 0 0\n'
    said = ["material_id=mp-1", 'id="a \\"b\\""', "energy=1", 'name="c d"', "valid=x"]
    text = "".join(map(frame.format, said, ["Cu", "Ag", "Au", "Al", "Ni"]))
    (tmp_path / "all.extxyz.gz").write_bytes(gzip.compress(text.encode()))
    found = names(tmp_path / "all.extxyz.gz")
    assert found == ["mp-1", 'a "b"', "frame 2", "c d", "frame 4"]
    assert outcomes(tmp_path / "all.extxyz.gz") == ["Cu1", "Ag1", "Au1", "Al1", "Ni1"]


def poscar(structure, scale=None, cartesian=False):
    """POSCAR as text, its lengths and Cartesian coordinates divided by a factor if one is given."""
    lines = Poscar(structure).get_str(direct=not cartesian, significant_figures=12).split("\n")
    if scale is not None:
        factor = scale if scale > 0 else (-scale / structure.volume) ** (1 / 3)
        lines[1] = str(scale)
        rows = [*range(2, 5), *(range(8, 8 + len(structure)) if cartesian else ())]
        for row in rows:
            first, *rest = lines[row].split()[:3], *lines[row].split()[3:]
            scaled = [f"{float(one) / factor:.12f}" for one in first]
            lines[row] = " ".join([*scaled, *rest])
    return "\n".join(lines)


@pytest.mark.parametrize("cartesian", [False, True])
@pytest.mark.parametrize("scale", [None, 2.5, -59.319])
def test_poscar_in_every_scale(scale, cartesian):
    # 59.319 is the perovskite's volume: its vectors are then given in their own lengths.
    structure = perovskite().to_structure()
    found = read_poscar(poscar(structure, scale, cartesian))
    assert found.lattice.abc == pytest.approx(structure.lattice.abc, rel=1e-6)
    assert found.distance_matrix == pytest.approx(structure.distance_matrix, abs=1e-4)
    assert found.composition == structure.composition


def test_a_negative_scale_is_the_volume_for_cartesian_coordinates_too():
    structure = perovskite().to_structure()
    text = poscar(structure, cartesian=True).split("\n")
    text[1] = str(-8 * structure.volume)
    found = read_poscar("\n".join(text))
    assert found.volume == pytest.approx(8 * structure.volume)
    assert found.frac_coords == pytest.approx(structure.frac_coords, abs=1e-6)


def test_a_folder_of_poscars(tmp_path):
    for index, name in enumerate(BY_NAME):
        (tmp_path / str(index)).mkdir()
        text = poscar(BY_NAME[name].to_structure())
        (tmp_path / str(index) / "CONTCAR").write_text(text.replace("\n", "\r\n"))
    assert names(tmp_path) == ["0/CONTCAR", "1/CONTCAR", "2/CONTCAR"]
    assert outcomes(tmp_path) == FORMULAS
    assert outcomes(tmp_path / "1" / "CONTCAR") == FORMULAS[1:2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [*lines[:5], *lines[6:]], "does not name its elements"),
        (lambda lines: lines[:6], "a POSCAR of 7 lines"),
        (lambda lines: [*lines[:6], "999999999999 1", *lines[7:]], "atoms has 11 lines"),
        (lambda lines: [*lines[:6], "2", *lines[7:]], "of 2 symbols has 1 numbers of atoms"),
        (lambda lines: [*lines[:6], "x y", *lines[7:]], "without a line of the numbers of atoms"),
        (lambda lines: [lines[0], "0", *lines[2:]], "has no volume"),
        (lambda lines: [lines[0], "x", *lines[2:]], "are not numbers"),
        (lambda lines: [*lines[:2], "1 1", *lines[3:]], "are not numbers"),
    ],
)
def test_a_poscar_that_is_not_whole_is_refused(change, said):
    lines = poscar(rocksalt().to_structure()).split("\n")[:10]
    lines[8:] = [" ".join(line.split()[:3]) for line in lines[8:]]
    with pytest.raises(FlowllmError, match=said):
        read_poscar("\n".join([*change(lines), ""]))


def test_the_names_are_a_column_of_the_generated_crystals_and_of_the_flags(tmp_path):
    path = write_csv(
        tmp_path / "all.csv", ["id", "cif"], [*((name, cif(name)) for name in BY_NAME), ("x", "")]
    )
    _, shards = read_in(path, tmp_path, 2)
    found = [name for one in shards for name in read_table(one, schemas.IMPORTED)["source_name"]]
    assert [name.as_py() for name in found] == [*BY_NAME, "x"]
    assert read_table(shards[0], schemas.GENERATED).num_rows == 2


@pytest.mark.skipif(not SHARED.exists(), reason="the shared data are not on this machine")
@pytest.mark.parametrize(
    ("name", "column", "count", "first", "last"),
    [
        ("rivals/flowmm_filtered_withcif.csv", "relxed_structure", None, "0", None),
        ("rivals/CrystalFormer_mp_20.csv.gz", None, 999, "row 0", "row 998"),
        ("rivals/DiffCSP_mp_20.pt", None, 10_000, "0", "9999"),
        ("cases/samples/nested", None, 3, "a/LiF.cif", "a/NaCl.cif"),
        ("cases/samples/numbered", None, 12, "gen_0.cif", "gen_11.cif"),
        ("cases/samples/by_id.json", None, 3, "NaCl", "LiF"),
        ("cases/samples/python_repr.csv", None, 3, "NaCl", "LiF"),
        ("cases/crystals/odd.json", None, 21, "Po_sc", "good_NaCl"),
    ],
)
def test_real_files_of_others(name, column, count, first, last):
    found = list(read_samples(SHARED / name, column))
    assert count is None or len(found) == count
    assert found[0].name == first
    assert last is None or found[-1].name == last
    for sample in found[:20]:
        sample()
