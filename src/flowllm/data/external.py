"""Other models' samples in the formats that they are published in.

Nothing in a file is executed: all formats are parsed as data.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from flowllm.crystal import Crystal
from flowllm.data import sample_files
from flowllm.data.cif_blocks import decode_cif, split_blocks
from flowllm.data.csv_file import large_fields
from flowllm.data.properties import parse_property
from flowllm.data.sample_crystals import (
    NAME_COLUMNS,
    STRUCTURE_COLUMNS,
    UnparsedSample,
    crystal_from_block,
    crystal_from_text,
    failed_sample,
)
from flowllm.data.sample_files import read_bytes, read_text, suffix_of
from flowllm.data.sample_json import read_json
from flowllm.data.sample_text import read_poscar
from flowllm.data.sample_xyz import read_xyz
from flowllm.errors import FlowllmError

PROPERTIES = {
    "known_e_above_hull": "e_above_hull",
    "known_formation_energy": "formation_energy_per_atom",
}
"""Properties of a source's crystals by the keys of `external_samples`."""

_JSON = (*sample_files.JSON, *sample_files.JSON_LINES)


def read_samples(
    path: Path, column: str | None = None, known: Mapping[str, str] | None = None
) -> Iterator[UnparsedSample]:
    """Return the samples of a file or folder in its order, not parsed yet.

    Args:
        path: a folder of CIF and POSCAR files (see `sample_files.sample_files`), one such file, or
            a .csv, .json, .jsonl, .extxyz, .xyz or .pt file; each but .pt also with .gz.
        column: the column of the CSV, or the key of JSON's records, that contains the crystals;
            None finds it.
        known: columns of the CSV with known energies, by the names of `UnparsedSample.known`.

    Raises:
        FlowllmError: the file is missing, too large, of an unknown format, does not match its
            suffix, or lacks a column.
    """
    if not path.exists():
        raise FlowllmError(f"{path}: no such file or folder")
    is_csv = suffix_of(path) in sample_files.CSV and not path.is_dir()
    if known and not is_csv:
        key, given = next(iter(known.items()))
        raise FlowllmError(
            f"{path}: {key}: {given} names a column, which is read from CSV only; remove {key} "
            "from the row of external_samples"
        )
    takes_column = is_csv or (suffix_of(path) in _JSON and not path.is_dir())
    if column is not None and not takes_column:
        raise FlowllmError(
            f"{path}: column {column!r} is named, which only CSV and JSON have; remove `column:` "
            "from the row of external_samples"
        )
    if path.is_dir() or suffix_of(path) in sample_files.CIF or sample_files.is_poscar(path):
        return _read_files(path)
    if is_csv:
        return _read_csv(path, column, known or {})
    if suffix_of(path) in _JSON:
        return read_json(path, column)
    if suffix_of(path) in sample_files.XYZ:
        return read_xyz(path)
    if path.suffix.lower() in sample_files.PT:
        # torch takes seconds to import.
        from flowllm.data.sample_tensors import read_pt

        return read_pt(path)
    raise FlowllmError(
        f"{path}: unknown format; give a folder or a file of {sample_files.IN_FOLDERS}, or one "
        f"file of {sample_files.ALONE}"
    )


def _read_files(path: Path) -> Iterator[UnparsedSample]:
    """Read a folder's files, or one file; an unreadable file of a folder is one failed sample."""
    left = sample_files.MAX_BYTES
    for file in sample_files.sample_files(path):
        name = file.relative_to(path).as_posix() if file != path else file.name
        try:
            text = decode_cif(read_bytes(file))
        except FlowllmError as error:
            if file == path:
                raise
            yield failed_sample(name, error)
            continue
        left -= len(text)
        if left < 0:
            raise sample_files.too_large(path, sample_files.MAX_BYTES)
        if sample_files.is_poscar(file):
            yield UnparsedSample(name, partial(_from_poscar, text))
            continue
        # A file without atoms is one failed sample.
        blocks = split_blocks(text) or [text]
        for number, block in enumerate(blocks, start=1):
            own = name if len(blocks) == 1 else f"{name}#{number}"
            yield UnparsedSample(own, partial(crystal_from_block, block))


def _from_poscar(text: str) -> Crystal:
    return Crystal.from_structure(read_poscar(text))


def _read_csv(path: Path, column: str | None, known: Mapping[str, str]) -> Iterator[UnparsedSample]:
    try:
        with large_fields():
            reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
            header = list(reader.fieldnames or ())
            crystals = _structure_column(path, header, column)
            _check_columns(path, header, known)
            rows = list(reader)
    except csv.Error as error:
        raise FlowllmError(
            f"{path}: not CSV ({error}); the file may be cut off, get it again"
        ) from error
    lower = {name.lower().strip(): name for name in reversed(header)}
    names = next((lower[name] for name in NAME_COLUMNS if name in lower), None)
    for number, row in enumerate(rows):
        name = (row[names] if names is not None else None) or f"row {number}"
        if None in row:
            said = f"a row with more cells than the header, which has {len(header)}"
            yield failed_sample(name, FlowllmError(said))
        else:
            energies = _known_energies(path, number, row, known)
            yield UnparsedSample(name, partial(crystal_from_text, row[crystals] or ""), energies)


def _check_columns(path: Path, header: Sequence[str], known: Mapping[str, str]) -> None:
    """Refuse a header without one of the columns with known energies, or with two of one name."""
    for key, column in known.items():
        if header.count(column) != 1:
            raise FlowllmError(
                f"{path}: {header.count(column)} columns are named {column!r}, but {key} in the "
                f"row of external_samples needs one; the columns are "
                f"{', '.join(map(repr, header)) or 'none'}"
            )


def _known_energies(
    path: Path, number: int, row: Mapping[str, str | None], known: Mapping[str, str]
) -> dict[str, float]:
    """Return the known energies of a row, without those that it does not give.

    Raises:
        FlowllmError: a cell is neither an energy nor a word for an unknown value.
    """
    energies = {}
    for key, column in known.items():
        try:
            value = parse_property(PROPERTIES[key], row[column] or "")
        except ValueError as error:
            raise FlowllmError(
                f"{path}: row {number}, column {column!r} ({key}): {error}; correct the cell, or "
                "leave it empty"
            ) from error
        if value is not None:
            energies[key] = value
    return energies


def _structure_column(path: Path, header: Sequence[str], column: str | None) -> str:
    """Return the column that contains the crystals.

    Raises:
        FlowllmError: no column has the name, or several have it.
    """
    if column is None:
        wanted = [name.lower() for name in STRUCTURE_COLUMNS]
        found = [name for name in header if name.lower().strip() in wanted]
        missing = f"none of the columns {', '.join(STRUCTURE_COLUMNS)}"
    else:
        exact = [name for name in header if name == column]
        found = exact or [name for name in header if name.lower().strip() == column.lower()]
        missing = f"no column {column!r}"
    if len(found) == 1:
        return found[0]
    if not found:
        raise FlowllmError(
            f"{path}: has {missing}, but {', '.join(map(repr, header)) or 'nothing'}; name the one "
            "with the crystals by `column:` in its row of external_samples"
        )
    raise FlowllmError(
        f"{path}: each of the columns {', '.join(map(repr, found))} may contain the crystals; name "
        "one by `column:` in its row of external_samples, and rename columns with the same name"
    )
