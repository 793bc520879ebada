"""Other models' samples in the formats that they are given in.

Nothing in a file is executed: CIF, CSV, extended XYZ and JSON are parsed as data, and of JSON only
plain values are used, never the classes that it may name; `.pt` files see `pt_file`.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from pymatgen.core import Element, Lattice, Structure

from flowllm.crystal import Crystal
from flowllm.data.cif_blocks import read_cif_text, split_blocks
from flowllm.data.cif_structure import read_structure
from flowllm.errors import FlowllmError

STRUCTURE_COLUMNS = ("cif", "cif_string", "structure", "LeMatStructs")
"""Columns of a CSV that may hold a crystal, as CIF or as pymatgen's JSON; case does not matter."""

CSV_FIELD_LIMIT = 1 << 26
"""Characters; Python's own limit is 131,072, and a crystal as JSON can be longer."""

Parse = Callable[[], Crystal]


def read_samples(path: Path) -> Iterator[Parse]:
    """Give for each sample of a file or folder, in its order, a function that parses it.

    Args:
        path: a folder of CIF files, or a .csv, .extxyz, .xyz, .json, .json.gz or .pt file.

    Raises:
        FlowllmError: the file is missing, of an unknown format, or not what its name says.
    """
    if not path.exists():
        raise FlowllmError(f"{path}: no such file or folder")
    if path.is_dir():
        return _from_cifs(path)
    for suffixes, reader in _READERS.items():
        if path.name.lower().endswith(suffixes):
            return reader(path)
    known = ", ".join(suffix for suffixes in _READERS for suffix in suffixes)
    raise FlowllmError(f"{path}: unknown format; a folder of .cif files or one of {known}")


def _text(path: Path) -> str:
    """Return a file's text, without the mark of byte order that other systems begin it with."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlowllmError(f"{path}: not UTF-8 ({error})") from error


def _from_cifs(folder: Path) -> Iterator[Parse]:
    for path in sorted(one for one in folder.iterdir() if one.suffix.lower() == ".cif"):
        text = read_cif_text(path)
        # A file without atoms is one sample too, and a failed one.
        for block in split_blocks(text) or [text]:
            yield lambda block=block: _from_cif(block)


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
    return _from_dict(json.loads(text)) if text.lstrip().startswith("{") else _from_cif(text)


def _from_csv(path: Path) -> Iterator[Parse]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        names = {name.lower(): name for name in reader.fieldnames or ()}
        found = [names[name.lower()] for name in STRUCTURE_COLUMNS if name.lower() in names]
        if not found:
            raise FlowllmError(f"{path}: has none of the columns {', '.join(STRUCTURE_COLUMNS)}")
        texts = [row[found[0]] or "" for row in reader]
    except csv.Error as error:
        raise FlowllmError(f"{path}: not CSV ({error})") from error
    for text in texts:
        yield lambda text=text: _from_text(text)


def _from_json(path: Path) -> Iterator[Parse]:
    """Read a list, or a mapping from ids, of structures, of CIF, or of records that hold one."""
    content = path.read_bytes()
    try:
        values = json.loads(
            gzip.decompress(content) if path.name.lower().endswith(".gz") else content
        )
    except (ValueError, OSError, EOFError, zlib.error, RecursionError) as error:
        raise FlowllmError(f"{path}: not JSON ({error})") from error
    if isinstance(values, dict):
        values = values.get("structures", values)
    if isinstance(values, dict):
        values = [values] if _structure_key(values) else list(values.values())
    if not isinstance(values, list):
        raise FlowllmError(f"{path}: neither a list nor a mapping, but {type(values).__name__}")
    for item in values:
        yield lambda item=item: _from_record(item)


def _structure_key(record: Mapping[str, Any]) -> str | None:
    """Return the key under which a record holds a crystal, `lattice` if it is one itself."""
    keys = ("structure", *STRUCTURE_COLUMNS, "lattice")
    return next((key for key in keys if key in record), None)


def _from_record(item: object) -> Crystal:
    key = _structure_key(item) if isinstance(item, dict) else None
    crystal = item if key in (None, "lattice") else item[key]
    if isinstance(crystal, str):
        return _from_text(crystal)
    if not isinstance(crystal, dict):
        raise FlowllmError(f"of type {type(crystal).__name__}, neither a structure nor CIF")
    return _from_dict(crystal)


def _from_xyz(path: Path) -> Iterator[Parse]:
    # Each line of a number alone begins a frame, so that a broken one leaves the others whole.
    start, *frames = re.split(r"^(?=[ \t]*\d+[ \t]*$)", _text(path), flags=re.MULTILINE)
    if start.strip():
        raise FlowllmError(f"{path}: does not begin with a number of atoms")
    for frame in frames:
        yield lambda frame=frame: _from_frame(frame)


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


def _from_pt(path: Path) -> Iterator[Parse]:
    """Read the arrays that CDVAE and its successors write, batches in a row."""
    from flowllm.evaluate.pt_file import read_arrays

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
    for start, end, *cell in zip(ends - counts, ends, *arrays, strict=True):
        yield lambda atoms=slice(start, end), cell=cell: build(types[atoms], coords[atoms], *cell)


_READERS: dict[tuple[str, ...], Callable[[Path], Iterator[Parse]]] = {
    (".csv",): _from_csv,
    (".extxyz", ".xyz"): _from_xyz,
    (".json", ".json.gz"): _from_json,
    (".pt",): _from_pt,
}
