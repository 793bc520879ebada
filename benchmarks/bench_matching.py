"""Time of uniqueness and novelty, against an extrapolated StructureMatcher run on all pairs.

    python benchmarks/bench_matching.py --samples 2000 --references 27136 --workers 2

The crystals are made from the 1,800 rows of the MP-20 sample beside the repository, with MP-20's
rate of equal compositions: of 600 test and validation rows, 15 have the composition of one of 1,200
training rows, and 14 training rows have that of another one. Extrapolated to all 27,136 training
rows these are every second and every third row. Two thirds of the references are training rows and
copies of them with other elements, one third are strained and rattled copies of these. Half of the
samples are strained and rattled copies of references, by 0.05 (known) to 0.5 angstrom (novel), the
others are real rows and copies with other elements; 5 % of all samples are rattled copies of other
samples. All pairs would take days, so a random selection of pairs is timed. `--references 0`
measures uniqueness alone.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from crystals import mp_20_sample, rattled
from flowllm.crystal import Crystal
from flowllm.evaluate.matching import Bucket
from flowllm.evaluate.per_crystal import match_buckets
from flowllm.evaluate.validity import reduced_composition


def with_other_elements(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Return the crystal with each element replaced by a random one."""
    numbers = np.unique(crystal.atomic_numbers)
    new = rng.choice(np.arange(3, 84), numbers.size, replace=False)
    mapping = dict(zip(numbers.tolist(), new.tolist(), strict=True))
    atomic_numbers = [mapping[number] for number in crystal.atomic_numbers.tolist()]
    return Crystal.from_arrays(atomic_numbers, crystal.frac_coords, crystal.lengths, crystal.angles)


def deformed(crystal: Crystal, distance: float, rng: np.random.Generator) -> Crystal:
    """Return the crystal strained by about 2 %, with its atoms moved by a distance in angstrom."""
    moved = rattled(crystal, distance, int(rng.integers(2**31)))
    lengths = moved.lengths * rng.normal(1, 0.02, 3)
    return Crystal.from_arrays(moved.atomic_numbers, moved.frac_coords, lengths, moved.angles)


def enough(crystals: list[Crystal], count: int, rng: np.random.Generator) -> list[Crystal]:
    """Return the first crystals, and copies with other elements up to `count`."""
    chosen = crystals[:count]
    while len(chosen) < count:
        chosen.append(with_other_elements(crystals[rng.integers(len(crystals))], rng))
    return chosen


def one_of(crystals: list[Crystal], rng: np.random.Generator) -> Crystal:
    """Return a random crystal."""
    return crystals[rng.integers(len(crystals))]


def make_references(train: list[Crystal], count: int, rng: np.random.Generator) -> list[Crystal]:
    """Make references, a third of which have the composition of another one."""
    distinct = enough(train, count - count // 3, rng)
    return distinct + [deformed(one_of(distinct, rng), 0.5, rng) for _ in range(count // 3)]


def make_samples(
    others: list[Crystal], references: list[Crystal], count: int, rng: np.random.Generator
) -> list[Crystal]:
    """Make samples: half have the composition of a reference, 5 % are copies of other samples."""
    planted, clashing = count // 20, count // 2 if references else 0
    samples = enough(others, count - planted - clashing, rng)
    samples += [
        deformed(one_of(references, rng), rng.uniform(0.05, 0.5), rng) for _ in range(clashing)
    ]
    return samples + [deformed(one_of(samples, rng), 0.05, rng) for _ in range(planted)]


def seconds_per_pair(
    first: list[Structure], second: list[Structure], count: int, rng: np.random.Generator
) -> float:
    """Return the mean time of StructureMatcher.fit on random pairs."""
    matcher = StructureMatcher()
    pairs = [(rng.integers(len(first)), rng.integers(len(second))) for _ in range(count)]
    started = time.perf_counter()
    for i, j in pairs:
        matcher.fit(first[i], second[j])
    return (time.perf_counter() - started) / count


def main() -> None:
    """Time both methods and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--references", type=int, default=27136)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--pairs", type=int, default=2000, help="pairs to time with StructureMatcher"
    )
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    train = list(mp_20_sample("train", 1200).values())
    others = [*mp_20_sample("test", 300).values(), *mp_20_sample("val", 300).values()]
    references = make_references(train, options.references, rng)
    samples = make_samples(others, references, options.samples, rng)

    started = time.perf_counter()
    by_composition: dict[tuple, tuple[dict, dict]] = {}
    for index, crystal in enumerate(samples):
        key = reduced_composition(crystal.atomic_numbers)
        by_composition.setdefault(key, ({}, {}))[0][f"s{index:05d}"] = crystal
    for index, crystal in enumerate(references):
        key = reduced_composition(crystal.atomic_numbers)
        if key in by_composition:
            by_composition[key][1][f"r{index:05d}"] = crystal
    buckets = [
        Bucket(found, frozenset(), {"train": known}) for found, known in by_composition.values()
    ]
    matches = match_buckets(buckets, ["train"], options.workers)
    ours = time.perf_counter() - started

    classes = len(set(matches.classes.values()))
    print(
        f"{options.samples} samples, {options.references} references, {len(buckets)} compositions"
    )
    print(f"{classes} classes, {len(matches.known['train'])} samples known")
    print(f"FlowLLM, {options.workers} workers: {ours:.1f} s")
    sample_structures = [crystal.to_structure() for crystal in samples]
    within = seconds_per_pair(sample_structures, sample_structures, options.pairs, rng)
    expected = options.samples * (options.samples - 1) / 2 * within
    if references:
        reference_structures = [crystal.to_structure() for crystal in references[:3000]]
        across = seconds_per_pair(sample_structures, reference_structures, options.pairs, rng)
        expected += options.samples * options.references * across
    print(
        f"all pairs, 1 worker, extrapolated: {expected:.0f} s; {expected / ours:.0f} times as long"
    )


if __name__ == "__main__":
    main()
