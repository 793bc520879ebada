"""Exports read back by the programs that they are for: pymatgen and ASE."""

import csv
import json

import ase.io
import numpy as np
import pytest
from pymatgen.core import Structure

from crystals import perovskite, rattled, rocksalt
from flowllm.cli import app
from flowllm.commands.export import export
from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, write_table

CRYSTALS = {"a-0": rocksalt(), "a-1": rattled(perovskite(), 0.1, 1)}


@pytest.fixture
def shards(tmp_path):
    paths = []
    for name, crystal in CRYSTALS.items():
        rows = [
            {"id": name, **crystal_columns(crystal), "final_energy_per_atom": -3.5, "status": "ok"},
            {"id": f"{name}-failed", "status": "timeout", "error": "too slow"},
        ]
        paths.append(tmp_path / f"{name}.parquet")
        write_table(paths[-1], rows, schemas.RELAXED, {})
    return paths


def same(found, crystal):
    expected = crystal.to_structure()
    return (
        found.formula == expected.formula
        and np.allclose(found.lattice.parameters, expected.lattice.parameters, atol=1e-4)
        and np.allclose(found.distance_matrix, expected.distance_matrix, atol=1e-4)
    )


def test_cif_folder(shards, tmp_path):
    assert export(shards, tmp_path / "cifs", "cif") == 2
    assert sorted(path.name for path in (tmp_path / "cifs").iterdir()) == ["a-0.cif", "a-1.cif"]
    for name, crystal in CRYSTALS.items():
        assert same(Structure.from_file(tmp_path / "cifs" / f"{name}.cif"), crystal)


def test_csv_of_pymatgen_json(shards, tmp_path):
    assert export(shards, tmp_path / "all.csv", "csv") == 2
    with (tmp_path / "all.csv").open(newline="") as handle:
        rows = {row["material_id"]: row for row in csv.DictReader(handle)}
    for name, crystal in CRYSTALS.items():
        assert same(Structure.from_dict(json.loads(rows[name]["structure"])), crystal)
        assert float(rows[name]["energy"]) == pytest.approx(-3.5 * crystal.num_atoms)


def test_extended_xyz_as_ase_reads_it(shards, tmp_path):
    export(shards, tmp_path / "all.extxyz", "extxyz")
    for atoms, (name, crystal) in zip(
        ase.io.read(tmp_path / "all.extxyz", ":"), CRYSTALS.items(), strict=True
    ):
        assert atoms.info["id"] == name
        assert atoms.get_potential_energy() == pytest.approx(-3.5 * crystal.num_atoms)
        assert atoms.pbc.all()
        assert atoms.cell.cellpar() == pytest.approx([*crystal.lengths, *crystal.angles], abs=1e-4)
        assert atoms.get_all_distances(mic=True) == pytest.approx(
            crystal.to_structure().distance_matrix, abs=1e-4
        )


def test_command_and_limit(shards, tmp_path):
    out = tmp_path / "one.csv"
    words = ["export", *map(str, shards), "--format", "csv", "--out", str(out), "--limit", "1"]
    app(words, exit_on_error=False)
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize("form", ["cif", "csv", "extxyz"])
def test_one_id_in_two_tables_is_refused(tmp_path, form):
    paths = [tmp_path / "A.parquet", tmp_path / "B.parquet"]
    for path, crystal in zip(paths, CRYSTALS.values(), strict=True):
        rows = [
            {"id": "tau0.7-000001", **crystal_columns(crystal), "status": "ok"},
            {"id": "tau0.7-000002", "status": "timeout"},
        ]
        write_table(path, rows, schemas.RELAXED, {})
    with pytest.raises(
        FlowllmError, match=r"id tau0\.7-000001 is in .*A\.parquet and in .*B\.parquet"
    ):
        export(paths, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()
    assert export(paths, tmp_path / "out", form, limit=1) == 1


def test_an_existing_folder_is_kept(shards, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(FlowllmError, match="mine: exists"):
        export(shards, tmp_path / "mine", "cif")


def test_a_table_without_crystals_is_refused(tmp_path):
    path = tmp_path / "stability.parquet"
    write_table(path, [], schemas.STABILITY, {})
    with pytest.raises(FlowllmError, match="contains no crystals"):
        export([path], tmp_path / "out.csv", "csv")
