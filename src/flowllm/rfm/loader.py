"""Batches of prepared pairs: mapped files, shuffled by shard and buffer, bucketed by size.

An epoch's order is drawn from a seed as row numbers only, so that a resumed run finds its batch
without reading the pairs before it. Nothing but the rows of a batch is copied out of the files.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from flowllm.io.tables import naming_damage
from flowllm.rfm.axes import random_axes
from flowllm.rfm.base_distribution import BaseDistribution, standard_normals
from flowllm.rfm.manifold import AngleBounds

BUFFER_ROWS = 100_000
"""Whole shards are shuffled together until they hold this many pairs."""

T = TypeVar("T")

Group = np.ndarray
"""Rows of pairs with one number of atoms: (m, 2) of shard and row in it."""


@dataclass
class PairBatch:
    """Pairs of one number of atoms n; not frozen, since Fabric converts a batch's precision.

    Attributes:
        elements: atomic numbers, int64 (B, n).
        start_coords: f0 (B, n, 3).
        end_coords: f1 (B, n, 3).
        start_lattice: l0 (B, 6).
        end_lattice: l1 (B, 6).
    """

    elements: Tensor
    start_coords: Tensor
    end_coords: Tensor
    start_lattice: Tensor
    end_lattice: Tensor

    def to(self, device: torch.device) -> "PairBatch":
        """Return the batch on another device."""
        return PairBatch(*(x.to(device, non_blocking=True) for x in vars(self).values()))

    def __len__(self) -> int:
        return len(self.elements)


class _Shard:
    """One prepared file, its columns as flat arrays that the system reads when touched."""

    def __init__(self, path: Path) -> None:
        with naming_damage(path, "not a readable Arrow file"):
            batches = pa.ipc.open_file(pa.memory_map(str(path)))
            table = batches.read_all().combine_chunks()
        offsets = _flat(table, "elements", "offsets")
        self.offsets = offsets[:-1].astype(np.int64)
        self.num_atoms = np.diff(offsets)
        self.elements = _flat(table, "elements", "values")
        self.start_coords = _flat(table, "start_coords", "values").reshape(-1, 3)
        self.end_coords = _flat(table, "end_coords", "values").reshape(-1, 3)
        self.start_lattice = _flat(table, "start_lattice", "values").reshape(-1, 6)
        self.end_lattice = _flat(table, "end_lattice", "values").reshape(-1, 6)


def _flat(table: pa.Table, column: str, what: str) -> np.ndarray:
    """The flat values or the offsets of a list column, without a copy where it has rows."""
    chunks = table.column(column).chunks
    if not chunks:
        return np.zeros(1 if what == "offsets" else 0, dtype=np.int32)
    return getattr(chunks[0], what).to_numpy()


class PreparedPairs:
    """All prepared files of a split.

    Attributes:
        num_atoms: numbers of atoms of the pairs, one array a shard.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        start: BaseDistribution,
        bounds: AngleBounds,
        *,
        augment_axes: bool = False,
    ) -> None:
        """Open the files.

        Args:
            paths: prepared files.
            start: base distribution that they were prepared for; its noise is added on reading.
            bounds: of the angles' logit.
            augment_axes: whether each drawn pair has axes drawn at random.
        """
        self._start, self._bounds, self._augment_axes = start, bounds, augment_axes
        self._shards = [_Shard(path) for path in paths]
        self.num_atoms = [shard.num_atoms for shard in self._shards]

    def __len__(self) -> int:
        return sum(map(len, self.num_atoms))

    def draw(self, group: Group, rng: np.random.Generator, share: slice = slice(None)) -> PairBatch:
        """Read the pairs of a group, shake their c0, and describe them by other axes if so asked.

        Args:
            group: the pairs.
            rng: decides noise and axes.
            share: the part of the pairs that is wanted, drawn as in the whole group.
        """
        batch = self.batch(group[share])
        if self._start.is_noisy:
            normals = standard_normals(rng, len(group), batch.elements.shape[1])
            mine = normals[0][share], normals[1][share]
            start = batch.start_coords.numpy(), batch.start_lattice.numpy()
            coords, lattice = map(torch.from_numpy, self._start.shake(*start, mine, self._bounds))
            batch = replace(batch, start_coords=coords, start_lattice=lattice)
        if self._augment_axes:
            axes = random_axes(len(group), rng, share)
            batch = PairBatch(
                batch.elements,
                *map(axes.coords, (batch.start_coords, batch.end_coords)),
                *map(axes.lattice, (batch.start_lattice, batch.end_lattice)),
            )
        return batch

    def batch(self, group: Group) -> PairBatch:
        """Read the pairs of a group as they were prepared."""
        order = np.argsort(group[:, 0], kind="stable")
        parts = [
            self._read(self._shards[shard], group[order][group[order, 0] == shard, 1])
            for shard in np.unique(group[:, 0])
        ]
        columns = [np.concatenate(column)[np.argsort(order)] for column in zip(*parts, strict=True)]
        elements, *rest = map(torch.from_numpy, columns)
        return PairBatch(elements.long(), *rest)

    @staticmethod
    def _read(shard: _Shard, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        atoms = shard.offsets[rows, None] + np.arange(shard.num_atoms[rows[0]])
        return (
            shard.elements[atoms],
            shard.start_coords[atoms],
            shard.end_coords[atoms],
            shard.start_lattice[rows],
            shard.end_lattice[rows],
        )


def prefetched(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order, the next one made by a thread beside the use of the last.

    An error of the thread is raised in place of its item. The thread ends with the items, or when
    this iterator is closed, after the item that it is at.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item


def plan_epoch(
    num_atoms: Sequence[np.ndarray], batch_size: int, rng: np.random.Generator
) -> Iterator[list[Group]]:
    """Deal every pair of an epoch to one batch, most batches of one number of atoms.

    Shards come in random order, a buffer's worth is shuffled together, and pairs are dealt by size.
    What is left of each size at the end is joined, in order of size, to batches of several groups.

    Args:
        num_atoms: numbers of atoms, one array a shard.
        batch_size: pairs a batch.
        rng: decides the order.

    Yields:
        The groups of one batch.
    """
    waiting: dict[int, Group] = {}
    for shards in _buffers(num_atoms, rng):
        rows = np.concatenate([_rows_of(shard, len(num_atoms[shard])) for shard in shards])
        sizes = np.concatenate([num_atoms[shard] for shard in shards])
        shuffled = rng.permutation(len(rows))
        rows, sizes = rows[shuffled], sizes[shuffled]
        full = []
        for size in np.unique(sizes).tolist():
            members = np.concatenate([waiting.pop(size, rows[:0]), rows[sizes == size]])
            whole = len(members) // batch_size * batch_size
            full += [[part] for part in members[:whole].reshape(-1, batch_size, 2)]
            waiting[size] = members[whole:]
        yield from (full[i] for i in rng.permutation(len(full)))
    rest = list(_joined_batches(waiting, batch_size))
    yield from (rest[i] for i in rng.permutation(len(rest)))


def size_groups(num_atoms: Sequence[np.ndarray], max_rows: int) -> Iterator[Group]:
    """All pairs once, in order of size, in groups of at most `max_rows`."""
    rows = np.concatenate([_rows_of(shard, len(sizes)) for shard, sizes in enumerate(num_atoms)])
    sizes = np.concatenate(list(num_atoms))
    for size in np.unique(sizes):
        members = rows[sizes == size]
        yield from (members[i : i + max_rows] for i in range(0, len(members), max_rows))


def batches_per_epoch(num_atoms: Sequence[np.ndarray], batch_size: int) -> int:
    """Number of batches `plan_epoch` yields."""
    _, counts = np.unique(np.concatenate(list(num_atoms)), return_counts=True)
    rest = int((counts % batch_size).sum())
    return int((counts // batch_size).sum()) + -(-rest // batch_size)


def _buffers(num_atoms: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[list[int]]:
    """Shards in random order, as many at a time as fill the buffer."""
    buffer: list[int] = []
    held = 0
    for shard in rng.permutation(len(num_atoms)).tolist():
        buffer.append(shard)
        held += len(num_atoms[shard])
        if held >= BUFFER_ROWS:
            yield buffer
            buffer, held = [], 0
    if buffer:
        yield buffer


def _rows_of(shard: int, count: int) -> Group:
    return np.stack([np.full(count, shard), np.arange(count)], axis=1)


def _joined_batches(waiting: dict[int, Group], batch_size: int) -> Iterator[list[Group]]:
    """Cut the sizes' left-over groups, in order of size, into batches."""
    batch: list[Group] = []
    room = batch_size
    for size in sorted(waiting):
        members = waiting[size]
        while len(members):
            part, members = members[:room], members[room:]
            batch.append(part)
            room -= len(part)
            if room == 0:
                yield batch
                batch, room = [], batch_size
    if batch:
        yield batch
