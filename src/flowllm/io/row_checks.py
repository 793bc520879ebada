"""Checks of the values in a table: counts, elements, finite numbers, cells.

A damaged or hand-edited table has the right columns and wrong values. The checks use the columns'
flat arrays, since a run has millions of pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from flowllm.crystal import MAX_ATOMIC_NUMBER

MIN_VOLUME = 1e-6
"""Squared volume of a cell with unit edges below which the cell is flat
(`crystal.lattice_has_volume`)."""

RANGES: dict[str, tuple[int, int | None]] = {
    "num_elements": (0, None),
    "space_group_number": (1, 230),
    "num_steps": (0, None),
    "attempts": (0, None),
    "draw": (0, None),
    "num_tokens": (0, None),
}
"""Smallest and largest value of integer columns; None: not bounded."""

PRESENT_IF_OK = (
    *("atomic_numbers", "frac_coords", "lengths", "angles"),
    *("target_frac_coords", "target_lengths", "target_angles"),
    *("structure_fingerprint", "composition_fingerprint"),
)
"""Columns that are never null in a row with status ok."""


@dataclass(frozen=True)
class WrongValue:
    """The first wrong value of a table.

    Attributes:
        row: number of the row, from 0.
        field: name of the column.
        problem: what is wrong, e.g. "is null".
    """

    row: int
    field: str
    problem: str


def find_wrong_value(table: pa.Table, schema: pa.Schema) -> WrongValue | None:
    """Return the first wrong value of a table, or None.

    Args:
        table: a table with some columns of `schema`.
        schema: one of the schemas of `io.schemas`.
    """
    start = 0
    for batch in table.to_batches():
        for found in _wrong_values(batch, schema):
            return WrongValue(start + found.row, found.field, found.problem)
        start += batch.num_rows
    return None


def _wrong_values(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[WrongValue]:
    names = batch.schema.names
    for name in names:
        column = batch.column(name)
        if column.null_count and not schema.field(name).nullable:
            yield WrongValue(_first(~_valid(column)), name, "is null")
        if pa.types.is_floating(column.type):
            bad = _valid(column) & ~np.isfinite(_numbers(column))
            yield from _first_wrong(bad, name, "is not finite")
        if name in RANGES:
            yield from _out_of_range(column, name)
    yield from _missing_though_ok(batch)
    for prefix in ("", "target_"):
        yield from _wrong_cells(batch, prefix)
        yield from _wrong_atoms(batch, prefix)


def _missing_though_ok(batch: pa.RecordBatch) -> Iterator[WrongValue]:
    if "status" not in batch.schema.names:
        return
    columns = [name for name in PRESENT_IF_OK if name in batch.schema.names]
    lacking = [name for name in columns if batch.column(name).null_count]
    if lacking:
        ok = np.asarray(batch.column("status").to_pylist()) == "ok"
        for name in lacking:
            yield from _first_wrong(ok & ~_valid(batch.column(name)), name, "is null at status ok")


def _out_of_range(column: pa.Array, name: str) -> Iterator[WrongValue]:
    low, high = RANGES[name]
    values = _numbers(column)
    bad = values < low
    if high is not None:
        bad |= values > high
    words = f"is less than {low}" if high is None else f"is not in {low} to {high}"
    yield from _first_wrong(bad & _valid(column), name, words)


def _wrong_cells(batch: pa.RecordBatch, prefix: str) -> Iterator[WrongValue]:
    """Give lengths and angles that no cell has."""
    checks: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
        "lengths": (lambda x: (x > 0) & (x < np.inf), "are not all positive and finite"),
        "angles": (lambda x: (x > 0) & (x < 180), "are not all between 0 and 180 degrees"),
    }
    for name, (holds, words) in checks.items():
        if prefix + name not in batch.schema.names:
            continue
        column = batch.column(prefix + name)
        valid, vectors = _valid(column), _vectors(column)
        good = holds(vectors).all(axis=1)
        yield from _first_wrong(valid & ~good, prefix + name, words)
        if name == "angles":
            flat = valid & ~_have_volume(vectors)
            yield from _first_wrong(flat, prefix + name, "span no volume")


def _have_volume(angles: np.ndarray) -> np.ndarray:
    """Return whether angles in degrees (n, 3) belong to a cell of positive volume, bool (n,)."""
    alpha, beta, gamma = np.cos(np.radians(angles.astype(np.float64))).T
    volume = 1 + 2 * alpha * beta * gamma - alpha**2 - beta**2 - gamma**2
    holds: np.ndarray = volume > MIN_VOLUME
    return holds


def _wrong_atoms(batch: pa.RecordBatch, prefix: str) -> Iterator[WrongValue]:
    """Give atomic numbers of no element, wrong coordinates, and unequal numbers of both."""
    names = batch.schema.names
    numbers = batch.column("atomic_numbers") if "atomic_numbers" in names else None
    if numbers is not None and not prefix:
        yield from _wrong_elements(numbers)
    field = prefix + "frac_coords"
    if field not in names:
        return
    coords = batch.column(field)
    offsets = coords.offsets.to_numpy()
    flat = _vectors(coords.values)[offsets[0] : offsets[-1]]
    # NaN fails both comparisons. The nearest float32 below 1 may have been written as 1.
    bad: np.ndarray = ~np.all((flat >= 0) & (flat <= 1), axis=1)
    if coords.values.null_count:
        bad |= ~_valid(coords.values)[offsets[0] : offsets[-1]]
    if bad.any():
        yield WrongValue(_row_of(offsets, _first(bad)), field, "has a number outside of [0, 1)")
    if numbers is not None:
        sizes, atoms = _sizes(coords), _sizes(numbers)
        unequal = _valid(coords) & _valid(numbers) & (sizes != atoms)
        if unequal.any():
            row = _first(unequal)
            yield WrongValue(
                row, field, f"has the coordinates of {sizes[row]} of {atoms[row]} atoms"
            )
    yield from _half_a_crystal(batch, prefix)
    yield from _other_count(batch, prefix)


def _wrong_elements(numbers: pa.ListArray) -> Iterator[WrongValue]:
    yield from _first_wrong(_valid(numbers) & (_sizes(numbers) == 0), "atomic_numbers", "is empty")
    offsets = numbers.offsets.to_numpy()
    flat = _numbers(numbers.values)[offsets[0] : offsets[-1]]
    bad = ~((flat >= 1) & (flat <= MAX_ATOMIC_NUMBER))
    if bad.any():
        at = _first(bad)
        row = _row_of(offsets, at)
        yield WrongValue(
            row, "atomic_numbers", f"has {flat[at]}, which is the number of no element"
        )


def _half_a_crystal(batch: pa.RecordBatch, prefix: str) -> Iterator[WrongValue]:
    """Give a crystal of which some, but not all, of the columns that were read are null."""
    columns = ["frac_coords", "lengths", "angles"] + ["atomic_numbers"] * (not prefix)
    names = [prefix + name for name in columns if prefix + name in batch.schema.names]
    valid = {name: _valid(batch.column(name)) for name in names}
    for name in names[1:]:
        differ = valid[name] != valid[names[0]]
        yield from _first_wrong(differ, name, f"and {names[0]} are not both null, or both present")


def _other_count(batch: pa.RecordBatch, prefix: str) -> Iterator[WrongValue]:
    if prefix or not {"num_atoms", "atomic_numbers"} <= set(batch.schema.names):
        return
    count, numbers = batch.column("num_atoms"), batch.column("atomic_numbers")
    both = _valid(count) & _valid(numbers)
    differ = both & (_numbers(count) != _sizes(numbers))
    yield from _first_wrong(differ, "num_atoms", "is not the number of atoms in atomic_numbers")


def _first_wrong(bad: np.ndarray, field: str, problem: str) -> Iterator[WrongValue]:
    if bad.any():
        yield WrongValue(_first(bad), field, problem)


def _first(bad: np.ndarray) -> int:
    return int(np.argmax(bad))


def _row_of(offsets: np.ndarray, place: int) -> int:
    """Return the row of a position in the flat values of a list column, from its first value."""
    return int(np.searchsorted(offsets, offsets[0] + place, side="right")) - 1


def _valid(column: pa.Array) -> np.ndarray:
    if column.null_count == 0:
        return np.ones(len(column), dtype=bool)
    valid: np.ndarray = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def _numbers(column: pa.Array) -> np.ndarray:
    """Return the values of a column; where some are null, floats with NaN for these."""
    numbers: np.ndarray = column.to_numpy(zero_copy_only=False)
    return numbers


def _sizes(column: pa.ListArray) -> np.ndarray:
    sizes: np.ndarray = np.diff(column.offsets.to_numpy())
    return sizes


def _vectors(column: pa.FixedSizeListArray) -> np.ndarray:
    """Return vectors as floats (n, 3); NaN where a number is null."""
    start, stop = 3 * column.offset, 3 * (column.offset + len(column))
    return _numbers(column.values)[start:stop].reshape(-1, 3)
