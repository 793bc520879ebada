"""One sample of another model: the crystal from its CIF, its dictionary or its arrays.

Data are only parsed. Of JSON, plain values are used, never the classes that it may name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike
from pymatgen.core import Element, Lattice, Structure

from flowllm.crystal import Crystal
from flowllm.data.cif_blocks import split_blocks
from flowllm.data.cif_structure import read_structure
from flowllm.data.sample_text import read_notation
from flowllm.errors import FlowllmError

STRUCTURE_COLUMNS = ("cif", "cif_string", "structure", "LeMatStructs")
"""Columns of a CSV that may contain a crystal, as CIF or as pymatgen's JSON, in any case."""

NAME_COLUMNS = (
    *("material_id", "sample_id", "structure_id", "entry_id", "id", "identifier", "name"),
    *("index", "unnamed: 0", ""),
)
"""Columns of a CSV, or keys of a record, that may contain a sample's name; the first one found is
taken. pandas writes its index under the last three."""


@dataclass(frozen=True)
class UnparsedSample:
    """A sample that is parsed when it is called.

    Attributes:
        name: the source's name of the sample: its file within the folder, key, id or number.
        parse: returns the crystal, or raises an error that says why the sample is not one.
        known: energies that the source gives, eV per atom, by the keys of `external_samples`.
    """

    name: str
    parse: Callable[[], Crystal]
    known: Mapping[str, float] = field(default_factory=dict)

    def __call__(self) -> Crystal:
        """Parse the sample."""
        return self.parse()


def failed_sample(name: str, error: FlowllmError) -> UnparsedSample:
    """Return a sample whose parsing raises an error."""
    return UnparsedSample(name, partial(_raise, error))


def _raise(error: FlowllmError) -> NoReturn:
    raise error


def crystal_from_record(item: object, column: str | None) -> Crystal:
    """Build a crystal from a value of JSON: a structure, CIF, or a record that contains one.

    Args:
        item: the value.
        column: the key of the record that contains the crystal; None finds it.

    Raises:
        FlowllmError: the record does not have the key, or the value is not a structure.
    """
    key = structure_key(item, column) if isinstance(item, dict) else None
    if column is not None and key is None:
        raise FlowllmError(f"a record without the key {column!r}")
    crystal = item[key] if isinstance(item, dict) and key not in (None, "lattice") else item
    if isinstance(crystal, str):
        return crystal_from_text(crystal)
    if not isinstance(crystal, dict):
        raise FlowllmError(f"of type {type(crystal).__name__}, neither a structure nor CIF")
    return _from_dict(crystal)


def structure_key(record: Mapping[str, Any], column: str | None) -> str | None:
    """Return the key of a record's crystal, `lattice` if the record itself is a structure."""
    keys = ("structure", *STRUCTURE_COLUMNS, "lattice") if column is None else (column,)
    return next((key for key in keys if key in record), None)


def crystal_from_text(text: str) -> Crystal:
    """Build a crystal from a cell of a CSV: CIF, or a dictionary in JSON or Python's notation."""
    if not text.strip():
        raise FlowllmError("an empty cell where a crystal is expected")
    if text.lstrip().startswith("{"):
        return crystal_from_record(read_notation(text), None)
    return crystal_from_block(text)


def crystal_from_block(text: str) -> Crystal:
    """Build a crystal from a CIF with one crystal, all its atoms in the cell as given."""
    blocks = split_blocks(text) or [text]
    if len(blocks) > 1:
        raise FlowllmError(f"a CIF of {len(blocks)} crystals where one is expected")
    return Crystal.from_structure(read_structure(blocks[0]))


def crystal_from_vectors(numbers: np.ndarray, frac_coords: ArrayLike, matrix: ArrayLike) -> Crystal:
    """Build a crystal of n atoms (n,), (n, 3) from lattice vectors (3, 3), rows of either hand."""
    elements = [Element.from_Z(int(number)) for number in numbers]
    return Crystal.from_structure(Structure(Lattice(matrix), elements, frac_coords))


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
