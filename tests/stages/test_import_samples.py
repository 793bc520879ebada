"""The stage import_samples: other models' samples become tables like ours, and are measured so."""

import csv
import json

import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from crystals import rocksalt
from evaluated_run import HULL_COMPOSITIONS, STABILITY_RULE, stage_settings, write_splits
from flowllm.config.stage_settings import StageSettings
from flowllm.data.external import read_samples
from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, crystal_of, read_table, write_table
from flowllm.stages import fingerprints, import_samples, metrics
from import_samples_parts import read_in
from sample_formats import CRYSTALS, FORMATS


@pytest.fixture
def samples(tmp_path):
    """A folder of CIF files, as DiffCSP and others export it."""
    FORMATS["cifs"](tmp_path / "cifs")
    return tmp_path / "cifs"


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_together_hold_every_sample_once(samples, tmp_path, shards):
    base, generated = read_in(samples, tmp_path, shards)
    for paths, schema in ((base, schemas.BASE), (generated, schemas.GENERATED)):
        rows = [row for path in paths for row in read_table(path, schema).to_pylist()]
        assert [row["id"] for row in rows] == [f"Other-{index:06d}" for index in range(3)]
        assert [row["formula"] for row in rows] == [one.formula for one in CRYSTALS]
        for row, expected in zip(rows, CRYSTALS, strict=True):
            assert crystal_of(row).lengths == pytest.approx(expected.lengths, abs=1e-4)


def test_a_flow_starts_from_the_cell_of_its_training_and_the_row_keeps_its_own(tmp_path):
    """Rock salt in its cubic cell of eight atoms has a primitive cell of two."""
    cubic = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    (tmp_path / "cifs").mkdir()
    cubic.to(filename=str(tmp_path / "cifs" / "salt.cif"))
    (base,), (generated,) = read_in(tmp_path / "cifs", tmp_path, cell="primitive")
    [start], [given] = (
        read_table(path, schema).to_pylist()
        for path, schema in ((base, schemas.BASE), (generated, schemas.GENERATED))
    )
    assert (start["formula"], given["formula"]) == ("Na1Cl1", "Na4Cl4")
    assert start["angles"] == pytest.approx([60] * 3)
    matcher = StructureMatcher(primitive_cell=True)
    assert matcher.fit(crystal_of(start).to_structure(), cubic)


def test_a_crystal_without_the_cell_is_a_row_with_the_reason(tmp_path):
    needle = Structure(Lattice.tetragonal(3.0, 3.0), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.01]])
    (tmp_path / "cifs").mkdir()
    needle.to(filename=str(tmp_path / "cifs" / "near.cif"))
    (base,), _ = read_in(tmp_path / "cifs", tmp_path, cell="standard")
    [row] = read_table(base, schemas.BASE).to_pylist()
    assert row["status"] == "close_atoms"
    assert crystal_of(row) is None


def test_a_bad_sample_is_a_row_with_its_error(samples, tmp_path):
    (samples / "001.cif").write_text("not a CIF")
    _, (generated,) = read_in(samples, tmp_path)
    rows = read_table(generated, schemas.GENERATED).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "unreadable", "ok"]
    assert "bad_cif" in rows[1]["error"]
    assert crystal_of(rows[1]) is None


@pytest.mark.parametrize("shards", [1, 2])
def test_a_file_of_which_nothing_can_be_read_is_no_model_of_zero_percent(tmp_path, shards):
    (tmp_path / "odd.json").write_text(json.dumps([{"atoms": "NaCl"}] * 4))
    said = r"odd\.json: none of its 4 samples can be read \(KeyError: 'lattice'\)"
    with pytest.raises(FlowllmError, match=said):
        read_in(tmp_path / "odd.json", tmp_path, shards)


def test_a_shard_of_bad_samples_beside_a_good_one(samples, tmp_path):
    (samples / "001.cif").write_text("not a CIF")
    _, generated = read_in(samples, tmp_path, 3)
    statuses = [read_table(path, schemas.GENERATED)["status"].to_pylist() for path in generated]
    assert statuses == [["ok"], ["unreadable"], ["ok"]]


def drawn(file, folder, count, shards=1, seed=1):
    """The names in the source of the samples that are used, in the order of the tables."""
    _, generated = read_in(
        file, folder / f"{count}-{shards}-{seed}", shards, seed, max_crystals=count
    )
    tables = [read_table(path, schemas.IMPORTED) for path in generated]
    return [name for table in tables for name in table["source_name"].to_pylist()]


def test_some_samples_are_drawn_by_the_seed_and_more_keep_them(tmp_path):
    """In the order of the file, however the row is divided; an unreadable one can be drawn."""
    path = tmp_path / "many.csv"
    cif = rocksalt().to_structure().to(fmt="cif")
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([("id", "cif"), *((f"s{i}", cif) for i in range(40))])
    names = [f"s{i}" for i in range(40)]
    seven, twenty = drawn(path, tmp_path, 7), drawn(path, tmp_path, 20)
    assert (len(seven), len(twenty)) == (7, 20)
    assert set(seven) < set(twenty)
    assert twenty == sorted(twenty, key=names.index)
    assert twenty != names[:20]
    assert drawn(path, tmp_path, 20, shards=3) == twenty
    assert drawn(path, tmp_path, 20, seed=2) != twenty
    assert drawn(path, tmp_path, 40) == drawn(path, tmp_path, 1000) == names
    _, (generated,) = read_in(path, tmp_path / "ids", max_crystals=7)
    ids = read_table(generated, schemas.IMPORTED)["id"].to_pylist()
    assert ids == [f"Other-{names.index(name):06d}" for name in seven]


def test_the_log_has_the_unreadable_samples_by_reason(tmp_path, caplog):
    path = tmp_path / "some.csv"
    cif = rocksalt().to_structure().to(fmt="cif")
    rows = [("a", cif), ("b", ""), ("c", "{1, 2"), ("d", ""), ("e", cif)]
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([("id", "cif"), *rows])
    read_in(path, tmp_path)
    said = [one.getMessage() for one in caplog.records if "cannot be read" in one.getMessage()]
    assert "2 of 5 samples cannot be read, first b: FlowllmError: an empty cell" in said[0]
    assert "1 of 5 samples cannot be read, first c:" in said[1]


def test_known_energies_are_columns_of_the_table(tmp_path):
    path = tmp_path / "some.csv"
    cif = rocksalt().to_structure().to(fmt="cif")
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([("cif", "e"), (cif, "0.25"), (cif, "")])
    _, (generated,) = read_in(path, tmp_path, known_e_above_hull="e")
    table = read_table(generated, schemas.SAMPLES_WITH_ENERGIES)
    assert table["known_e_above_hull"].to_pylist() == [0.25, None]
    assert table["known_formation_energy"].to_pylist() == [None, None]
    assert read_table(generated, schemas.GENERATED).num_rows == 2


@pytest.mark.parametrize(("content", "count"), [("[]", 0), (None, 3)])
def test_fewer_samples_than_shards(samples, tmp_path, content, count):
    if content is not None:
        samples = tmp_path / "none.json"
        samples.write_text(content)
    with pytest.raises(FlowllmError, match=f"{samples.name}: {count} samples, fewer than 4 shards"):
        read_in(samples, tmp_path, 4)


def test_a_shard_that_is_not_the_rows(samples, tmp_path):
    row = {"name": "Other", "file": str(samples), "shards": 2}
    given = StageSettings("import_samples", {"seed": 1, "version": 1, "external": row})
    with pytest.raises(FlowllmError, match="Other: has shards 0 to 1, not 2"):
        import_samples.run(given, shard=2, base=tmp_path / "b.parquet", out=tmp_path / "o.parquet")


@pytest.mark.parametrize("name", FORMATS)
def test_samples_of_every_format_are_measured_like_ours(tmp_path, name):
    samples = tmp_path / name
    FORMATS[name](samples)
    base, generated = read_in(samples, tmp_path, 2)
    relaxed = [
        {
            "id": f"Other-{i:06d}",
            **crystal_columns(one),
            "potential": "p",
            "final_energy_per_atom": -3.0,
            "status": "ok",
        }
        for i, one in enumerate(CRYSTALS)
    ]
    write_table(tmp_path / "relaxed.parquet", relaxed, schemas.RELAXED, {})
    stability = [
        {
            "id": row["id"],
            "energy_per_atom": -3.0,
            "e_above_hull": -0.1,
            "stable": i < 2,
            "metastable": True,
            "status": "ok",
        }
        for i, row in enumerate(relaxed)
    ]
    rule = {"settings": {"stability": STABILITY_RULE}, "hull_compositions": HULL_COMPOSITIONS}
    rule |= {"hull_not_converged": 0}
    write_table(tmp_path / "stability.parquet", stability, schemas.STABILITY, rule)
    write_splits(tmp_path / "crystals", {"train": {"mp-1": rocksalt()}})
    test = tmp_path / "crystals" / "test.parquet"
    for name, shards in (("Other", generated), ("test", [test])):
        given = stage_settings("fingerprints")
        fingerprints.run(given, crystals=shards, out=tmp_path / f"fp-{name}.parquet", workers=1)
    metrics.run(
        stage_settings("metrics"),
        base=base,
        generated=generated,
        relaxed=[tmp_path / "relaxed.parquet"],
        stability=tmp_path / "stability.parquet",
        fingerprints=tmp_path / "fp-Other.parquet",
        test_fingerprints=tmp_path / "fp-test.parquet",
        crystals=tmp_path / "crystals",
        out=tmp_path / "Other.json",
        workers=1,
    )
    numbers = json.loads((tmp_path / "Other.json").read_text())
    assert numbers["rates"]["sun_rate"]["numerator"] == 1  # the perovskite; rock salt is known
    assert numbers["sampling"]["external"]["file"] == str(samples)
    assert numbers["sampling"]["setting"] == {}
    flags = read_table(tmp_path / "Other.parquet", schemas.METRICS_PER_CRYSTAL)
    named = [sample.name for sample in read_samples(samples)]
    assert flags["source_name"].to_pylist() == named
