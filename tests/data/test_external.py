"""Samples in every format read back as what was written."""

import csv
import gzip
import json
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from crystals import rocksalt
from flowllm.crystal import Crystal
from flowllm.data.external import read_samples
from flowllm.data.pt_file import KEEP_ARRAYS
from flowllm.errors import FlowllmError
from sample_formats import (
    CRYSTALS,
    FORMATS,
    outcomes,
    tensors,
    write_cif_of_blocks,
    write_csv_of,
    write_xyz,
)


@pytest.mark.parametrize(("name", "write"), FORMATS.items())
def test_every_format_gives_the_crystals_back(tmp_path, name, write):
    write(tmp_path / name)
    parsers = list(read_samples(tmp_path / name))
    assert len(parsers) == 3
    for parse, expected in zip(parsers, CRYSTALS, strict=True):
        found = parse()
        assert found.formula == expected.formula
        assert found.lengths == pytest.approx(expected.lengths, abs=1e-4)
        assert found.angles == pytest.approx(expected.angles, abs=1e-3)
        assert found.to_structure().distance_matrix == pytest.approx(
            expected.to_structure().distance_matrix, abs=1e-4
        )


def test_json_of_one_structure(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(rocksalt().to_structure().as_dict()))
    (parse,) = read_samples(tmp_path / "one.json")
    assert parse().formula == rocksalt().formula


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module that makes a file when imported, and whose class makes another."""
    code = f"""
from pathlib import Path
Path({str(tmp_path / "imported")!r}).touch()
class Thing:
    @classmethod
    def from_dict(cls, values):
        Path({str(tmp_path / "called")!r}).touch()
"""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sideeffects.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield "sideeffects"
    sys.modules.pop("sideeffects", None)


@pytest.mark.parametrize("name", ["all.json", "all.csv"])
def test_classes_that_json_names_are_not_imported(tmp_path, module, name):
    values = rocksalt().to_structure().as_dict()
    thing = {"@module": module, "@class": "Thing"}
    values["sites"][0]["properties"] = values["properties"] = {"x": thing}
    values["sites"][0]["species"][0] |= {"oxidation_state": thing, "properties": thing}
    text = json.dumps(values)
    with (tmp_path / name).open("w", newline="") as handle:
        if name.endswith("json"):
            handle.write(f"[{text}]")
        else:
            csv.writer(handle).writerows([["structure"], [text]])
    (parse,) = read_samples(tmp_path / name)
    assert parse().formula == rocksalt().formula
    assert not (tmp_path / "imported").exists()
    assert not (tmp_path / "called").exists()


def left_handed():
    """A structure without mirror symmetry, in lattice vectors of the left hand."""
    matrix = [[0, 5.0, 0], [4, 0.5, 0], [0.3, 0.6, 6]]
    coords = np.random.default_rng(0).random((4, 3))
    return Structure(Lattice(matrix), ["Na", "Cl", "K", "Br"], coords)


def write_left_handed(path):
    structure = left_handed()
    if path.suffix == ".extxyz":
        ase.io.write(path, structure.to_ase_atoms())
        return
    values = {
        "atom_types": structure.atomic_numbers,
        "frac_coords": structure.frac_coords,
        "lattices": structure.lattice.matrix[None],
        "num_atoms": [4],
    }
    torch.save({key: torch.tensor(np.asarray(value)) for key, value in values.items()}, path)


@pytest.mark.parametrize("name", ["left.pt", "left.extxyz"])
def test_left_handed_vectors_do_not_mirror_the_crystal(tmp_path, name):
    write_left_handed(tmp_path / name)
    (parse,) = read_samples(tmp_path / name)
    expected = Crystal.from_structure(left_handed())
    assert parse().frac_coords == pytest.approx(expected.frac_coords, abs=1e-6)


class Harmful:
    """Would make a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_pt_file_is_not_run(tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "bad.pt").write_bytes(pickle.dumps({"atom_types": Harmful(mark)}))
    with pytest.raises(FlowllmError, match=r"bad\.pt: not a file of tensors only"):
        list(read_samples(tmp_path / "bad.pt"))
    assert not mark.exists()


def test_memory_is_not_what_a_pt_file_says(tmp_path):
    """numpy's own unpickling takes these eight bytes for the address of a Python object."""
    kind = np.dtype("V8")
    kind.__setstate__((3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))
    array = np.ndarray.__new__(np.ndarray, (0,), "b")
    array.__setstate__((1, (1,), kind, False, b"A" * 8))
    torch.save(tensors(False) | {"atom_types": array}, tmp_path / "bad.pt")
    with pytest.raises(FlowllmError, match=r"atom_types is not an array .*V8"):
        list(read_samples(tmp_path / "bad.pt"))


def test_a_file_with_other_programs_objects_says_what_leaves_the_arrays(tmp_path, monkeypatch):
    (tmp_path / "graphs.py").write_text("class Batch:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import graphs

    torch.save(tensors(True) | {"input_data_batch": graphs.Batch()}, tmp_path / "eval_gen.pt")
    with pytest.raises(FlowllmError) as caught:
        list(read_samples(tmp_path / "eval_gen.pt"))
    said = str(caught.value)
    assert "graphs.Batch" in said
    assert said.endswith(KEEP_ARRAYS)
    assert len(said) < 500
    assert "weights_only" not in said
    assert "\x1b" not in said
    _, *words = shlex.split(KEEP_ARRAYS)
    subprocess.run([sys.executable, *words], cwd=tmp_path, check=True)
    assert len(list(read_samples(tmp_path / "arrays.pt"))) == len(CRYSTALS)


def test_the_documentation_has_the_line_that_leaves_the_arrays():
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert KEEP_ARRAYS in page.read_text()


FORMULAS = [one.formula for one in CRYSTALS]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ('2\nLattice="3 0 0 0 3 0 0 0 3"\nNa 0 0 0\n', "a frame of 2 atoms has 1 lines"),
        ('1\nLattice="3 0 0 0 3 0 0 0 3"\nQq 0 0 0\n', "no element or column 'Qq'"),
        ("1\nno cell\nNa 0 0 0\n", "without a Lattice"),
    ],
)
def test_a_broken_frame_leaves_the_others_whole(tmp_path, frame, reason):
    write_xyz(tmp_path / "all.extxyz")
    whole = (tmp_path / "all.extxyz").read_text()
    (tmp_path / "all.extxyz").write_text(frame + whole + frame)
    first, *middle, last = outcomes(tmp_path / "all.extxyz")
    assert middle == FORMULAS
    assert reason in first
    assert reason in last


def test_line_ends_of_windows_do_not_matter_in_xyz(tmp_path):
    write_xyz(tmp_path / "all.extxyz")
    text = (tmp_path / "all.extxyz").read_text()
    (tmp_path / "windows.extxyz").write_text(text, newline="\r\n")
    found = [list(read_samples(tmp_path / f"{name}.extxyz")) for name in ("all", "windows")]
    names = [[sample.name for sample in samples] for samples in found]
    assert names[0] == names[1]
    crystals = [[sample.parse() for sample in samples] for samples in found]
    assert len(crystals[0]) > 1
    for one, other in zip(*crystals, strict=True):
        np.testing.assert_array_equal(one.frac_coords, other.frac_coords)


def test_a_row_with_a_cif_of_several_crystals_is_not_its_first(tmp_path):
    convert = write_csv_of(lambda structure: structure.to(fmt="cif") * 2, "cif")
    convert(tmp_path / "two.csv")
    assert all("a CIF of 2 crystals" in said for said in outcomes(tmp_path / "two.csv"))


def test_a_truncated_block_of_a_cif_is_a_sample(tmp_path):
    write_cif_of_blocks(tmp_path / "cifs")
    with (tmp_path / "cifs" / "all.cif").open("a") as handle:
        handle.write("\ndata_cut\n_cell_length_a 4.0\n")
    *whole, cut = outcomes(tmp_path / "cifs")
    assert whole == FORMULAS
    assert "_cell_length_b is missing" in cut


def test_a_crystal_of_no_atoms_is_one_bad_sample(tmp_path):
    values = tensors(False)
    values["num_atoms"] = torch.tensor([*values["num_atoms"].tolist(), 0])
    for key in ("lengths", "angles"):
        values[key] = torch.cat([values[key], values[key][:1]])
    torch.save(values, tmp_path / "zero.pt")
    *whole, none = outcomes(tmp_path / "zero.pt")
    assert whole == FORMULAS
    assert "atomic_numbers has shape (0,)" in none


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bad.pt", {"num_atoms": torch.tensor([10, -1, -1])}, "num_atoms contains a value that"),
        ("bad.pt", {"num_atoms": torch.tensor([2.5, 4.5, 1])}, "num_atoms contains a value that"),
        ("bad.pt", {"angles": torch.zeros(2, 3)}, "num_atoms does not fit"),
        ("bad.pt", {"lengths": "long"}, "lengths is not an array of numbers"),
        ("bad.pt", {"lengths": [torch.zeros(1), torch.zeros(2)]}, "lengths is not an array"),
    ],
)
def test_tensors_that_are_none(tmp_path, name, change, message):
    torch.save(tensors(False) | change, tmp_path / name)
    with pytest.raises(FlowllmError, match=rf"bad\.pt: {message}"):
        list(read_samples(tmp_path / name))


def test_other_pt_files(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(FlowllmError, match=r"tensor\.pt: contains a Tensor, not a dictionary"):
        list(read_samples(tmp_path / "tensor.pt"))
    torch.save({key: value[:0] for key, value in tensors(False).items()}, tmp_path / "none.pt")
    assert list(read_samples(tmp_path / "none.pt")) == []
    whole = (tmp_path / "tensor.pt").read_bytes()
    for content in (b"", whole[:200], whole[: len(whole) // 2]):
        (tmp_path / "cut.pt").write_bytes(content)
        with pytest.raises(FlowllmError, match=r"cut\.pt: not a file of tensors only") as caught:
            list(read_samples(tmp_path / "cut.pt"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.csv", "cif\n# Å\n".encode("latin-1"), r"latin\.csv: not UTF-8"),
        ("latin.extxyz", "1\nÅ\n".encode("latin-1"), r"latin\.extxyz: not UTF-8"),
        ("prose.xyz", b"atoms\n1\n", r"prose\.xyz: does not begin with a number of atoms"),
        ("number.json", b"3", r"number\.json: neither a list nor a mapping, but int"),
        ("cut.json.gz", gzip.compress(b"[1, 2]", mtime=0)[:-4], r"cut\.json\.gz: broken gzip"),
        ("deep.json", b"[" * 100_000, r"deep\.json: not JSON"),
        ("cut.csv", b'id,cif\n1,"data_a\n_cell_length_a 4', r"cut\.csv: not CSV .*cut off"),
    ],
)
def test_files_that_cannot_be_parsed(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FlowllmError, match=message):
        list(read_samples(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", "id,text\n1,2\n", "none of the columns cif"),
        ("bad.json", "{", "not JSON"),
        ("what.zip", "", "unknown format"),
    ],
)
def test_files_that_hold_no_samples(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(FlowllmError, match=message):
        list(read_samples(tmp_path / name))


def test_tensors_that_do_not_fit(tmp_path):
    values = tensors(True)
    values["num_atoms"] = values["num_atoms"] + 1
    torch.save(values, tmp_path / "bad.pt")
    with pytest.raises(FlowllmError, match="num_atoms does not fit"):
        list(read_samples(tmp_path / "bad.pt"))
