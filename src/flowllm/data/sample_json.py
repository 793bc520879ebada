"""Samples as JSON: a list, a mapping from ids, a table of pandas, or one value per line."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from flowllm.data import sample_files
from flowllm.data.sample_crystals import (
    NAME_COLUMNS,
    UnparsedSample,
    crystal_from_record,
    failed_sample,
    structure_key,
)
from flowllm.data.sample_text import unique_keys
from flowllm.errors import FlowllmError


def read_json(path: Path, column: str | None) -> Iterator[UnparsedSample]:
    """Yield the samples of a JSON file: structures, CIF, or records that contain one.

    Args:
        path: a .json, .jsonl or .ndjson file, also with .gz.
        column: the key of the records that contains the crystal; None finds it.

    Raises:
        FlowllmError: the file is not JSON, or neither a list nor a mapping.
    """
    content = sample_files.read_bytes(path)
    by_lines = sample_files.suffix_of(path) in sample_files.JSON_LINES
    try:
        values = None if by_lines else json.loads(content, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError, FlowllmError) as error:
        by_lines = isinstance(error, json.JSONDecodeError) and _is_json_lines(content)
        if not by_lines:
            raise FlowllmError(f"{path}: not JSON ({error})") from error
    if by_lines:
        yield from _read_lines(path, content, column)
        return
    if isinstance(values, dict):
        values = values.get("structures", values)
    crystals = _column_of_table(values, column)
    items, key = (_items(path, values, column), column) if crystals is None else (crystals, None)
    for name, item in items:
        yield UnparsedSample(name, partial(crystal_from_record, item, key))


def _column_of_table(values: object, column: str | None) -> list[tuple[str, object]] | None:
    """Return ids and crystals where the value is a table as pandas writes it, else None.

    pandas writes column by column: {"structure": {"0": ..., "1": ...}, "id": ...}.
    """
    key = structure_key(values, column) if isinstance(values, dict) else None
    if not isinstance(values, dict) or key in (None, "lattice"):
        return None
    crystals = values[key]
    is_column = isinstance(crystals, dict) and bool(crystals) and "lattice" not in crystals
    return list(crystals.items()) if is_column else None


def _items(path: Path, values: object, column: str | None) -> list[tuple[str, object]]:
    """Return the names and values of the samples in a JSON value."""
    if isinstance(values, dict):
        if structure_key(values, column) is None:
            return list(values.items())
        values = [values]
    if isinstance(values, list):
        return [(_name_in(one, str(number)), one) for number, one in enumerate(values)]
    raise FlowllmError(f"{path}: neither a list nor a mapping, but {type(values).__name__}")


def _is_json_lines(content: bytes) -> bool:
    """Whether a file that is not JSON as a whole begins with an object in one line."""
    lines = content.split(b"\n")
    first = next((line for line in lines if line.strip()), b"")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _read_lines(path: Path, content: bytes, column: str | None) -> Iterator[UnparsedSample]:
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise FlowllmError(f"{path}: not UTF-8 ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError, FlowllmError) as error:
            yield failed_sample(
                f"line {number}", FlowllmError(f"line {number}: not JSON ({error})")
            )
        else:
            name = _name_in(item, f"line {number}")
            yield UnparsedSample(name, partial(crystal_from_record, item, column))


def _name_in(record: object, default: str) -> str:
    """Return the name that a record contains, or the default."""
    if isinstance(record, dict):
        for key in NAME_COLUMNS:
            if isinstance(record.get(key), str | int) and record[key] != "":
                return str(record[key])
    return default
