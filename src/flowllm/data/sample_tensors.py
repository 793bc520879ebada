"""Samples as the arrays that CDVAE and its successors save in a `.pt` file."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from flowllm.crystal import Crystal
from flowllm.data.pt_file import read_arrays
from flowllm.data.sample_crystals import UnparsedSample, crystal_from_vectors
from flowllm.errors import FlowllmError


def read_pt(path: Path) -> Iterator[UnparsedSample]:
    """Yield the samples of a `.pt` file, whose batches are concatenated; their names are numbers.

    Raises:
        FlowllmError: an array is missing, or the arrays do not fit each other.
    """
    values = read_arrays(path)
    # Where a file has both, the metrics of its authors use lengths and angles.
    has_vectors = "lattices" in values and not {"lengths", "angles"} <= values.keys()
    cell_keys = ("lattices",) if has_vectors else ("lengths", "angles")
    needed = ("atom_types", "frac_coords", "num_atoms", *cell_keys)
    if missing := [key for key in needed if key not in values]:
        raise FlowllmError(f"{path}: has no {', '.join(missing)}")
    counts = _counts(path, values["num_atoms"])
    # Samples of several evaluations have one leading axis more.
    types = values["atom_types"].reshape(-1)
    try:
        coords = values["frac_coords"].reshape(len(types), 3)
        shape = (len(counts), 3, 3) if has_vectors else (len(counts), 3)
        cells = [values[key].reshape(shape) for key in cell_keys]
    except ValueError as error:
        raise FlowllmError(f"{path}: num_atoms does not fit the other tensors ({error})") from error
    if counts.sum() != len(types):
        raise FlowllmError(f"{path}: num_atoms does not fit the other tensors")
    ends = np.cumsum(counts)
    build = crystal_from_vectors if has_vectors else Crystal.from_arrays
    for number, (start, end, *cell) in enumerate(zip(ends - counts, ends, *cells, strict=True)):
        parse = partial(build, types[start:end], coords[start:end], *cell)
        yield UnparsedSample(str(number), parse)


def _counts(path: Path, num_atoms: np.ndarray) -> np.ndarray:
    """Return the number of atoms of each sample as int64 (n,)."""
    counts = num_atoms.reshape(-1)
    if (counts < 0).any() or (counts % 1 != 0).any():
        raise FlowllmError(
            f"{path}: num_atoms contains a value that is not a number of atoms (0, 1, 2, ...)"
        )
    return counts.astype(np.int64)
