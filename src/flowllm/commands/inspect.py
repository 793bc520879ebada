"""Describe an artefact: schema, origin, counts and first rows, for `flowllm inspect`."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from cyclopts.types import NonNegativeInt

from flowllm.errors import FlowllmError
from flowllm.io.tables import crystal_of, naming_damage, read_metadata, required_crystal
from flowllm.plain_text import printable
from flowllm.runtime.provenance import provenance_path, read_record

COUNTED_VALUES = 12
"""Most distinct values of a text or Boolean column that are counted."""

CRYSTAL_COLUMNS = ("atomic_numbers", "frac_coords", "lengths", "angles")


def run(file: Path, /, *, rows: NonNegativeInt = 3, cif: str | None = None) -> None:
    """Show a file's schema, origin, counts and first rows, or one of its crystals as CIF.

    Args:
        file: Parquet file of the pipeline.
        rows: Number of rows to show.
        cif: Id of a crystal; only this crystal is printed, as CIF.

    Raises:
        FlowllmError: the file is missing, is not Parquet, or has no crystal of this id.
    """
    if cif is not None:
        print(cif_of(file, cif), end="")
    else:
        print("\n".join(describe(file, rows)))


def read(path: Path) -> pa.Table:
    """Read a Parquet file of any schema.

    Raises:
        FlowllmError: the file is missing or not Parquet.
    """
    with naming_damage(path):
        return pq.read_table(path)


def describe(path: Path, num_rows: int) -> Iterator[str]:
    """Yield the lines that describe a file, as printable text.

    Args:
        path: a Parquet file of the pipeline.
        num_rows: number of rows to show.

    Raises:
        FlowllmError: the file is missing or not Parquet.
    """
    for line in _lines(path, num_rows):
        yield printable(line)


def _lines(path: Path, num_rows: int) -> Iterator[str]:
    table = read(path)
    yield f"{path}: {table.num_rows} rows, {path.stat().st_size:,} bytes"
    yield from _origin(path)
    yield ""
    yield "Columns"
    width = max(map(len, table.column_names), default=0)
    for field in table.schema:
        column = table.column(field.name)
        yield f"  {field.name:{width}}  {field.type}  {_values(column)}".rstrip()
    if num_rows and table.num_rows:
        yield ""
        yield "Rows"
        for row in table.slice(0, num_rows).to_pylist():
            yield from _row(row, path)


def _origin(path: Path) -> Iterator[str]:
    metadata = read_metadata(path)
    if not metadata:
        yield "  has no metadata of FlowLLM"
        return
    said = {name: metadata.get(name, "?") for name in ("stage", "package_version", "seed")}
    yield (
        f"  made by {said['stage']}, flowllm {said['package_version']}, seed {said['seed']}, "
        f"schema {metadata['schema_version']}"
    )
    yield f"  settings {json.dumps(metadata.get('settings', {}), sort_keys=True)}"
    for role, digest in metadata.get("inputs", {}).items():
        yield f"  input {role} {digest[:16]}"
    if provenance_path(path).exists():
        record = read_record(provenance_path(path))
        yield (
            f"  {record['started']}, {record['seconds']} s, {record['peak_memory_mb']} MiB, "
            f"commit {record.get('commit')}"
        )
        yield f"  counts {json.dumps(record['counts'], sort_keys=True)}"


def _values(column: pa.ChunkedArray) -> str:
    """Return a summary of a column: counts of few values, the range of numbers, nulls."""
    said = []
    kind = column.type
    if pa.types.is_boolean(kind) or pa.types.is_string(kind):
        counts = Counter(column.drop_null().to_pylist())
        if 0 < len(counts) <= COUNTED_VALUES:
            ranked = sorted(counts.items(), key=lambda item: (-item[1], str(item[0])))
            said.append(", ".join(f"{_short(value)} {count}" for value, count in ranked))
        elif counts:
            said.append(f"{len(counts)} distinct")
    elif (pa.types.is_floating(kind) or pa.types.is_integer(kind)) and len(column.drop_null()):
        values = column.drop_null().to_pylist()
        said.append(f"{min(values):.6g} to {max(values):.6g}")
    if column.null_count:
        said.append(f"{column.null_count} null")
    return "; ".join(said)


def _row(row: dict[str, Any], path: Path) -> Iterator[str]:
    """Yield the lines of a row: its crystal, then the columns with a value."""
    yield f"- {row.get('id', row.get('material_id', ''))}".rstrip()
    if row.get("lengths") is not None and row.get("atomic_numbers") is not None:
        crystal = required_crystal(row, path)
        lengths = " ".join(f"{value:.3f}" for value in crystal.lengths)
        angles = " ".join(f"{value:.2f}" for value in crystal.angles)
        yield f"    crystal: {crystal.formula}, {lengths} angstrom, {angles} degrees"
    for name, value in row.items():
        if value is not None and name not in ("id", *CRYSTAL_COLUMNS):
            yield f"    {name}: {_short(value)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list | str) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def cif_of(path: Path, name: str) -> str:
    """Return one crystal of a file as CIF.

    Raises:
        FlowllmError: the file has no crystals, no row of this id, or no crystal in that row.
    """
    table = read(path)
    if not {"id", *CRYSTAL_COLUMNS} <= set(table.column_names):
        raise FlowllmError(
            f"{path}: contains no crystals; name a table of crystals, e.g. a shard of refine"
        )
    row = next((row for row in table.to_pylist() if row["id"] == name), None)
    if row is None:
        raise FlowllmError(f"{path}: no row has the id {name!r}")
    crystal = crystal_of(row)
    if crystal is None:
        reason = row.get("error") or row.get("status") or "the row is empty"
        raise FlowllmError(f"{path}: row {name!r} has no crystal: {reason}")
    return printable(crystal.to_structure().to(fmt="cif"), keep="\n")
