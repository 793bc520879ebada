"""Known energies beside other models' samples, in columns of a CSV file."""

import csv

import pytest

from crystals import fcc, rocksalt
from flowllm.data.external import read_samples
from flowllm.errors import FlowllmError

CIF = rocksalt().to_structure().to(fmt="cif")
KNOWN = {"known_e_above_hull": "above", "known_formation_energy": "formed"}


def write(path, *rows, header=("id", "cif", "above", "formed")):
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


def energies(path, known=KNOWN):
    return [dict(sample.known) for sample in read_samples(path, known=known)]


def test_each_sample_has_the_energies_that_its_row_gives(tmp_path):
    path = write(
        tmp_path / "a.csv",
        ("a", CIF, "0.05", "-1.5"),
        ("b", CIF, "", "nan"),
        ("c", "no crystal", " -2e-3 ", "N/A"),
    )
    assert energies(path) == [
        {"known_e_above_hull": 0.05, "known_formation_energy": -1.5},
        {},
        {"known_e_above_hull": -0.002},
    ]
    first = KNOWN.keys() - {"known_formation_energy"}
    assert energies(path, {key: KNOWN[key] for key in first})[0] == {"known_e_above_hull": 0.05}
    assert energies(path, None) == [{}, {}, {}]


@pytest.mark.parametrize("text", ["0,05", "low", "1e9", "0.1 eV"])
def test_what_is_no_energy_is_refused_with_its_row_and_column(tmp_path, text):
    path = write(tmp_path / "a.csv", ("a", CIF, "0", "0"), ("b", CIF, "0", text))
    with pytest.raises(FlowllmError, match=r"a\.csv: row 1, column 'formed' .*; correct the cell"):
        energies(path)


@pytest.mark.parametrize(
    ("header", "count"), [(("id", "cif", "x", "formed"), 0), (("id", "cif", "above", "above"), 2)]
)
def test_a_column_that_is_missing_or_twice_there_is_refused(tmp_path, header, count):
    path = write(tmp_path / "a.csv", ("a", CIF, "0", "0"), header=header)
    said = rf"a\.csv: {count} columns are named 'above', but known_e_above_hull .* needs one"
    with pytest.raises(FlowllmError, match=said):
        energies(path, {"known_e_above_hull": "above"})


def test_other_formats_have_no_columns_of_energies(tmp_path):
    (tmp_path / "a.cif").write_text(fcc().to_structure().to(fmt="cif"))
    for path in (tmp_path, tmp_path / "a.cif"):
        with pytest.raises(FlowllmError, match=r"known_e_above_hull: above names a column, .* CSV"):
            energies(path)
