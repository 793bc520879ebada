"""reference_hull: the training crystals' energies by the potential, or a file's."""

import json

import pytest
import torch

from crystals import fcc, rattled, rocksalt
from energy_rows import crystal_row, settings
from flowllm import tables
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.relax.models import load_model
from flowllm.relax.relaxer import relax, single_points
from flowllm.runlog import read_provenance
from flowllm.stages import reference_hull

LONELY = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [8, 8, 8], [90, 90, 90])
CRYSTALS = {
    "mp-1": rattled(rocksalt(), 0.05, 1),
    "mp-2": fcc(),
    "mp-3": LONELY,
    "mp-4": rocksalt("K", "Cl", 6.3),
}


def run(tmp_path, crystals=CRYSTALS, **changes):
    path = tmp_path / "train.parquet"
    rows = [crystal_row(crystal, name) for name, crystal in crystals.items()]
    tables.write_table(path, rows, tables.CRYSTALS, {})
    out = tmp_path / "hull" / "potential.parquet"
    given = settings("reference_hull", reference_hull=changes)
    reference_hull.run(given, crystals=path, out=out)
    return tables.read_table(out, tables.HULL_ENTRIES).to_pylist()


def test_entries_are_the_potentials_energies(tmp_path):
    rows = run(tmp_path, relax_steps=0, chunk_size=2)
    model = load_model("chgnet", torch.device("cpu"))
    expected = single_points(model, list(CRYSTALS.values()))
    energies = {row["entry_id"]: row["energy_per_atom"] for row in rows}
    for name, result in zip(CRYSTALS, expected, strict=True):
        if result.fault is None:
            assert energies[name] == pytest.approx(result.final_energy_per_atom, abs=1e-6)
    # The crystal the potential cannot evaluate is counted.
    assert "mp-3" not in energies
    counts = read_provenance(tmp_path / "hull" / "potential.parquet")["counts"]
    assert (counts["rows_in"], counts["rows_failed"]) == (4, 1)
    assert {row["kind"] for row in rows} == {"potential"}


def test_entries_may_be_relaxed_first(tmp_path):
    crystals = {"mp-1": CRYSTALS["mp-1"]}
    model = load_model("chgnet", torch.device("cpu"))
    (expected,) = relax(
        model, list(crystals.values()), max_force=0.1, max_steps=50, max_seconds=1e9
    )
    rows = run(tmp_path, crystals, relax_steps=50)
    found = {row["entry_id"]: row["energy_per_atom"] for row in rows}
    assert found["mp-1"] == pytest.approx(expected.final_energy_per_atom, abs=1e-6)


def test_nothing_to_make_a_hull_of(tmp_path):
    with pytest.raises(FlowllmError, match="the potential could evaluate none of 1 crystals"):
        run(tmp_path, {"mp-3": LONELY}, relax_steps=0)


def test_a_file_of_the_potentials_entries(tmp_path):
    source = tmp_path / "entries.json"
    entry = {"composition": {"Na": 2, "Cl": 2}, "energy": -14.0, "correction": 0.0}
    source.write_text(json.dumps({"mp-22862": entry | {"entry_id": "mp-22862"}}))
    (row,) = run(tmp_path, source=str(source))
    assert row["energy_per_atom"] == -3.5
    assert (row["entry_id"], row["formula"], row["num_atoms"]) == ("mp-22862", "Na2Cl2", 4)
    assert (row["kind"], row["source"]) == ("potential", "CHGNet 0.3.0")
