"""Time and memory for the distances of 10,000 crystals to a hull of 150,000 synthetic entries.

    python benchmarks/bench_hull.py

As in the Materials Project, a system of few elements has more entries than one of many, and every
element has one. The distances of the first crystals are compared with pymatgen's phase diagram.
"""

import argparse
import resource
import time

import numpy as np
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Element

from flowllm.evaluate.hull import ReferenceHull

SYMBOLS = [Element.from_Z(z).symbol for z in range(1, 90)]
NUM_ELEMENTS = [0.0, 0.01, 0.15, 0.44, 0.28, 0.1, 0.02]
"""Fraction of compositions by number of elements, similar to that of the Materials Project."""


def synthetic(rng: np.random.Generator, count: int) -> list[tuple[dict[str, float], float]]:
    """Return random compositions of small integers, most often of O, S, F, Li, P, and energies."""
    weights = np.where(np.isin(SYMBOLS, ["O", "S", "F", "Li", "P"]), 8.0, 1.0)
    weights /= weights.sum()
    entries = []
    for size in rng.choice(len(NUM_ELEMENTS), count, p=NUM_ELEMENTS):
        symbols = rng.choice(SYMBOLS, size, replace=False, p=weights)
        amounts = {str(symbol): float(rng.integers(1, 9)) for symbol in symbols}
        entries.append((amounts, float(rng.normal(-1.5, 0.8) if size > 1 else rng.uniform(0, 0.2))))
    return entries


def main() -> None:
    """Measure, and compare the first distances with those of pymatgen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=150_000)
    parser.add_argument("--crystals", type=int, default=10_000)
    parser.add_argument("--check", type=int, default=30)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    entries = synthetic(rng, arguments.entries) + [({symbol: 1.0}, 0.0) for symbol in SYMBOLS]
    crystals = synthetic(rng, arguments.crystals)
    start = time.perf_counter()
    hull = ReferenceHull(entries)
    built = time.perf_counter()
    distances = [hull.e_above_hull(amounts, energy) for amounts, energy in crystals]
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{arguments.entries} entries sorted in {built - start:.1f} s")
    print(
        f"{arguments.crystals} distances in {done - built:.1f} s, "
        f"{1000 * (done - built) / arguments.crystals:.2f} ms each; peak memory {peak:.0f} MiB"
    )
    worst = 0.0
    start = time.perf_counter()
    for (amounts, energy), ours in zip(crystals[: arguments.check], distances, strict=False):
        system = set(amounts)
        inside = [
            PDEntry(Composition(a), e * sum(a.values())) for a, e in entries if set(a) <= system
        ]
        entry = PDEntry(Composition(amounts), energy * sum(amounts.values()))
        theirs = PhaseDiagram(inside).get_e_above_hull(
            entry, allow_negative=True, check_stable=False
        )
        worst = max(worst, abs(ours - theirs))
    each = (time.perf_counter() - start) / arguments.check
    print(
        f"pymatgen's phase diagrams: {1000 * each:.0f} ms each; largest difference {worst:.1e} eV"
    )


if __name__ == "__main__":
    main()
