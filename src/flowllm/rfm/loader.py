"""Batches of prepared pairs: memory-mapped files, shuffled in buffers, grouped by number of atoms.

The order of an epoch consists of row numbers drawn from a seed, so a resumed run finds its batch
without reading the pairs before it. Only the rows of a batch are copied from the files.
"""

import resource
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from flowllm.errors import FlowllmError
from flowllm.io.tables import naming_damage
from flowllm.rfm.axes import random_axes
from flowllm.rfm.base_distribution import BaseDistribution, standard_normals
from flowllm.rfm.manifold import AngleBounds
from flowllm.rfm.network import MAX_ATOMS
from flowllm.runtime.device import copied

BUFFER_ROWS = 100_000
"""Minimum number of pairs that are shuffled together; a buffer consists of whole shards."""

_OTHER_FILES = 256
"""Files that a process opens beside the prepared ones: libraries, logs, devices, sockets."""

T = TypeVar("T")

Group = np.ndarray
"""Pairs with the same number of atoms, int64 (m, 2): the shard, and the row in the shard."""


@dataclass
class PairBatch:
    """Pairs with the same number of atoms n; not frozen, because Fabric converts its precision.

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
        """Return the batch on another device; a GPU copies it while the program continues."""
        return PairBatch(*(copied(x, device) for x in vars(self).values()))

    def __len__(self) -> int:
        return len(self.elements)


class _Shard:
    """One prepared file; its columns are flat memory-mapped arrays, read on access."""

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


def _flat(table: pa.Table, column: str, what: Literal["values", "offsets"]) -> np.ndarray:
    """Return the flat values or the offsets of a list column, without a copy unless it is empty."""
    chunks = table.column(column).chunks
    if not chunks:
        return np.zeros(1 if what == "offsets" else 0, dtype=np.int32)
    array: np.ndarray = getattr(chunks[0], what).to_numpy()
    return array


class PreparedPairs:
    """The prepared files of a split.

    Attributes:
        num_atoms: numbers of atoms of the pairs, one array per shard.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        base_distribution: BaseDistribution,
        bounds: AngleBounds,
        *,
        augment_axes: bool = False,
    ) -> None:
        """Open the files.

        Args:
            paths: prepared files.
            base_distribution: base distribution that they were prepared for; its noise is added
                when pairs are drawn.
            bounds: degrees, of the logit of the angles.
            augment_axes: whether each drawn pair gets random axes.
        """
        self._base_distribution, self._bounds = base_distribution, bounds
        self._augment_axes = augment_axes
        _allow_open_files(len(paths))
        self._shards = [_Shard(path) for path in paths]
        self.num_atoms = [shard.num_atoms for shard in self._shards]

    def __len__(self) -> int:
        return sum(map(len, self.num_atoms))

    def draw(self, group: Group, rng: np.random.Generator, share: slice = slice(None)) -> PairBatch:
        """Read the pairs of a group, add noise to their c0, and augment their axes if configured.

        Args:
            group: the pairs.
            rng: random generator of noise and axes; it advances by the draws of the whole group.
            share: the pairs to return, with the same noise and axes as in the whole group.
        """
        batch = self.batch(group[share])
        if self._base_distribution.is_noisy:
            normals = standard_normals(rng, len(group), batch.elements.shape[1])
            mine = normals[0][share], normals[1][share]
            coords, lattice = self._base_distribution.add_noise(
                batch.start_coords.numpy(), batch.start_lattice.numpy(), mine, self._bounds
            )
            batch = replace(
                batch,
                start_coords=torch.from_numpy(coords),
                start_lattice=torch.from_numpy(lattice),
            )
        if self._augment_axes:
            axes = random_axes(len(group), rng, share)
            batch = PairBatch(
                batch.elements,
                *map(axes.coords, (batch.start_coords, batch.end_coords)),
                *map(axes.lattice, (batch.start_lattice, batch.end_lattice)),
            )
        return batch

    def batch(self, group: Group) -> PairBatch:
        """Read the pairs of a group, without noise or augmentation."""
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
        """Copy rows with the same number of atoms: the columns in the order of `PairBatch`."""
        atoms = shard.offsets[rows, None] + np.arange(shard.num_atoms[rows[0]])
        return (
            shard.elements[atoms],
            shard.start_coords[atoms],
            shard.end_coords[atoms],
            shard.start_lattice[rows],
            shard.end_lattice[rows],
        )


def _allow_open_files(count: int) -> None:
    """Raise this process's limit on open files, often 1,024, so that `count` more fit.

    A file that is mapped into memory stays open.

    Raises:
        FlowllmError: the limit cannot be raised so far.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = soft + count
    if hard != resource.RLIM_INFINITY:
        if hard < count + _OTHER_FILES:
            raise FlowllmError(
                f"train_rfm: {count} shards are open at once, but a process may open {hard} files "
                "(ulimit -Hn). Make the shards larger (sizes.pairs_per_shard), or let the "
                "administrator raise the limit."
            )
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def prefetched(items: Iterator[T]) -> Generator[T]:
    """Yield the items in order, while a thread computes the item after the yielded one.

    An exception in the thread is raised in place of its item. When this generator is closed, the
    thread finishes its current item and ends.
    """

    def take_one() -> list[T]:
        return list(islice(items, 1))

    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        next_one = thread.submit(take_one)
        while one := next_one.result():
            next_one = thread.submit(take_one)
            yield one[0]


def plan_epoch(
    num_atoms: Sequence[np.ndarray], batch_size: int, rng: np.random.Generator
) -> Iterator[list[Group]]:
    """Assign every pair of an epoch to one batch; most batches have one number of atoms.

    Shards are read in random order into buffers. The pairs of a buffer are shuffled and cut into
    batches by number of atoms. The pairs of each size that remain at the end are joined, in order
    of size, to batches of several groups.

    Args:
        num_atoms: numbers of atoms, one array per shard.
        batch_size: pairs per batch.
        rng: random generator of the order.

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
    """Yield all pairs once, in order of size, in groups of at most `max_rows`."""
    for size in np.flatnonzero(_count_sizes(num_atoms)):
        # Of one size at a time, since the rows of 33 million pairs would take a gigabyte.
        rows = [np.flatnonzero(sizes == size) for sizes in num_atoms]
        members = np.concatenate(
            [np.stack([np.full(len(one), i), one], axis=1) for i, one in enumerate(rows)]
        )
        yield from (members[i : i + max_rows] for i in range(0, len(members), max_rows))


def _count_sizes(num_atoms: Sequence[np.ndarray]) -> np.ndarray:
    """Return the number of pairs with 0, 1, 2, ... atoms."""
    counts = np.zeros(MAX_ATOMS + 1, dtype=np.int64)
    for sizes in num_atoms:
        counts += np.bincount(sizes, minlength=len(counts))
    return counts


def batches_per_epoch(num_atoms: Sequence[np.ndarray], batch_size: int) -> int:
    """Return the number of batches that `plan_epoch` yields."""
    counts = _count_sizes(num_atoms)
    rest = int((counts % batch_size).sum())
    return int((counts // batch_size).sum()) + -(-rest // batch_size)


def _buffers(num_atoms: Sequence[np.ndarray], rng: np.random.Generator) -> Iterator[list[int]]:
    """Yield the shards in random order, each time as many as fill a buffer."""
    buffer: list[int] = []
    num_rows = 0
    for shard in rng.permutation(len(num_atoms)).tolist():
        buffer.append(shard)
        num_rows += len(num_atoms[shard])
        if num_rows >= BUFFER_ROWS:
            yield buffer
            buffer, num_rows = [], 0
    if buffer:
        yield buffer


def _rows_of(shard: int, count: int) -> Group:
    """Return all rows of a shard of `count` rows."""
    return np.stack([np.full(count, shard), np.arange(count)], axis=1)


def _joined_batches(waiting: dict[int, Group], batch_size: int) -> Iterator[list[Group]]:
    """Join the remaining groups of all sizes, in order of size, to batches."""
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
