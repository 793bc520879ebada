"""second_energies: relaxed crystals and the hull's, evaluated by another potential, not moved."""

import contextlib
import io

import pytest
from chgnet.model.model import CHGNet

from crystals import perovskite, rocksalt
from energy_rows import CHGNET, hull_row, relaxed_row, settings
from flowllm.errors import FlowllmError
from flowllm.io import hull_schemas, schemas, tables
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import second_energies

SECOND = settings("second_energies", potential={"check": "chgnet-0.2.0"})
CRYSTALS = {"salt": rocksalt(), "failed": None, "oxide": perovskite()}


def write_relaxed(folder):
    """Two shards, of which the first has a row without a crystal."""
    rows = [relaxed_row(crystal, name, -3.0) for name, crystal in CRYSTALS.items()]
    paths = [folder / f"shard-{shard:05d}.parquet" for shard in range(2)]
    for path, part in zip(paths, (rows[:2], rows[2:]), strict=True):
        tables.write_table(path, part, schemas.RELAXED, {})
    return paths


def write_hull(path, schema=hull_schemas.POTENTIAL_ENTRIES):
    crystals = [one for one in CRYSTALS.values() if one is not None]
    rows = [
        hull_row(crystal.formula, -3.0) | tables.crystal_columns(crystal) for crystal in crystals
    ]
    if schema is not hull_schemas.POTENTIAL_ENTRIES:
        rows = [{name: row.get(name) for name in schema.names} for row in rows]
    tables.write_table(path, rows, schema, {})
    return path


def rows_of(out, **given):
    second_energies.run(SECOND, **given, out=out)
    return tables.read_table(out, hull_schemas.SECOND_ENERGIES).to_pylist()


@pytest.fixture(scope="module")
def expected():
    """Energies by the chgnet package's own function."""
    with contextlib.redirect_stdout(io.StringIO()):
        model = CHGNet.load(model_name="0.2.0", use_device="cpu")
    present = {name: one for name, one in CRYSTALS.items() if one is not None}
    return {
        name: float(model.predict_structure(crystal.to_structure(), task="e")["e"])
        for name, crystal in present.items()
    }


@pytest.mark.parametrize("part", [1, 200])
def test_relaxed_crystals_have_the_energies_of_the_package(tmp_path, monkeypatch, expected, part):
    monkeypatch.setattr(second_energies, "PART_CRYSTALS", part)
    out = tmp_path / "second.parquet"
    rows = rows_of(out, relaxed=write_relaxed(tmp_path))
    assert [row["id"] for row in rows] == [*CRYSTALS]
    energies = {row["id"]: row["check_energy_per_atom"] for row in rows}
    assert energies.pop("failed") is None
    assert energies == pytest.approx(expected, abs=1e-4)
    assert {row["check_potential"] for row in rows} == {"CHGNet 0.2.0"}
    counts = read_provenance(out)["counts"]
    assert (counts["rows_in"], counts["rows_failed"]) == (3, 1)


def test_the_entries_of_the_hull_are_evaluated_in_their_order(tmp_path, expected):
    hull = write_hull(tmp_path / "hull.parquet")
    rows = rows_of(tmp_path / "out.parquet", hull=hull)
    entries = tables.read_table(hull, schemas.HULL_ENTRIES, ["entry_id"]).column("entry_id")
    assert [row["id"] for row in rows] == entries.to_pylist()
    found = [row["check_energy_per_atom"] for row in rows]
    assert found == pytest.approx([expected["salt"], expected["oxide"]], abs=1e-4)


def test_a_hull_without_crystals_is_refused_before_the_potential_is_loaded(tmp_path):
    """Of an earlier version, or of a file of entries."""
    earlier = write_hull(tmp_path / "earlier.parquet", schemas.HULL_ENTRIES)
    of_a_file = tmp_path / "file.parquet"
    entry = hull_row("NaCl", -3.0, source=CHGNET)
    tables.write_table(of_a_file, [entry], hull_schemas.POTENTIAL_ENTRIES, {})
    for hull in (earlier, of_a_file):
        with pytest.raises(FlowllmError, match=r"no crystals.*Run reference_hull again"):
            rows_of(tmp_path / "out.parquet", hull=hull)


def test_what_is_evaluated_must_be_given(tmp_path):
    hull, out = write_hull(tmp_path / "hull.parquet"), tmp_path / "out.parquet"
    for given in ({}, {"hull": hull, "relaxed": write_relaxed(tmp_path)}):
        with pytest.raises(FlowllmError, match="give either --relaxed"):
            rows_of(out, **given)
    with pytest.raises(FlowllmError, match=r"potential\.check is null"):
        second_energies.run(settings("second_energies"), hull=hull, out=out)
