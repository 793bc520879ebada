"""The fingerprints stage against matminer's own averages, and what becomes of failures."""

import json
import time

import numpy as np
import pytest
from matminer.featurizers.composition import ElementProperty
from matminer.featurizers.site import CrystalNNFingerprint
from matminer.featurizers.structure import SiteStatsFingerprint
from pymatgen.core import Lattice, Structure

from crystals import fcc, perovskite, rocksalt, small_mp_20_sample
from evaluated_run import Draw, stage_settings, write_run
from flowllm.crystal import Crystal
from flowllm.evaluate.coverage import COMPOSITION_FEATURES, STRUCTURE_FEATURES
from flowllm.evaluate.fingerprints import fingerprint
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, read_table, write_table
from flowllm.relax.failures import crystal_failure
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import fingerprints, metrics


def write_generated(path, crystals):
    rows = [
        {"id": name, **crystal_columns(one), "status": "ok" if one else "rejected"}
        for name, one in crystals.items()
    ]
    write_table(path, rows, schemas.GENERATED, {})
    return path


def run_fingerprints(paths, out, workers=1, **changes):
    settings = stage_settings("fingerprints", **changes)
    fingerprints.run(settings, crystals=paths, out=out, workers=workers)
    return read_table(out, schemas.FINGERPRINTS).to_pandas().set_index("id")


def test_fingerprints_are_matminers_means(tmp_path):
    crystals = small_mp_20_sample("test", 6) | {"perovskite": perovskite()}
    path = write_generated(tmp_path / "shard.parquet", crystals)
    found = run_fingerprints([path], tmp_path / "out.parquet")
    mean = SiteStatsFingerprint(CrystalNNFingerprint.from_preset("ops"), stats=("mean",))
    magpie = ElementProperty.from_preset("magpie", impute_nan=False)
    for name, crystal in crystals.items():
        structure = crystal.to_structure()
        row = found.loc[name]
        assert row.structure_fingerprint == pytest.approx(mean.featurize(structure), abs=1e-12)
        assert row.composition_fingerprint == pytest.approx(
            magpie.featurize(structure.composition), nan_ok=True
        )
        assert row.density == pytest.approx(structure.density)
    assert found.status.eq("ok").all()


def test_a_fingerprint_is_the_mean_over_the_sites():
    """Fluorite: one calcium in a cube of fluorine, two fluorine in a tetrahedron of calcium."""
    lattice = Lattice([[0, 2.73, 2.73], [2.73, 0, 2.73], [2.73, 2.73, 0]])
    fluorite = Structure(lattice, ["Ca", "F", "F"], [[0] * 3, [0.25] * 3, [0.75] * 3])
    row = fingerprint(("fluorite", Crystal.from_structure(fluorite)))
    labels = CrystalNNFingerprint.from_preset("ops").feature_labels()
    by_label = dict(zip(labels, row["structure_fingerprint"], strict=True))
    assert by_label["body-centered cubic CN_8"] == pytest.approx(1 / 3, abs=1e-3)
    assert by_label["tetrahedral CN_4"] == pytest.approx(2 / 3, abs=1e-3)


def test_known_coordination_and_composition():
    row = fingerprint(("salt", rocksalt()))
    labels = CrystalNNFingerprint.from_preset("ops").feature_labels()
    assert len(row["structure_fingerprint"]) == STRUCTURE_FEATURES
    assert dict(zip(labels, row["structure_fingerprint"], strict=True))[
        "octahedral CN_6"
    ] == pytest.approx(1, abs=1e-3)
    labels = ElementProperty.from_preset("magpie").feature_labels()
    assert len(row["composition_fingerprint"]) == COMPOSITION_FEATURES
    by_label = dict(zip(labels, row["composition_fingerprint"], strict=True))
    assert by_label["MagpieData mean Number"] == (11 + 17) / 2
    assert row["num_elements"] == 2
    assert row["density"] == pytest.approx(2.16, abs=0.01)  # halite


def test_failures_are_rows_with_their_reason(tmp_path):
    crystals = {"a": rocksalt(), "b": None, "c": fcc()}
    path = write_generated(tmp_path / "shard.parquet", crystals)
    found = run_fingerprints([path], tmp_path / "out.parquet", max_seconds=1e-4)
    assert found.status.to_list() == ["timeout", "no_crystal", "timeout"]
    assert found.error["a"] == "not finished after 0.0001 s"
    assert np.isnan(found.density["b"])


def cell(lengths, angles=(90, 90, 90), count=20):
    """A crystal of other models' kind: random coordinates in any cell."""
    coords = np.random.default_rng(0).random((count, 3))
    return Crystal.from_arrays([11, 17] * (count // 2), coords, lengths, angles)


@pytest.mark.parametrize(
    ("crystal", "reason"),
    [
        (cell((1000, 0.01, 0.01)), "too_dense"),
        (cell((0.001, 0.001, 0.001), count=2), "too_dense"),
        (cell((0.001, 200, 200)), "flat_cell"),
        (cell((3, 3, 1e6)), "too_sparse"),
        (cell((1e6, 1e6, 1e6)), "too_sparse"),
        (cell((1e38, 1, 1)), "too_sparse"),
        (cell((1e-38, 1, 1)), "no_volume"),
    ],
)
def test_cells_that_nothing_can_be_computed_in_are_said_before_any_search(crystal, reason):
    started = time.perf_counter()
    row = fingerprint(("x", crystal))
    assert time.perf_counter() - started < 1
    assert row["status"] == reason
    assert row["error"]
    assert "structure_fingerprint" not in row
    assert row["density"] is None or np.isfinite(row["density"])


def test_a_needle_that_passes_the_checks_is_ended_from_outside(tmp_path):
    """0.01, 3 and 1,000 angstrom: CrystalNN takes minutes and 20 GB in C, deaf to alarms."""
    needle = cell((0.01, 3, 1000))
    assert crystal_failure(needle) is None
    crystals = {"a": rocksalt(), "needle": needle, "b": fcc(), "none": None}
    path = write_generated(tmp_path / "shard.parquet", crystals)
    started = time.perf_counter()
    found = run_fingerprints([path], tmp_path / "out.parquet", max_seconds=4)
    assert time.perf_counter() - started < 40
    assert found.status["needle"] in ("timeout", "out_of_memory")
    assert found.status.drop("needle").to_list() == ["ok", "ok", "no_crystal"]
    counts = read_provenance(tmp_path / "out.parquet")["counts"]
    assert (counts["rows_out"], counts["rows_failed"]) == (2, 1)


def test_metrics_count_a_crystal_without_fingerprint_with_its_reason(tmp_path):
    draws = [
        Draw(rocksalt(), rocksalt(), 0.1),
        Draw(cell((1000, 0.01, 0.01)), relaxed_status="too_dense"),
    ]
    run = write_run(tmp_path, draws, {})
    metrics.run(stage_settings("metrics"), **run.paths(), out=run.out, workers=1)
    numbers = json.loads(run.out.read_text())
    assert numbers["counts"]["fingerprints"] == {"ok": 1, "too_dense": 1}
    assert numbers["rates"]["validity"]["numerator"] == 1


def test_bytes_do_not_depend_on_workers(tmp_path):
    path = write_generated(tmp_path / "shard.parquet", {"a": rocksalt(), "b": fcc(), "c": None})
    written = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}" / "out.parquet"
        run_fingerprints([path], out, workers)
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_the_test_split_is_a_table_it_reads(tmp_path):
    run = write_run(tmp_path, [Draw(rocksalt(), rocksalt(), 0.1)], {"test": {"mp-1": fcc()}})
    found = read_table(run.test_fingerprints, schemas.FINGERPRINTS).to_pylist()
    assert [(row["id"], row["status"]) for row in found] == [("mp-1", "ok")]
