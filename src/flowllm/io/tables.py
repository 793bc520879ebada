"""Reading and writing of Parquet tables, and of the crystals in their rows."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.io.file_errors import explain, is_refusal, remake
from flowllm.io.files import atomic_path
from flowllm.io.row_checks import WrongValue, find_wrong_value
from flowllm.io.schemas import SCHEMA_VERSION

METADATA_KEY = b"flowllm"

ROW_GROUP_ROWS = 4096

COMPACT_LEVEL = 19
"""Level of zstd for compact files, its highest without more memory for reading."""

COMPACT_ROWS = 1 << 20
"""Rows per row group of compact files."""


def crystal_columns(crystal: Crystal | None, prefix: str = "") -> dict[str, Any]:
    """Return a crystal as the four array columns of a row; null columns for None.

    With `prefix="target_"` the atom types are left out, since both crystals of a pair have one
    composition.
    """
    if crystal is None:
        columns: dict[str, Any] = dict.fromkeys(
            ("atomic_numbers", "frac_coords", "lengths", "angles")
        )
    else:
        columns = {
            "atomic_numbers": crystal.atomic_numbers.tolist(),
            "frac_coords": crystal.frac_coords.tolist(),
            "lengths": crystal.lengths.tolist(),
            "angles": crystal.angles.tolist(),
        }
    if prefix:
        del columns["atomic_numbers"]
    return {prefix + name: value for name, value in columns.items()}


def crystal_of(row: Mapping[str, Any], prefix: str = "") -> Crystal | None:
    """Return the crystal of a row of `Table.to_pylist`, or None where its columns are null."""
    if row[prefix + "lengths"] is None:
        return None
    return Crystal(
        atomic_numbers=np.asarray(row["atomic_numbers"], dtype=np.uint8),
        frac_coords=np.asarray(row[prefix + "frac_coords"], dtype=np.float32).reshape(-1, 3),
        lengths=np.asarray(row[prefix + "lengths"], dtype=np.float32),
        angles=np.asarray(row[prefix + "angles"], dtype=np.float32),
    )


def required_crystal(row: Mapping[str, Any], path: Path, prefix: str = "") -> Crystal:
    """Return the crystal of a row that must have one.

    Args:
        row: a row of `Table.to_pylist`.
        path: the table's file, for the message.
        prefix: as in `crystal_of`.

    Raises:
        FlowllmError: the crystal columns are null; the message names the file and the row.
    """
    crystal = crystal_of(row, prefix)
    if crystal is None:
        raise FlowllmError(
            f"{path}: row {row.get('id')!r} has no crystal ({prefix}lengths is null), but one "
            "is needed; make the file again with the stage that wrote it"
        )
    return crystal


def write_table(
    path: Path,
    rows: Iterable[Mapping[str, Any]] | pa.Table,
    schema: pa.Schema,
    metadata: Mapping[str, Any],
    *,
    compact: bool = False,
) -> None:
    """Write one Parquet file atomically: zstd, streaming row groups, metadata in the footer.

    Args:
        path: the final path; a missing folder is created.
        rows: dictionaries with the schema's columns (missing ones become null), or a table.
        schema: one of `io.schemas`.
        metadata: what the file is made of (`provenance.StageRun.metadata`); equal content and
            metadata give equal bytes.
        compact: whether a small file matters more than the time to write it.
    """
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=schema)
    footer = {"schema_version": SCHEMA_VERSION, **metadata}
    table = table.cast(schema).replace_schema_metadata(
        {METADATA_KEY: json.dumps(footer, sort_keys=True).encode()}
    )
    with atomic_path(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=COMPACT_LEVEL if compact else None,
            # A dictionary per column hides repetitions from zstd.
            use_dictionary=not compact,
            row_group_size=COMPACT_ROWS if compact else ROW_GROUP_ROWS,
            write_page_checksum=True,
        )


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file, and check its columns and each row against a schema.

    The version is checked only in files of `write_table`; files of other programs (pandas) have
    none.

    Raises:
        FlowllmError: the file is missing, cannot be read, is not Parquet, has another version of
            the schemas, lacks a column, or has a column with another type or a wrong value; the
            message names the file, the column and the row.
    """
    names = list(columns or schema.names)
    with naming_damage(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        found = file.schema_arrow
        _check_version(path, _footer(path, found))
        for name in names:
            if name not in found.names:
                raise FlowllmError(f"{path}: column {name!r} is missing; made by another version?")
            if found.field(name).type != schema.field(name).type:
                raise FlowllmError(
                    f"{path}: column {name!r} is {found.field(name).type}, "
                    f"expected {schema.field(name).type}"
                )
        table = file.read(columns=names).select(names)
        if (wrong := find_wrong_value(table, schema)) is not None:
            raise FlowllmError(_row_message(path, file, wrong))
    return table


@contextmanager
def naming_damage(path: Path, message: str = "not a readable Parquet file") -> Iterator[None]:
    """Convert errors of reading within the block into a message with the file and a cure.

    Args:
        path: the file, in Parquet or another format of Arrow.
        message: the problem of a damaged file.

    Raises:
        FlowllmError: the file is missing, refused by the system, or of another format.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow reports a damaged footer or page as any of these; its OSError has no errno.
        if isinstance(error, MemoryError):
            raise
        if isinstance(error, OSError) and is_refusal(error):
            raise FlowllmError(explain(error, path)) from error
        if path.is_dir():
            raise FlowllmError(
                f"{path}: a folder, but a file is expected; give the path of a file"
            ) from error
        said = str(error).splitlines()[0]
        raise FlowllmError(f"{path}: {message} ({said}); {remake(path)}") from error


def _footer(path: Path, schema: pa.Schema) -> dict[str, Any]:
    """Return the metadata of `write_table` in a footer; empty for files of other programs.

    Raises:
        FlowllmError: the metadata is damaged.
    """
    raw = (schema.metadata or {}).get(METADATA_KEY)
    try:
        footer = json.loads(raw) if raw else {}
        if footer != {} and not isinstance(footer.get("schema_version"), int):
            raise TypeError("it has no schema_version")
    except (ValueError, TypeError, AttributeError) as error:
        raise FlowllmError(
            f"{path}: FlowLLM's part of its footer is damaged ({error}); {remake(path)}"
        ) from error
    return footer


def _check_version(path: Path, footer: Mapping[str, Any]) -> None:
    version = footer.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        by = footer.get("package_version", "another version")
        cure = "update FlowLLM" if version > SCHEMA_VERSION else remake(path)
        raise FlowllmError(
            f"{path}: schema_version {version}, expected {SCHEMA_VERSION} (made by flowllm {by}); "
            f"{cure}, or use that version"
        )


def _row_message(path: Path, file: pq.ParquetFile, wrong: WrongValue) -> str:
    """Return the message of a wrong value, with the row's id where the file has ids."""
    name = ""
    if "id" in file.schema_arrow.names:
        name = f" (id {file.read(columns=['id']).column(0)[wrong.row].as_py()!r})"
    return (
        f"{path}, row {wrong.row}{name}: {wrong.field} {wrong.problem}; the table was edited or "
        f"is damaged: {remake(path)}"
    )


def read_tables(
    paths: Sequence[Path], schema: pa.Schema, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read shards in the given order as one table.

    Raises:
        FlowllmError: as in `read_table`, or two rows have one id.
    """
    table = pa.concat_tables([read_table(path, schema, columns) for path in paths])
    if "id" in table.column_names:
        ids = table.column("id").to_pylist()
        if len(set(ids)) != len(ids):
            twice, _ = Counter(ids).most_common(1)[0]
            raise FlowllmError(
                f"{paths[0].parent}: more than one row has the id {twice!r}; "
                "remove the table that does not belong to this run"
            )
    return table


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of `write_table` in a file; empty for files of other programs.

    Raises:
        FlowllmError: the file is missing, cannot be read or is not Parquet.
    """
    with naming_damage(path):
        return _footer(path, pq.read_schema(path))


def count_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file, from its footer.

    Raises:
        FlowllmError: the file is missing, cannot be read or is not Parquet.
    """
    with naming_damage(path):
        return int(pq.read_metadata(path).num_rows)


def column_names(path: Path) -> list[str]:
    """Return the columns of a Parquet file.

    Raises:
        FlowllmError: the file is missing, cannot be read or is not Parquet.
    """
    with naming_damage(path):
        return list(pq.read_schema(path).names)
