"""Rate of the training loader, from memory-mapped files to batches, and its memory.

    python benchmarks/bench_loader.py --pairs 200000

Random pairs with the sizes of MP-20 are written as the stage prepares them, and read by the code of
the stage.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from flowllm.rfm.base_distribution import LlmBaseDistribution
from flowllm.rfm.loader import PreparedPairs, plan_epoch
from flowllm.rfm.pairs import PREPARED

PAIRS_PER_SHARD = 11_000
SIZES = np.array([2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20])


def write_shard(path: Path, count: int, rng: np.random.Generator) -> None:
    """Write a prepared file of `count` random pairs."""
    num_atoms = rng.choice(SIZES, count)
    offsets = np.concatenate([[0], np.cumsum(num_atoms)]).astype(np.int32)
    total = int(offsets[-1])
    coords = [rng.random(3 * total, dtype=np.float32) for _ in range(2)]
    lattices = [rng.random(6 * count, dtype=np.float32) for _ in range(2)]
    columns = [
        pa.ListArray.from_arrays(offsets, rng.integers(1, 90, total).astype(np.uint8)),
        *(pa.ListArray.from_arrays(3 * offsets, x) for x in coords),
        *(pa.FixedSizeListArray.from_arrays(x, 6) for x in lattices),
    ]
    batch = pa.record_batch(columns, schema=PREPARED)
    with pa.ipc.new_file(path, PREPARED) as writer:
        writer.write_batch(batch)


def main() -> None:
    """Print rates and memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--noise", action="store_true", help="add noise to c0 (appendix F)")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for start in range(0, given.pairs, PAIRS_PER_SHARD):
            paths.append(Path(folder) / f"{start:08d}.arrow")
            write_shard(paths[-1], min(PAIRS_PER_SHARD, given.pairs - start), rng)
        on_disk = sum(path.stat().st_size for path in paths) / 2**20
        base_distribution = (
            LlmBaseDistribution(0.02, 0.2, 2.0)
            if given.noise
            else LlmBaseDistribution(0.0, 0.0, 0.0)
        )
        pairs = PreparedPairs(paths, base_distribution, (59.9, 120.1))
        clock = time.perf_counter()
        plan = list(plan_epoch(pairs.num_atoms, given.batch_size, np.random.default_rng(1)))
        planned = time.perf_counter() - clock
        clock = time.perf_counter()
        read = sum(len(pairs.draw(group, rng)) for batch in plan for group in batch)
        seconds = time.perf_counter() - clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{read} pairs in {len(paths)} files, {on_disk:.0f} MiB on disk")
    print(f"order of an epoch: {planned:.2f} s ({read / planned:,.0f} pairs/s)")
    print(f"reading: {seconds:.2f} s ({read / seconds:,.0f} pairs/s), {len(plan)} batches")
    print(f"memory of Arrow {pa.total_allocated_bytes() / 2**20:.1f} MiB, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
