"""Tables: what is written is what is read, byte for byte, and never half a file."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crystals import perovskite, rocksalt
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.io import hull_schemas, tables
from flowllm.io import schemas as schemas_module
from flowllm.io.files import atomic_path, write_text
from flowllm.io.schemas import CRYSTALS, REJECTED, SCHEMA_VERSION, TIMES
from flowllm.io.tables import (
    crystal_columns,
    crystal_of,
    read_metadata,
    read_table,
    read_tables,
    write_table,
)
from tables_parts import crystals

SCHEMAS = {
    name: schema for name, schema in vars(schemas_module).items() if isinstance(schema, pa.Schema)
}
CRYSTAL_TABLES = {name: s for name, s in SCHEMAS.items() if "atomic_numbers" in s.names}

METADATA = {"settings": {"b": 1, "a": [1.5, None]}, "seed": 42}

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def row(name: str, crystal: Crystal | None) -> dict:
    return {"id": name, **crystal_columns(crystal), "num_atoms": crystal and crystal.num_atoms}


def assert_equal(one: Crystal, other: Crystal) -> None:
    for name in ("atomic_numbers", "frac_coords", "lengths", "angles"):
        first, second = getattr(one, name), getattr(other, name)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)


@in_one_folder
@given(members=st.lists(crystals(), max_size=4))
def test_crystals_come_back_exactly(tmp_path, members):
    path = tmp_path / "crystals.parquet"
    write_table(path, [row(f"c{i}", c) for i, c in enumerate(members)], CRYSTALS, METADATA)
    found = read_table(path, CRYSTALS).to_pylist()
    assert [r["id"] for r in found] == [f"c{i}" for i in range(len(members))]
    for r, crystal in zip(found, members, strict=True):
        assert_equal(crystal_of(r), crystal)


@pytest.mark.parametrize("schema", CRYSTAL_TABLES.values(), ids=CRYSTAL_TABLES)
def test_every_table_of_crystals_has_the_shared_columns(schema):
    assert schema.field("id") == pa.field("id", pa.string(), nullable=False)
    assert schema.field("atomic_numbers").type == pa.list_(pa.uint8())
    assert schema.field("frac_coords").type == pa.list_(pa.list_(pa.float32(), 3))
    assert schema.field("lengths").type == pa.list_(pa.float32(), 3)
    assert schema.field("angles").type == pa.list_(pa.float32(), 3)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_every_table_opens_with_pandas(tmp_path, schema):
    values = {"string": "x", "bool": True, "double": 0.5}
    full = {
        field.name: values.get(str(field.type), 1)
        for field in schema
        if not pa.types.is_nested(field.type)
    }
    nulls = {field.name: full[field.name] for field in schema if not field.nullable}
    crystal = {k: v for k, v in crystal_columns(rocksalt()).items() if k in schema.names}
    path = tmp_path / "table.parquet"
    write_table(path, [{**full, **crystal}, nulls], schema, METADATA)
    frame = pd.read_parquet(path)
    assert list(frame.columns) == schema.names
    assert len(frame) == 2
    for name, value in crystal.items():
        assert np.array_equal(np.stack(frame[name][0]), value) or name == "frac_coords"
        assert frame[name][1] is None


def test_equal_content_gives_equal_bytes(tmp_path):
    rows = [row("a", rocksalt()), row("b", None), row("c", perovskite())]
    paths = [tmp_path / "one" / "t.parquet", tmp_path / "two" / "t.parquet"]
    write_table(paths[0], rows, CRYSTALS, METADATA)
    # The same as a table in chunks, with the metadata's keys in another order.
    table = read_table(paths[0], CRYSTALS)
    chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    write_table(paths[1], chunks, CRYSTALS, dict(reversed(METADATA.items())))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    write_table(paths[1], rows, CRYSTALS, {**METADATA, "seed": 43})
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_metadata_and_compression(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(path, [row("a", rocksalt())], CRYSTALS, METADATA)
    assert read_metadata(path) == {"schema_version": SCHEMA_VERSION, **METADATA}
    footer = pq.read_metadata(path)
    assert footer.row_group(0).column(0).compression == "ZSTD"
    pq.write_table(pa.table({"a": [1]}), path)
    assert read_metadata(path) == {}


def test_row_groups_can_be_streamed(tmp_path):
    path = tmp_path / "t.parquet"
    rows = [{"id": str(i)} for i in range(tables.ROW_GROUP_ROWS + 1)]
    write_table(path, rows, CRYSTALS, METADATA)
    file = pq.ParquetFile(path)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [
        tables.ROW_GROUP_ROWS,
        1,
    ]


def test_null_crystals_and_targets():
    assert crystal_of(row("a", None)) is None
    target = crystal_columns(perovskite(), "target_")
    assert sorted(target) == ["target_angles", "target_frac_coords", "target_lengths"]
    assert set(crystal_columns(None, "target_").values()) == {None}
    pair = {"atomic_numbers": perovskite().atomic_numbers, **target}
    assert_equal(crystal_of(pair, "target_"), perovskite())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"id": ["a"]}), r"t\.parquet: column 'num_atoms' is missing"),
        (
            pa.table({"id": ["a"], "num_atoms": ["1"]}),
            r"t\.parquet: column 'num_atoms' is string, expected int32",
        ),
    ],
)
def test_another_schema_is_refused_by_column(tmp_path, table, message):
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    with pytest.raises(FlowllmError, match=message):
        read_table(path, CRYSTALS, ["id", "num_atoms"])
    assert read_table(path, CRYSTALS, ["id"]).num_rows == 1


def test_missing_file(tmp_path):
    with pytest.raises(FlowllmError, match=r"t\.parquet: no such file"):
        read_table(tmp_path / "t.parquet", CRYSTALS)


@in_one_folder
@given(data=st.data())
def test_broken_files_are_said_to_be_broken(tmp_path, data):
    """Cut anywhere, or with its footer overwritten anywhere: an error with the file's name."""
    path = tmp_path / "t.parquet"
    write_table(path, [row("a", rocksalt())], CRYSTALS, METADATA)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut])
    with pytest.raises(FlowllmError, match=r"t\.parquet: not a readable Parquet file"):
        read_table(path, CRYSTALS)
    footer_length = int.from_bytes(whole[-8:-4], "little")
    start = len(whole) - 8 - footer_length
    path.write_bytes(whole[:start] + b"\xff" * footer_length + whole[-8:])
    with pytest.raises(FlowllmError, match=r"t\.parquet: not a readable Parquet file"):
        read_table(path, CRYSTALS)


def test_shards_are_read_in_the_given_order(tmp_path):
    paths = [tmp_path / f"shard-{i}.parquet" for i in (2, 0, 1)]
    for i, path in enumerate(paths):
        write_table(path, [{"id": f"{i}a"}, {"id": f"{i}b"}], CRYSTALS, METADATA)
    table = read_tables(paths, CRYSTALS, ["id"])
    assert table.column("id").to_pylist() == ["0a", "0b", "1a", "1b", "2a", "2b"]


def test_an_id_may_stand_in_one_row_only(tmp_path):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path in paths:
        write_table(path, [{"id": path.name}, {"id": "same"}], CRYSTALS, METADATA)
    with pytest.raises(FlowllmError, match="more than one row has the id 'same'"):
        read_tables(paths, CRYSTALS)


def test_null_where_a_value_must_be_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises((pa.ArrowInvalid, ValueError)):
        write_table(path, [{"id": None}], CRYSTALS, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path):
    path = tmp_path / "deep" / "t.txt"
    write_text(path, "before")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        fail(temporary)
    assert [p.name for p in path.parent.iterdir()] == ["t.txt"]
    assert path.read_text() == "before"


def test_nobody_sees_half_a_file(tmp_path):
    path = tmp_path / "t.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert str(os.getpid()) in temporary.name
        assert not path.exists()
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]


def test_text_is_utf_8_everywhere(tmp_path):
    write_text(tmp_path / "t.txt", "Å, λ")
    assert (tmp_path / "t.txt").read_bytes() == "Å, λ".encode()


def test_metadata_is_readable_json_in_the_footer(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(path, [], REJECTED, METADATA)
    raw = pq.read_schema(path).metadata[tables.METADATA_KEY]
    assert json.loads(raw)["seed"] == 42


def test_every_column_says_what_it_means_in_the_file_too(tmp_path):
    schemas = {
        name: value
        for module in (schemas_module, hull_schemas)
        for name, value in vars(module).items()
        if isinstance(value, pa.Schema)
    }
    assert len(schemas) > 10
    for name, schema in schemas.items():
        for field in schema:
            assert (field.metadata or {}).get(b"meaning"), f"{name}.{field.name}"
    tables.write_table(tmp_path / "a.parquet", [{"id": "x"}], TIMES, {})
    read = pq.read_schema(tmp_path / "a.parquet")
    assert read.field("seconds").metadata[b"meaning"] == b"wall time of the crystal"
