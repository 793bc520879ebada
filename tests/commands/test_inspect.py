"""`flowllm inspect` against files whose content is known."""

import pytest
from pymatgen.core import Structure

from crystals import fcc, rocksalt
from evaluated_run import stage_settings
from flowllm.cli import app
from flowllm.commands.inspect import cif_of, describe
from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.tables import crystal_columns, write_table
from flowllm.stages import fingerprints


@pytest.fixture
def shard(tmp_path):
    rows = [
        {"id": "a", **crystal_columns(rocksalt()), "num_steps": 5, "status": "ok"},
        {"id": "b", **crystal_columns(fcc()), "num_steps": 9, "status": "ok"},
        {"id": "c", "status": "rejected", "error": "no text"},
    ]
    path = tmp_path / "shard-00000.parquet"
    metadata = {"stage": "refine", "seed": 7, "settings": {"refine": {"batch_size": 4}}}
    write_table(path, rows, schemas.GENERATED, metadata)
    return path


def test_columns_are_counted(shard):
    text = "\n".join(describe(shard, 3))
    assert "3 rows" in text
    assert "made by refine" in text
    assert "seed 7" in text
    assert '"batch_size": 4' in text
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  ")]
    assert ["status", 'string  "ok" 2, "rejected" 1'] in lines
    assert ["num_steps", "int32  5 to 9; 1 null"] in lines
    assert "crystal: Na1Cl1, 3.988 3.988 3.988 angstrom, 60.00 60.00 60.00 degrees" in text
    assert 'error: "no text"' in text


def test_rows_are_as_many_as_asked_for(shard):
    lines = list(describe(shard, 1))
    assert [line for line in lines if line.startswith("- ")] == ["- a"]
    assert "Rows" not in list(describe(shard, 0))


def test_provenance_of_a_real_stage_is_shown(shard):
    out = shard.with_name("fingerprints.parquet")
    fingerprints.run(stage_settings("fingerprints"), crystals=[shard], out=out, workers=1)
    text = "\n".join(describe(out, 0))
    assert '"rows_in": 3, "rows_out": 2' in text
    assert "commit" in text
    assert "input crystals" in text


def test_cif_is_the_crystal(shard, capsys):
    app(["inspect", str(shard), "--cif", "a"], exit_on_error=False)
    structure = Structure.from_str(capsys.readouterr().out, fmt="cif")
    assert structure.matches(rocksalt().to_structure())


def test_every_column_type_of_the_schemas_is_shown(tmp_path):
    for name in ("PAIRS", "BASE", "RELAXED", "STABILITY", "METRICS_PER_CRYSTAL", "FINGERPRINTS"):
        schema = getattr(schemas, name)
        write_table(tmp_path / "empty.parquet", [], schema, {})
        text = "\n".join(describe(tmp_path / "empty.parquet", 3))
        assert all(column in text for column in schema.names)


@pytest.mark.parametrize(
    ("name", "message"), [("c", "no crystal: no text"), ("z", "no row has the id 'z'")]
)
def test_crystals_that_are_not_there(shard, name, message):
    with pytest.raises(FlowllmError, match=message):
        cif_of(shard, name)


def test_files_that_are_not_ours(tmp_path):
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(FlowllmError, match="not a readable Parquet file"):
        list(describe(tmp_path / "text.parquet", 1))
    with pytest.raises(FlowllmError, match="no such file"):
        list(describe(tmp_path / "none.parquet", 1))
