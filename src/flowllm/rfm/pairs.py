"""Preparation of sampled pairs (c0, c1) for training: c0 is placed, and atoms are matched.

Each shard of `schemas.PAIRS` becomes one Arrow file that the loader maps into memory. Every row
becomes one pair: a crystal that was drawn several times has several drafts c0 (the public code
keeps one).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.optimize import linear_sum_assignment

from flowllm.io import tables
from flowllm.io.files import atomic_path
from flowllm.io.schemas import PAIRS
from flowllm.io.tables import crystal_of, naming_damage, read_table
from flowllm.rfm.base_distribution import (
    BaseDistribution,
    RejectedCrystalError,
    bring_angles_within,
    crystal_lattice,
)
from flowllm.rfm.manifold import AngleBounds
from flowllm.rfm.network import MAX_ATOMS
from flowllm.seeds import generator

PREPARED = pa.schema(
    [
        pa.field("elements", pa.list_(pa.uint8())),
        pa.field("start_coords", pa.list_(pa.float32())),  # f0 before its noise, 3 n values
        pa.field("end_coords", pa.list_(pa.float32())),  # f1, 3 n values
        pa.field("start_lattice", pa.list_(pa.float32(), 6)),  # l0 before its noise
        pa.field("end_lattice", pa.list_(pa.float32(), 6)),  # l1
    ]
)
"""Columns of a prepared file; flat lists are read from an Arrow file without copying."""

_FORBIDDEN = 1e3
"""Cost of matching two different elements; a valid matching costs at most 3/4 per atom."""

_COLUMNS = [
    *("id", "status", "atomic_numbers", "frac_coords", "lengths", "angles"),
    *("target_frac_coords", "target_lengths", "target_angles"),
]


def match_atoms(elements: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Reorder and shift the atoms of the end to reduce their distance from the start.

    The distance is the summed squared displacement on the torus. A local search reduces it over the
    assignments within each element and one common translation: from several first translations, it
    alternates the Hungarian assignment and the best translation until neither reduces the distance.
    The result is never longer than without matching, because one first translation is the best one
    for the given order. It is not always the shortest: of 160 pairs of six random points with one
    to three elements, 34 had a shorter one.

    Args:
        elements: atomic numbers (n,), of start and end.
        start: f0 (n, 3).
        end: f1 (n, 3).

    Returns:
        Coordinates of the end (n, 3) in [0, 1); atom i is the partner of atom i of the start.
    """
    different = elements[:, None] != elements[None, :]
    best_cost, best_end = np.inf, end
    for shift in _first_shifts(elements, start, end):
        cost, moved = _alternate(start, end, shift, different)
        if cost < best_cost - 1e-12:
            best_cost, best_end = cost, moved
    matched: np.ndarray = np.mod(best_end, 1.0)
    return matched


def _first_shifts(elements: np.ndarray, start: np.ndarray, end: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the first translations of `match_atoms`.

    These are the mean displacement in the given order, zero, and for each element those that move
    an atom of the end onto the first atom of the element in the start.
    """
    yield _wrapped(start - end).mean(axis=0)
    yield np.zeros(3)
    for element in np.unique(elements):
        atoms = np.flatnonzero(elements == element)
        yield from start[atoms[0]] - end[atoms]


def _alternate(
    start: np.ndarray, end: np.ndarray, shift: np.ndarray, different: np.ndarray
) -> tuple[float, np.ndarray]:
    """Alternate assignment and translation; return the cost and the shifted, reordered end."""
    cost, moved = np.inf, end
    while True:
        displacements = _wrapped(start[:, None] - end[None] - shift)
        costs = (displacements**2).sum(-1) + _FORBIDDEN * different
        rows, columns = linear_sum_assignment(costs)
        residual = displacements[rows, columns]
        new_shift = shift + residual.mean(axis=0)
        new_cost = float((_wrapped(residual - residual.mean(axis=0)) ** 2).sum())
        if new_cost >= cost - 1e-12:
            return cost, moved
        cost, shift = new_cost, new_shift
        moved = end[columns] + shift


def _wrapped(displacement: np.ndarray) -> np.ndarray:
    """Return the shortest equivalent displacements on the torus, in [-1/2, 1/2]."""
    shortest: np.ndarray = displacement - np.round(displacement)
    return shortest


@dataclass(frozen=True)
class PairOptions:
    """Options of the preparation.

    Attributes:
        angle_bounds: degrees, the open interval of the logit of the angles.
        match_atoms: whether to reduce the distance from c0 to c1, see `match_atoms`.
        base_distribution: the base distribution of c0.
        seed: seed of the configuration; draws also depend on the pair's id.
    """

    angle_bounds: AngleBounds
    match_atoms: bool
    base_distribution: BaseDistribution
    seed: int


def prepare_pair(row: Mapping[str, Any], options: PairOptions) -> tuple[dict[str, Any], bool]:
    """Convert one row of `schemas.PAIRS` to one of `PREPARED`.

    Returns:
        The row, and whether the cell of c0 was Niggli-reduced.

    Raises:
        RejectedCrystalError: the flow cannot use this pair.
    """
    draft, target = crystal_of(row), crystal_of(row, "target_")
    if draft is None or target is None:
        raise RejectedCrystalError("no_crystal")
    if draft.num_atoms > MAX_ATOMS:
        raise RejectedCrystalError("too_many_atoms")
    rng = generator(options.seed, "train_rfm", "start", row["id"])
    start = options.base_distribution.place(draft, options.angle_bounds, rng)
    end = bring_angles_within(target, options.angle_bounds)
    end_coords = end.frac_coords.astype(np.float64)
    if options.match_atoms:
        end_coords = match_atoms(draft.atomic_numbers, start.coords, end_coords)
    columns = {
        "elements": draft.atomic_numbers,
        "start_coords": start.coords.astype(np.float32).ravel(),
        "end_coords": end_coords.astype(np.float32).ravel(),
        "start_lattice": start.lattice,
        "end_lattice": crystal_lattice(end, options.angle_bounds),
    }
    return columns, start.reduced


def prepare_shard(shard: Path, prepared: Path, options: PairOptions) -> Counter[str]:
    """Prepare one shard of pairs; rows that cannot be used are counted by their reason.

    Args:
        shard: Parquet file of `schemas.PAIRS`.
        prepared: Arrow file to write; the metadata of its schema contains the counts.
        options: options of the preparation.

    Returns:
        Counts: `pairs`, `reduced`, and one per reason.

    Raises:
        FlowllmError: the shard is missing or has other columns.
    """
    counts: Counter[str] = Counter()
    rows = []
    for row in read_table(shard, PAIRS, _COLUMNS).to_pylist():
        if row["status"] != "ok":
            counts["not_ok"] += 1
            continue
        try:
            columns, reduced = prepare_pair(row, options)
        except RejectedCrystalError as rejected:
            counts[str(rejected)] += 1
            continue
        rows.append(columns)
        counts["reduced"] += reduced
    counts["pairs"] = len(rows)
    _write_prepared(prepared, rows, counts)
    return counts


def _write_prepared(path: Path, rows: list[dict[str, Any]], counts: Counter[str]) -> None:
    """Write a prepared file, with the counts in the metadata of its schema."""
    metadata = {name: str(count) for name, count in counts.items()}
    table = pa.Table.from_pylist(rows, schema=PREPARED).replace_schema_metadata(metadata)
    with atomic_path(path) as temporary, pa.ipc.new_file(temporary, table.schema) as writer:
        # One record batch per file makes each column one flat array in memory.
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)


def read_counts(prepared: Path) -> Counter[str]:
    """Return the counts of a prepared file; see `prepare_shard`."""
    with (
        naming_damage(prepared, "not a readable Arrow file"),
        pa.memory_map(str(prepared)) as source,
    ):
        metadata = pa.ipc.open_file(source).schema.metadata or {}
    return Counter({name.decode(): int(count) for name, count in metadata.items()})


def count_rows(shards: list[Path]) -> int:
    """Return the number of rows in Parquet shards, from their footers."""
    return sum(tables.count_rows(shard) for shard in shards)
