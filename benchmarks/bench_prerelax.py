"""Relaxations per minute, batched and one by one with ASE, and the share that relaxes back.

    python benchmarks/bench_prerelax.py --csv data/mp_20_sample/test.csv

The atoms of real MP-20 crystals are moved by 0.1 angstrom in random directions. The crystals are
relaxed in batches of several sizes; the first of them are also relaxed one by one with chgnet's own
ASE relaxer. The ratio is taken on the same crystals, both of wall times and of processor times,
which other work on the machine affects less.
"""

import argparse
import contextlib
import csv
import io
import time
from pathlib import Path

import numpy as np
import torch
from chgnet.model import StructOptimizer
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from flowllm.crystal import Crystal
from flowllm.relax import relaxer
from flowllm.relax.models import load_potential
from flowllm.runtime.malloc import keep_freed_memory

LIMITS = {"max_force": 0.1, "max_steps": 500, "max_seconds": float("inf")}


def displaced(path: Path, count: int) -> tuple[list[Crystal], list[Crystal]]:
    """Return the first crystals of a CSV, and these with every atom moved by 0.1 angstrom."""
    with path.open(newline="") as handle:
        rows = [row for row, _ in zip(csv.DictReader(handle), range(count), strict=False)]
    rng = np.random.default_rng(0)
    given, moved = [], []
    for row in rows:
        structure = Structure.from_str(row["cif"], fmt="cif")
        given.append(Crystal.from_structure(structure))
        steps = rng.normal(size=(len(structure), 3))
        steps *= 0.1 / np.linalg.norm(steps, axis=1, keepdims=True)
        coords = structure.cart_coords + steps
        moved.append(
            Crystal.from_structure(
                Structure(structure.lattice, structure.species, coords, coords_are_cartesian=True)
            )
        )
    return given, moved


class Clock:
    """Wall time and processor time of a block in seconds."""

    def __enter__(self):
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        self.wall = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu


def relax_one_by_one(crystals: list[Crystal]) -> list:
    """Relax with chgnet's own relaxer: ASE's FIRE and Frechet cell filter."""
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = StructOptimizer(use_device="cpu")
        return [
            optimizer.relax(
                crystal.to_structure(),
                fmax=LIMITS["max_force"],
                steps=LIMITS["max_steps"],
                verbose=False,
            )
            for crystal in crystals
        ]


def compare(potential, given: list[Crystal], crystals: list[Crystal]) -> None:
    """Print times, energies and matches of both methods on the same displaced crystals."""
    with Clock() as theirs:
        expected = relax_one_by_one(crystals)
    with Clock() as ours:
        found = relaxer.relax(potential, crystals, **LIMITS)
    steps = sum(len(result["trajectory"]) - 2 for result in expected)
    energies = [
        result.final_energy_per_atom
        - other["trajectory"].energies[-1] / len(other["final_structure"])
        for result, other in zip(found, expected, strict=True)
    ]
    same = sum(
        result.num_steps == len(other["trajectory"])
        for result, other in zip(found, expected, strict=True)
    )
    matcher = StructureMatcher()
    originals = [crystal.to_structure() for crystal in given]
    back = [
        [
            matcher.fit(original, structure)
            for original, structure in zip(originals, ends, strict=True)
        ]
        for ends in (
            [result.crystal.to_structure() for result in found],
            [other["final_structure"] for other in expected],
        )
    ]
    print(f"{len(crystals)} crystals, {steps} steps one by one")
    for name, clock in (("one by one", theirs), ("batched", ours)):
        per_minute = 60 * len(crystals) / clock.wall
        times = f"{clock.wall:7.1f} s wall, {clock.cpu:7.1f} s CPU"
        print(f"  {name:11} {times}, {per_minute:.1f}/min", flush=True)
    ratios = theirs.wall / ours.wall, theirs.cpu / ours.cpu
    print(f"  batched is {ratios[0]:.2f} times as fast (CPU {ratios[1]:.2f})")
    worst = 1000 * np.abs(energies).max()
    print(f"  same number of steps: {same}; energies differ by at most {worst:.3f} meV/atom")
    print(f"  match the original: {sum(back[0])} batched, {sum(back[1])} one by one")
    print(f"  the same crystals: {back[0] == back[1]}")


def batch_sizes(potential, crystals: list[Crystal]) -> None:
    """Print the time of the same relaxations in batches of several loads."""
    chosen = relaxer.CPU_BATCH_LOAD
    for load in (1.0, 1_250.0, 2_500.0, 5_000.0, 10_000.0, 20_000.0, 40_000.0):
        relaxer.CPU_BATCH_LOAD = load
        with Clock() as clock:
            relaxer.relax(potential, crystals, **LIMITS)
        print(f"  load {load:7.0f}: {clock.wall:6.1f} s wall, {clock.cpu:6.1f} s CPU", flush=True)
    relaxer.CPU_BATCH_LOAD = chosen


def matches(potential, given: list[Crystal], moved: list[Crystal]) -> None:
    """Print how many displaced crystals relax back to their original state."""
    with Clock() as clock:
        found = relaxer.relax(potential, moved, **LIMITS)
    matcher = StructureMatcher()
    good = [result for result in found if result.failure is None]
    back = sum(
        matcher.fit(crystal.to_structure(), result.crystal.to_structure())
        for crystal, result in zip(given, found, strict=True)
        if result.failure is None
    )
    steps = [result.num_steps for result in good]
    converged = sum(result.converged for result in good)
    failed = len(moved) - len(good)
    print(f"{len(moved)} displaced crystals: {back} match the original (pymatgen's defaults)")
    print(f"  {converged} converged, {failed} failed; median {np.median(steps):.0f} steps")
    per_minute, each = 60 * len(moved) / clock.wall, clock.cpu / len(moved)
    print(f"  {per_minute:.1f} relaxations/min, {each:.2f} s CPU each")


def main() -> None:
    """Run the comparison, the sweep over batch sizes, and the matches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, required=True)
    parser.add_argument("--crystals", type=int, default=200)
    parser.add_argument("--one-by-one", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as the stage does
    given, moved = displaced(arguments.csv, arguments.crystals)
    potential = load_potential("chgnet", torch.device("cpu"))
    if arguments.one_by_one:
        compare(potential, given[: arguments.one_by_one], moved[: arguments.one_by_one])
        batch_sizes(potential, moved[: 2 * arguments.one_by_one])
    matches(potential, given, moved)


if __name__ == "__main__":
    main()
