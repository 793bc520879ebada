"""Other models' samples in the formats that they are given in.

Nothing in a file is executed: CIF, CSV, extended XYZ and JSON are parsed as data, `.pt` files are
loaded with torch's `weights_only`.
"""

import argparse
import csv
import gzip
import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError

STRUCTURE_COLUMNS = ("cif", "cif_string", "structure", "LeMatStructs")
"""Columns of a CSV that may hold a crystal, as CIF or as pymatgen's JSON."""

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
        if path.name.endswith(suffixes):
            return reader(path)
    known = ", ".join(suffix for suffixes in _READERS for suffix in suffixes)
    raise FlowllmError(f"{path}: unknown format; a folder of .cif files or one of {known}")


def _from_cifs(folder: Path) -> Iterator[Parse]:
    for path in sorted(folder.glob("*.cif")):
        yield lambda path=path: _from_cif(path.read_text())


def _from_cif(text: str) -> Crystal:
    return Crystal.from_structure(Structure.from_str(text, fmt="cif"))


def _from_dict(values: Mapping[str, Any]) -> Crystal:
    return Crystal.from_structure(Structure.from_dict(dict(values)))


def _from_csv(path: Path) -> Iterator[Parse]:
    csv.field_size_limit(CSV_FIELD_LIMIT)
    with path.open(newline="") as handle:
        reader = csv.DictReader(handle)
        found = [name for name in STRUCTURE_COLUMNS if name in (reader.fieldnames or ())]
        if not found:
            raise FlowllmError(f"{path}: has none of the columns {', '.join(STRUCTURE_COLUMNS)}")
        texts = [row[found[0]] or "" for row in reader]
    for text in texts:
        yield (
            lambda text=text: (
                _from_dict(json.loads(text)) if text.lstrip().startswith("{") else _from_cif(text)
            )
        )


def _from_json(path: Path) -> Iterator[Parse]:
    """Read a list, or a mapping from ids, of structures or of entries that hold one."""
    content = path.read_bytes()
    try:
        values = json.loads(gzip.decompress(content) if path.name.endswith(".gz") else content)
    except (ValueError, OSError) as error:
        raise FlowllmError(f"{path}: not JSON ({error})") from error
    if isinstance(values, dict):
        values = [values] if "lattice" in values else values.values()
    for item in values:
        yield lambda item=item: _from_dict(item.get("structure", item))


def _from_xyz(path: Path) -> Iterator[Parse]:
    import ase.io

    for atoms in ase.io.iread(path, index=":", format="extxyz"):
        yield lambda atoms=atoms: Crystal.from_arrays(
            atoms.numbers,
            atoms.get_scaled_positions(wrap=False),
            atoms.cell.lengths(),
            atoms.cell.angles(),
        )


def _from_pt(path: Path) -> Iterator[Parse]:
    """Read the dictionary of tensors that CDVAE and its successors write, batches in a row."""
    import torch

    try:
        # CDVAE's files hold their command line's options too, as plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            values = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise FlowllmError(f"{path}: not a file of tensors only ({error})") from error
    keys = ("atom_types", "frac_coords", "lengths", "angles", "num_atoms")
    if missing := [key for key in keys if key not in values]:
        raise FlowllmError(f"{path}: has no {', '.join(missing)}")
    types, coords, lengths, angles, counts = (np.asarray(values[key]) for key in keys)
    # One evaluation or several: a leading axis more.
    types, counts = types.reshape(-1), counts.reshape(-1)
    coords, lengths, angles = (array.reshape(-1, 3) for array in (coords, lengths, angles))
    ends = np.cumsum(counts)
    if ends[-1] != len(types) or len(coords) != len(types) or len(lengths) != len(counts):
        raise FlowllmError(f"{path}: num_atoms does not fit the other tensors")
    for i, (start, end) in enumerate(zip(ends - counts, ends, strict=True)):
        yield lambda i=i, start=start, end=end: Crystal.from_arrays(
            types[start:end], coords[start:end], lengths[i], angles[i]
        )


_READERS: dict[tuple[str, ...], Callable[[Path], Iterator[Parse]]] = {
    (".csv",): _from_csv,
    (".extxyz", ".xyz"): _from_xyz,
    (".json", ".json.gz"): _from_json,
    (".pt",): _from_pt,
}
