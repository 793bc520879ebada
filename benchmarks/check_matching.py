"""Groups of duplicates among 500 real crystals with added duplicates, against all pairs.

    python benchmarks/check_matching.py --crystals 500 --seconds 480

The expected groups join all crystals for which StructureMatcher.fit, with its defaults and without
any shortcut, returns true. All pairs of one reduced composition are compared. Pairs of two
compositions never match; they are compared in random order for --seconds.
"""

import argparse
import itertools
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from crystals import mp_20_sample
from duplicates import fast_classes, with_planted_duplicates
from flowllm.evaluate.validity import reduced_composition


def main() -> None:
    """Compare the groups, print the counts, and exit with 1 if the groups differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crystals", type=int, default=500)
    parser.add_argument(
        "--seconds", type=float, default=480, help="time for pairs of two compositions"
    )
    options = parser.parse_args()
    crystals = with_planted_duplicates(mp_20_sample("train", options.crystals))
    kinds = Counter(name.rsplit("-", 1)[1] for name in crystals)
    planted = {kind: n for kind, n in kinds.items() if kind.isalpha()}
    print(f"{options.crystals} real crystals, added: {planted}")

    started = time.perf_counter()
    found = fast_classes(crystals)
    print(f"FlowLLM: {len(set(found.values()))} groups, {time.perf_counter() - started:.1f} s")

    matcher = StructureMatcher()
    structures = {name: crystal.to_structure() for name, crystal in crystals.items()}
    compositions = {name: reduced_composition(c.atomic_numbers) for name, c in crystals.items()}
    expected = {name: name for name in crystals}
    started = time.perf_counter()
    same, others = [], []
    for pair in itertools.combinations(sorted(crystals), 2):
        (same if compositions[pair[0]] == compositions[pair[1]] else others).append(pair)
    for first, second in same:
        if matcher.fit(structures[first], structures[second]):
            kept, dropped = sorted((expected[first], expected[second]))
            expected = {n: kept if old == dropped else old for n, old in expected.items()}
    seconds = time.perf_counter() - started
    groups = len(set(expected.values()))
    print(f"all {len(same)} pairs of one composition: {groups} groups, {seconds:.1f} s")

    np.random.default_rng(0).shuffle(others)
    started, asked, matched = time.perf_counter(), 0, 0
    for first, second in others:
        if time.perf_counter() - started > options.seconds:
            break
        matched += matcher.fit(structures[first], structures[second])
        asked += 1
    seconds = time.perf_counter() - started
    print(f"{asked} of {len(others)} pairs of two compositions: {matched} matches, {seconds:.1f} s")
    identical = found == expected and matched == 0
    print("identical" if identical else "DIFFERENT")
    sys.exit(not identical)


if __name__ == "__main__":
    main()
