"""prerelax: one row per generated row, a file of times, the same bytes after a kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystals import fcc, perovskite, rattled, rocksalt
from energy_rows import generated_row, settings
from flowllm.crystal import Crystal
from flowllm.io import schemas, tables
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import prerelax

LONELY = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [8, 8, 8], [90, 90, 90])
PRERELAX = {"max_force": 0.1, "max_steps": 60, "max_seconds": 600.0, "chunk_size": 2}


def write_generated(path):
    rows = [
        generated_row(rattled(rocksalt(), 0.1, 1), "base-000000"),
        generated_row(None, "base-000001"),
        generated_row(LONELY, "base-000002"),
        generated_row(rattled(perovskite(), 0.1, 2), "base-000003"),
        generated_row(fcc(), "base-000004"),
    ]
    tables.write_table(path, rows, schemas.GENERATED, {})
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prerelax")
    generated = write_generated(folder / "generated.parquet")
    out = folder / "relaxed.parquet"
    prerelax.run(settings("prerelax", prerelax=PRERELAX), generated=generated, out=out)
    return generated, out


def test_every_row_is_relaxed_or_keeps_its_reason(undisturbed):
    _, out = undisturbed
    rows = tables.read_table(out, schemas.RELAXED).to_pylist()
    assert [row["id"] for row in rows] == [f"base-{n:06d}" for n in range(5)]
    statuses = ["ok", "bad_number", "isolated_atoms", "ok", "ok"]
    assert [row["status"] for row in rows] == statuses
    assert rows[1]["error"] == "line 1: 'x' is not a number"
    assert rows[2]["error"] == "2 of 2 atoms have no neighbor within 6 angstrom"
    for row in rows:
        crystal = tables.crystal_of(row)
        assert (crystal is not None) == (row["status"] == "ok")
        assert row["potential"] == "CHGNet 0.3.0, relaxed to 0.1 eV/Å in at most 60 steps"
        if crystal is None:
            assert row["final_energy_per_atom"] is None
            assert row["delta_energy_per_atom"] is row["delta_energy_per_cell"] is None
            continue
        assert row["converged"]
        assert row["max_force"] < 0.1
        assert row["formula"] == crystal.formula
        assert row["final_energy_per_atom"] <= row["initial_energy_per_atom"]
        delta = row["initial_energy_per_atom"] - row["final_energy_per_atom"]
        assert row["delta_energy_per_atom"] == delta
        assert row["delta_energy_per_cell"] == pytest.approx(delta * crystal.num_atoms)
    # Rock salt's experimental lattice constant is 5.64 angstrom.
    assert tables.crystal_of(rows[0]).lengths[0] * 2**0.5 == pytest.approx(5.64, abs=0.1)


def test_times_are_in_a_file_beside_the_table(undisturbed):
    _, out = undisturbed
    times = tables.read_table(prerelax.times_path(out), schemas.TIMES).to_pylist()
    assert [row["id"] for row in times] == [f"base-{n:06d}" for n in range(5)]
    assert [row["seconds"] > 0 for row in times] == [True, False, True, True, True]
    counts = read_provenance(out)["counts"]
    assert (counts["rows_in"], counts["rows_failed"], counts["not_converged"]) == (5, 2, 0)
    assert counts["reasons"] == {"bad_number": 1, "isolated_atoms": 1}


def test_killed_and_run_again_gives_the_same_bytes(undisturbed, tmp_path):
    generated, expected = undisturbed
    out = tmp_path / "relaxed.parquet"
    given = settings("prerelax", prerelax=PRERELAX)
    text = json.dumps({"seed": given.seed, "version": given.version, **given.values})
    command = [sys.executable, "-m", "flowllm", "prerelax", "--settings", text]
    command += ["--generated", str(generated), "--out", str(out)]
    parts = tmp_path / ".relaxed.parquet.partial"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 120
    while not list(parts.glob("part-*.parquet")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert 1 <= len(list(parts.glob("part-*.parquet"))) <= 2  # of three
    mark_times(parts / "part-00000000.parquet", 12345.0)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert out.read_bytes() == expected.read_bytes()
    assert not parts.exists()
    # The first two rows were not computed again.
    times = tables.read_table(prerelax.times_path(out), schemas.TIMES).to_pylist()
    assert [row["seconds"] == 12345.0 for row in times] == [True, True, False, False, False]


def mark_times(part, seconds):
    """Set the wall times of a saved part; the relaxed table does not contain them."""
    table = pq.read_table(part)
    place = table.schema.get_field_index("seconds")
    times = pa.array([seconds] * table.num_rows, pa.float64())
    pq.write_table(table.set_column(place, table.schema.field(place), times), part)


def test_other_settings_do_not_resume_from_these(undisturbed, tmp_path):
    generated, expected = undisturbed
    out = tmp_path / "relaxed.parquet"
    changed = PRERELAX | {"max_steps": 1}
    prerelax.run(settings("prerelax", prerelax=changed), generated=generated, out=out)
    rows = tables.read_table(out, schemas.RELAXED).to_pylist()
    assert [row["num_steps"] for row in rows] == [3, None, None, 3, 2]
    assert out.read_bytes() != expected.read_bytes()


def test_constraints_are_in_the_rows(undisturbed, tmp_path):
    generated, _ = undisturbed
    out = tmp_path / "relaxed.parquet"
    how = PRERELAX | {"keep_symmetry": True, "fixed_cell": True}
    prerelax.run(settings("prerelax", prerelax=how), generated=generated, out=out)
    before = tables.read_table(generated, schemas.GENERATED).to_pylist()
    for row, start in zip(tables.read_table(out, schemas.RELAXED).to_pylist(), before, strict=True):
        assert row["potential"].endswith("60 steps, symmetry kept, cell fixed (upper bounds)")
        crystal = tables.crystal_of(row)
        if crystal is not None:
            # The cell was moved to its exact symmetry, by less than the tolerance.
            assert crystal.lengths == pytest.approx(tables.crystal_of(start).lengths, abs=0.1)
