"""Samples in every format read back as what was written."""

import argparse
import csv
import gzip
import json
import pickle

import ase.io
import numpy as np
import pytest
import torch

from crystals import fcc, perovskite, rattled, rocksalt
from flowllm.errors import FlowllmError
from flowllm.evaluate.external import read_samples

CRYSTALS = [rocksalt(), rattled(perovskite(), 0.1, 3), fcc()]


def write_cifs(path):
    path.mkdir()
    for index, crystal in enumerate(CRYSTALS):
        (path / f"{index:03d}.cif").write_text(crystal.to_structure().to(fmt="cif"))


def write_csv_of(convert, column):
    def write(path):
        with path.open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["material_id", column])
            writer.writerows([i, convert(one.to_structure())] for i, one in enumerate(CRYSTALS))

    return write


def write_xyz(path):
    structures = [crystal.to_structure() for crystal in CRYSTALS]
    ase.io.write(path, [structure.to_ase_atoms() for structure in structures], format="extxyz")


def write_json(path):
    path.write_text(json.dumps([crystal.to_structure().as_dict() for crystal in CRYSTALS]))


def write_json_of_entries(path):
    entries = {f"e{i}": {"structure": c.to_structure().as_dict()} for i, c in enumerate(CRYSTALS)}
    with gzip.open(path, "wt") as handle:
        json.dump(entries, handle)


def tensors(leading_axis):
    values = {
        "atom_types": np.concatenate([one.atomic_numbers for one in CRYSTALS]).astype(np.int64),
        "frac_coords": np.concatenate([one.frac_coords for one in CRYSTALS]),
        "lengths": np.stack([one.lengths for one in CRYSTALS]),
        "angles": np.stack([one.angles for one in CRYSTALS]),
        "num_atoms": np.array([one.num_atoms for one in CRYSTALS]),
    }
    return {key: torch.from_numpy(v[None] if leading_axis else v) for key, v in values.items()}


def write_pt(path):
    # As CDVAE's evaluate.py: a leading axis for the evaluations, options beside the tensors.
    torch.save(tensors(True) | {"eval_setting": argparse.Namespace(num_evals=1)}, path)


def write_flat_pt(path):
    torch.save(tensors(False), path)


FORMATS = {
    "cifs": write_cifs,
    "cif.csv": write_csv_of(lambda structure: structure.to(fmt="cif"), "cif"),
    "json.csv": write_csv_of(lambda one: json.dumps(one.as_dict()), "structure"),
    "all.extxyz": write_xyz,
    "all.json": write_json,
    "entries.json.gz": write_json_of_entries,
    "eval_gen.pt": write_pt,
    "flat.pt": write_flat_pt,
}
"""How `CRYSTALS` are written, by the name of the file."""


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
