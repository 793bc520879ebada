"""Rate of refine by batch size, in crystal-steps/s of Euler integration at full network size.

python benchmarks/bench_refine.py --atoms 10 --steps 2
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from flowllm.config.load import load_config
from flowllm.crystal import Crystal
from flowllm.rfm.base_distribution import LlmBaseDistribution
from flowllm.rfm.model import build_field
from flowllm.rfm.network import NetworkSize, Standardization
from flowllm.stages.refine import refine_batch, refinement_input

BOUNDS = (59.9, 120.1)
FULL_SIZE = NetworkSize(hidden_dim=512, num_layers=6, time_dim=256, num_frequencies=128)


def main() -> None:
    """Print one line per batch size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--atoms", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 64, 128])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--cpu-clock", action="store_true", help="measure processor time; for one thread"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.cpu_clock else time.perf_counter
    scales = Standardization([6.0] * 3 + [0.0] * 3, [2.0] * 6, 0.05, [0.0] * 6, [0.1] * 6)
    field = build_field(FULL_SIZE, BOUNDS, scales).eval()
    rng = np.random.default_rng(0)
    section = load_config([Path("config.yaml")]).refine
    for batch_size in given.batch_sizes:
        crystals = [
            Crystal.from_arrays(
                rng.integers(1, 90, given.atoms), rng.random((given.atoms, 3)), [6] * 3, [90] * 3
            )
            for _ in range(batch_size)
        ]
        tasks = [
            refinement_input(crystal, field, LlmBaseDistribution(0.0, 0.0, 0.0), rng)
            for crystal in crystals
        ]
        refine_batch(tasks, field, section, 1, None)
        start = clock()
        refine_batch(tasks, field, section, given.steps, None)
        rate = batch_size * given.steps / (clock() - start)
        print(f"batch {batch_size:4d}: {rate:8.1f} crystal-steps/s", flush=True)


if __name__ == "__main__":
    main()
