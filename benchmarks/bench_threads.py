"""Steps/s by wait policy of OpenMP's threads, on a quiet machine and beside one busy process.

    python benchmarks/bench_threads.py --threads 2 --rounds 2

Each measurement is a process of its own, since OpenMP reads its settings when it is loaded. Within
a round every policy is measured alone and at once afterwards beside a busy process. Nothing else
should run on the machine.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

POLICIES = {
    "OpenMP's default": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=300": {"GOMP_SPINCOUNT": "300"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
"""Environment of each measured policy."""

WORKLOADS = ("matrix products", "flow training")


def matrix_products() -> Callable[[], object]:
    """Return a step of 20 small matrix products, each of which all threads share."""
    import torch

    a, b = torch.rand(256, 512), torch.rand(512, 512) / 256

    def step() -> None:
        found = a
        for _ in range(20):
            found = torch.relu(found @ b)

    return step


def flow_training() -> Callable[[], object]:
    """Return a training step of the flow network on 16 random crystals of 10 atoms."""
    import torch
    from workloads import SMALL_SIZE, random_field, random_pairs

    from flowllm.rfm.loss import FlowLoss

    field = random_field(SMALL_SIZE)
    loss = FlowLoss(field)
    optimizer = torch.optim.AdamW(field.parameters(), fused=True)
    batch, times = random_pairs(16, 10, torch.device("cpu")), torch.rand(16)

    def step() -> None:
        loss([batch], [times]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(seconds: float) -> dict[str, float]:
    """Return the steps/s of each workload in this process."""
    found = {}
    for name, make in zip(WORKLOADS, (matrix_products, flow_training), strict=True):
        step = make()
        for _ in range(3):
            step()
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            step()
            steps += 1
        found[name] = steps / (time.perf_counter() - start)
    return found


def measure_in_process(policy: dict[str, str], threads: int, seconds: float) -> dict[str, float]:
    """Measure in a new process with the environment of a policy."""
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    environment = kept | {"OMP_NUM_THREADS": str(threads)} | policy
    words = [sys.executable, __file__, "--child", "--seconds", str(seconds)]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def compare(
    names: Sequence[str], threads: int, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Return the median steps/s by policy, for each workload alone and beside a busy process."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for _ in range(rounds):
        for name in names:
            policy = POLICIES[name]
            for place in ("alone", "busy"):
                neighbor = None
                if place == "busy":
                    neighbor = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                try:
                    rates = measure_in_process(policy, threads, seconds)
                finally:
                    if neighbor is not None:
                        neighbor.kill()
                        neighbor.wait()
                for workload, rate in rates.items():
                    found[name].setdefault(f"{workload}, {place}", []).append(rate)
    return {
        name: {what: float(np.median(rates)) for what, rates in one.items()}
        for name, one in found.items()
    }


def main() -> None:
    """Print a table, and write the numbers as JSON if --json is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="by default all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.seconds)))
        return
    found = compare(given.policy or list(POLICIES), given.threads, given.rounds, given.seconds)
    columns = [f"{workload}, {place}" for workload in WORKLOADS for place in ("alone", "busy")]
    print(f"steps/s | {' | '.join(columns)}")
    for name, rates in found.items():
        print(f"{name} | {' | '.join(f'{rates[column]:.1f}' for column in columns)}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
