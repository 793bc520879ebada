"""Other models' samples in the formats that they are given in.

Nothing in a file is executed: CIF, POSCAR, CSV, extended XYZ and JSON are parsed as data, and of
JSON only plain values are used, never the classes that it may name; `.pt` files see `pt_file`.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike
from pymatgen.core import Element, Lattice, Structure

from flowllm.crystal import Crystal
from flowllm.data import sample_files
from flowllm.data.cif_blocks import decode_cif, split_blocks
from flowllm.data.cif_structure import read_structure
from flowllm.data.sample_files import read_bytes, suffix_of
from flowllm.data.sample_text import read_notation, read_poscar, unique_keys
from flowllm.errors import FlowllmError

STRUCTURE_COLUMNS = ("cif", "cif_string", "structure", "LeMatStructs")
"""Columns of a CSV that may hold a crystal, as CIF or as pymatgen's JSON; case does not matter."""

NAME_COLUMNS = (
    *("material_id", "sample_id", "structure_id", "entry_id", "id", "identifier", "name"),
    *("index", "unnamed: 0", ""),
)
"""Columns of a CSV, or keys of a record, that may hold a sample's name; the first is taken. pandas
writes its index under the last ones."""

CSV_FIELD_LIMIT = 1 << 26
"""Characters; Python's own limit is 131,072, and a crystal as JSON can be longer."""

_XYZ_NAME = re.compile(r"(?:^|\s)(?:material_id|id|name)=(\"(?:[^\"\\]|\\.)*\"|\S+)", re.IGNORECASE)


@dataclass(frozen=True)
class Unread:
    """A sample that is not parsed yet; a call gives its crystal, or raises why it is none.

    Attributes:
        name: what its source calls it: the file in its folder, the key, the id, or its number.
        parse: gives the crystal.
    """

    name: str
    parse: Callable[[], Crystal]

    def __call__(self) -> Crystal:
        """Parse the sample."""
        return self.parse()


def read_samples(path: Path, column: str | None = None) -> Iterator[Unread]:
    """Give the samples of a file or folder, in its order, not parsed yet.

    Args:
        path: a folder of CIF and POSCAR files (`sample_files.sample_files`), one of them, or a
            .csv, .json, .jsonl, .extxyz, .xyz or .pt file; each but .pt also with .gz.
        column: the column of the CSV, or the key of JSON's records, that holds the crystals; None
            finds it.

    Raises:
        FlowllmError: the file is missing, of an unknown format, too large, or not what its name
            says.
    """
    if not path.exists():
        raise FlowllmError(f"{path}: no such file or folder")
    takes_column = suffix_of(path) in (*sample_files.CSV, *_JSON) and not path.is_dir()
    if column is not None and not takes_column:
        raise FlowllmError(
            f"{path}: column {column!r} is named, which only CSV and JSON have; remove `column:` "
            "from the row of external_samples"
        )
    if path.is_dir() or suffix_of(path) in sample_files.CIF or sample_files.is_poscar(path):
        return _from_files(path)
    if suffix_of(path) in sample_files.CSV:
        return _from_csv(path, column)
    if suffix_of(path) in _JSON:
        return _from_json(path, column)
    if suffix_of(path) in sample_files.XYZ:
        return _from_xyz(path)
    if path.suffix.lower() in sample_files.PT:
        return _from_pt(path)
    raise FlowllmError(
        f"{path}: unknown format; a folder or a file of {sample_files.IN_FOLDERS}, or one file of "
        f"{sample_files.ALONE}"
    )


_JSON = (*sample_files.JSON, *sample_files.JSON_LINES)


def _text(path: Path) -> str:
    """Return a file's text, without the mark of byte order that other systems begin it with."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlowllmError(f"{path}: not UTF-8 ({error})") from error


def _from_files(path: Path) -> Iterator[Unread]:
    """Read a folder's files, or one; a file that cannot be read is one failed sample."""
    left = sample_files.MAX_BYTES
    for file in sample_files.sample_files(path):
        name = file.relative_to(path).as_posix() if file != path else file.name
        try:
            text = decode_cif(read_bytes(file))
        except FlowllmError as error:
            if file == path:
                raise
            yield Unread(name, lambda error=error: _refuse(error))
            continue
        left -= len(text)
        if left < 0:
            raise sample_files.too_large(path, sample_files.MAX_BYTES)
        if sample_files.is_poscar(file):
            yield Unread(name, lambda text=text: Crystal.from_structure(read_poscar(text)))
            continue
        # A file without atoms is one sample too, and a failed one.
        blocks = split_blocks(text) or [text]
        for number, block in enumerate(blocks, start=1):
            own = name if len(blocks) == 1 else f"{name}#{number}"
            yield Unread(own, lambda block=block: _from_cif(block))


def _refuse(error: Exception) -> NoReturn:
    raise error


def _from_cif(text: str) -> Crystal:
    blocks = split_blocks(text) or [text]
    if len(blocks) > 1:
        raise FlowllmError(f"a CIF of {len(blocks)} crystals where one is expected")
    return Crystal.from_structure(read_structure(blocks[0]))


def _from_cell(numbers: np.ndarray, frac_coords: ArrayLike, matrix: ArrayLike) -> Crystal:
    """Build a crystal of n atoms (n,), (n, 3) from lattice vectors (3, 3), rows of either hand."""
    species = [int(number) for number in numbers]
    return Crystal.from_structure(Structure(Lattice(matrix), species, frac_coords))


def _from_dict(values: Mapping[str, Any]) -> Crystal:
    """Build a crystal from the plain values of pymatgen's `Structure.as_dict`.

    `Structure.from_dict` would import any module that a site's properties name.
    """
    cell = values["lattice"]
    if "matrix" in cell:
        lattice = Lattice(cell["matrix"])
    else:
        names = ("a", "b", "c", "alpha", "beta", "gamma")
        lattice = Lattice.from_parameters(*(cell[name] for name in names))
    sites = values["sites"]
    species = [{Element(one["element"]): one["occu"] for one in site["species"]} for site in sites]
    return Crystal.from_structure(Structure(lattice, species, [site["abc"] for site in sites]))


def _from_text(text: str) -> Crystal:
    if not text.strip():
        raise FlowllmError("an empty cell where a crystal is expected")
    if text.lstrip().startswith("{"):
        return _from_record(read_notation(text), None)
    return _from_cif(text)


def _from_csv(path: Path, column: str | None) -> Iterator[Unread]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        header = list(reader.fieldnames or ())
        crystals = _structure_column(path, header, column)
        lower = {name.lower().strip(): name for name in reversed(header)}
        names = next((lower[name] for name in NAME_COLUMNS if name in lower), None)
        rows = list(reader)
    except csv.Error as error:
        raise FlowllmError(f"{path}: not CSV ({error})") from error
    for number, row in enumerate(rows):
        name = (row[names] if names is not None else None) or f"row {number}"
        if None in row:
            said = FlowllmError(f"a row of more cells than the header's {len(header)}")
            yield Unread(name, lambda said=said: _refuse(said))
        else:
            yield Unread(name, lambda text=row[crystals] or "": _from_text(text))


def _structure_column(path: Path, header: Sequence[str], column: str | None) -> str:
    """Return the column that holds the crystals.

    Raises:
        FlowllmError: no column is of the name, or several could be meant.
    """
    if column is None:
        wanted = [name.lower() for name in STRUCTURE_COLUMNS]
        found = [name for name in header if name.lower().strip() in wanted]
        said = f"none of the columns {', '.join(STRUCTURE_COLUMNS)}"
    else:
        exact = [name for name in header if name == column]
        found = exact or [name for name in header if name.lower().strip() == column.lower()]
        said = f"no column {column!r}"
    if len(found) == 1:
        return found[0]
    if not found:
        raise FlowllmError(
            f"{path}: has {said}, but {', '.join(map(repr, header)) or 'nothing'}; name the one "
            "with the crystals by `column:` in its row of external_samples"
        )
    raise FlowllmError(
        f"{path}: the columns {', '.join(map(repr, found))} may all hold the crystals; name one by "
        "`column:` in its row of external_samples, and let no two have one name"
    )


def _from_json(path: Path, column: str | None) -> Iterator[Unread]:
    """Read a list, a mapping from ids, or lines, of structures, of CIF, or of records with one."""
    content = read_bytes(path)
    by_lines = suffix_of(path) in sample_files.JSON_LINES
    try:
        values = None if by_lines else json.loads(content, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError, FlowllmError) as error:
        by_lines = isinstance(error, json.JSONDecodeError) and _is_json_lines(content)
        if not by_lines:
            raise FlowllmError(f"{path}: not JSON ({error})") from error
    if by_lines:
        yield from _from_json_lines(path, content, column)
        return
    if isinstance(values, dict):
        values = values.get("structures", values)
    if isinstance(values, dict):
        key = _structure_key(values, column)
        if key is not None and key != "lattice" and _is_mapping_of_crystals(values[key]):
            values, key = values[key], None  # as pandas writes a table: column by column
        values = [values] if key is not None else values
    if isinstance(values, dict):
        items = list(values.items())
    elif isinstance(values, list):
        items = [(_name_in(one, str(number)), one) for number, one in enumerate(values)]
    else:
        raise FlowllmError(f"{path}: neither a list nor a mapping, but {type(values).__name__}")
    for name, item in items:
        yield Unread(name, lambda item=item: _from_record(item, column))


def _is_json_lines(content: bytes) -> bool:
    """Whether a file that is no JSON as a whole begins with an object on one line."""
    lines = content.split(b"\n")
    first = next((line for line in lines if line.strip()), b"")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _from_json_lines(path: Path, content: bytes, column: str | None) -> Iterator[Unread]:
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
            said = FlowllmError(f"line {number}: not JSON ({error})")
            yield Unread(f"line {number}", lambda said=said: _refuse(said))
        else:
            name = _name_in(item, f"line {number}")
            yield Unread(name, lambda item=item: _from_record(item, column))


def _name_in(record: object, otherwise: str) -> str:
    """Return the name that a record gives itself."""
    if isinstance(record, dict):
        for key in NAME_COLUMNS:
            if isinstance(record.get(key), str | int) and record[key] != "":
                return str(record[key])
    return otherwise


def _is_mapping_of_crystals(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and "lattice" not in value


def _structure_key(record: Mapping[str, Any], column: str | None) -> str | None:
    """Return the key under which a record holds a crystal, `lattice` if it is one itself."""
    keys = ("structure", *STRUCTURE_COLUMNS, "lattice") if column is None else (column,)
    return next((key for key in keys if key in record), None)


def _from_record(item: object, column: str | None) -> Crystal:
    key = _structure_key(item, column) if isinstance(item, dict) else None
    if column is not None and key is None:
        raise FlowllmError(f"a record without the key {column!r}")
    crystal = item if key in (None, "lattice") else item[key]
    if isinstance(crystal, str):
        return _from_text(crystal)
    if not isinstance(crystal, dict):
        raise FlowllmError(f"of type {type(crystal).__name__}, neither a structure nor CIF")
    return _from_dict(crystal)


def _from_xyz(path: Path) -> Iterator[Unread]:
    # Each line of a number alone begins a frame, so that a broken one leaves the others whole.
    start, *frames = re.split(r"^(?=[ \t]*\d+[ \t]*$)", _text(path), flags=re.MULTILINE)
    if start.strip():
        raise FlowllmError(f"{path}: does not begin with a number of atoms")
    for number, frame in enumerate(frames):
        yield Unread(_xyz_name(frame, number), lambda frame=frame: _from_frame(frame))


def _xyz_name(frame: str, number: int) -> str:
    """Return the id or name of a frame's second line, its number where it has none."""
    comment = frame.split("\n", 2)[1] if "\n" in frame else ""
    found = _XYZ_NAME.search(comment)
    if found is None:
        return f"frame {number}"
    try:
        return str(json.loads(found[1]))
    except ValueError:
        return found[1].strip('"')


def _from_frame(text: str) -> Crystal:
    from ase.io.extxyz import read_xyz

    head, _, *lines = [*text.rstrip().split("\n"), ""]
    atoms = [line for line in map(str.strip, lines) if line and not line.startswith("VEC")]
    if len(atoms) != int(head):
        raise FlowllmError(f"a frame of {int(head)} atoms has {len(atoms)} lines of them")
    try:
        read = next(read_xyz(io.StringIO(text), 0))
    except KeyError as error:
        raise FlowllmError(f"no element or column {error}") from error
    if read.cell.rank < 3:
        raise FlowllmError("a frame without a Lattice of three vectors")
    return _from_cell(read.numbers, read.get_scaled_positions(wrap=False), read.cell.array)


def _from_pt(path: Path) -> Iterator[Unread]:
    """Read the arrays that CDVAE and its successors write, batches in a row."""
    from flowllm.data.pt_file import read_arrays

    values = read_arrays(path)
    # Where a file has both, their own metrics are those of lengths and angles.
    vectors = "lattices" in values and not {"lengths", "angles"} <= values.keys()
    cells = ("lattices",) if vectors else ("lengths", "angles")
    needed = ("atom_types", "frac_coords", "num_atoms", *cells)
    if missing := [key for key in needed if key not in values]:
        raise FlowllmError(f"{path}: has no {', '.join(missing)}")
    # One evaluation or several: a leading axis more.
    types, counts = values["atom_types"].reshape(-1), values["num_atoms"].reshape(-1)
    if (counts < 0).any() or (counts % 1 != 0).any():
        raise FlowllmError(f"{path}: num_atoms holds what is no number of atoms")
    counts = counts.astype(np.int64)
    try:
        coords = values["frac_coords"].reshape(len(types), 3)
        shape = (len(counts), 3, 3) if vectors else (len(counts), 3)
        arrays = [values[key].reshape(shape) for key in cells]
    except ValueError as error:
        raise FlowllmError(f"{path}: num_atoms does not fit the other tensors ({error})") from error
    if counts.sum() != len(types):
        raise FlowllmError(f"{path}: num_atoms does not fit the other tensors")
    ends = np.cumsum(counts)
    build = _from_cell if vectors else Crystal.from_arrays
    for number, (start, end, *cell) in enumerate(zip(ends - counts, ends, *arrays, strict=True)):
        atoms = slice(start, end)
        yield Unread(
            str(number),
            lambda atoms=atoms, cell=cell: build(types[atoms], coords[atoms], *cell),
        )
