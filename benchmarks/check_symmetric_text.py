"""Write real crystals as symmetric text, decode them, and compare both: the table of the docs.

    python benchmarks/check_symmetric_text.py data/mp_20_large/train.csv --count 3000

CSV is a file in MP-20's format. The rows are spread over it, and rows that `prepare` rejects are
left out. Space groups are spglib's at 0.01 angstrom. Every --match-th crystal is compared by
pymatgen's StructureMatcher, without a search for a smaller cell, in both crystal texts.
"""

import argparse
import csv
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import spglib
from pymatgen.analysis.structure_matcher import StructureMatcher

from flowllm.crystal import Crystal
from flowllm.data.cif import crystal_from_cif
from flowllm.data.rejected import RejectedError
from flowllm.llm.crystal_text import Limits, Rejection
from flowllm.llm.symmetric_text import SymmetricText
from flowllm.llm.text import CoordinatesText

SYMPREC = 0.01
MATCHER = StructureMatcher(primitive_cell=False)


def main() -> None:
    """Print the rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path)
    parser.add_argument("--count", type=int, default=3000, help="rows of the file")
    parser.add_argument("--max-atoms", type=int, default=12, help="atoms per primitive cell")
    parser.add_argument("--match", type=int, default=12, help="1: compare every crystal")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    totals: Counter[str] = Counter()
    for number, (primitive, standard) in enumerate(crystals(given, totals)):
        totals += compare(primitive, standard, matched=number % given.match == 0)
    report(totals)


def crystals(given: argparse.Namespace, totals: Counter[str]) -> Iterator[tuple[Crystal, Crystal]]:
    """Yield each crystal in its primitive and in its standard cell; count those without."""
    with given.csv.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows[:: max(1, len(rows) // given.count)]:
        try:
            primitive = crystal_from_cif(row["cif"], "primitive", given.max_atoms)
        except RejectedError:
            continue
        totals["crystals"] += 1
        try:
            yield primitive, crystal_from_cif(row["cif"], "standard", given.max_atoms)
        except RejectedError as error:
            totals[f"prepare: {error.reason}"] += 1


def compare(primitive: Crystal, standard: Crystal, *, matched: bool) -> Counter[str]:
    """Return counts and sums of one crystal."""
    codec, plain = SymmetricText(), CoordinatesText()
    found: Counter[str] = Counter()
    clock = time.process_time()
    described = codec.describe(standard)
    found["describing"] = time.process_time() - clock
    clock = time.process_time()
    decoded = codec.decode(described.text, Limits(standard.num_atoms))
    found["decoding"] = time.process_time() - clock
    written = plain.describe(primitive)
    found["sites"], found["atoms"] = len(described.sites), len(written.sites)
    found["characters"], found["plain characters"] = len(described.text), len(written.text)
    if isinstance(decoded, Rejection):
        found[f"decode: {decoded.reason}"] = 1
        return found
    found["decoded"] = 1
    found["own axes"] = have_same_axes(decoded.crystal, standard)
    found["angles out of 60 to 120"] = is_out_of_bounds(standard)
    group = group_of(primitive)
    found["group kept"] = group == group_of(decoded.crystal)
    if matched:
        again = plain.decode(written.text, Limits(primitive.num_atoms))
        found["compared"] = 1
        found += match("", primitive, decoded.crystal)
        if not isinstance(again, Rejection):
            found += match("plain ", primitive, again.crystal)
            found["plain group kept"] = group == group_of(again.crystal)
    return found


def match(name: str, one: Crystal, other: Crystal) -> Counter[str]:
    """Return whether two crystals match, and their RMSD."""
    rms = MATCHER.get_rms_dist(one.to_structure(), other.to_structure())
    if rms is None:
        return Counter()
    return Counter({f"{name}match": 1, f"{name}rmsd": rms[0]})


def have_same_axes(one: Crystal, other: Crystal) -> bool:
    """Return whether atoms, their order, and cells are the same up to the rounding of text."""
    steps = one.frac_coords - other.frac_coords
    return bool(
        one.atomic_numbers.tolist() == other.atomic_numbers.tolist()
        and np.abs(steps - steps.round()).max() < 0.03
        and np.abs(one.lengths - other.lengths).max() < 0.2
        and np.abs(one.angles - other.angles).max() < 2
    )


def is_out_of_bounds(crystal: Crystal) -> bool:
    """Return whether an angle is outside of the flow's default bounds."""
    return bool(crystal.angles.min() < 59.9 or crystal.angles.max() > 120.1)


def group_of(crystal: Crystal) -> int:
    """Return the number of the space group."""
    cell = (crystal.to_structure().lattice.matrix, crystal.frac_coords, crystal.atomic_numbers)
    found = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
    return 0 if found is None else int(found.number)


def report(totals: Counter[str]) -> None:
    """Print the totals, and means per crystal."""
    count, compared = totals["crystals"], totals["compared"]
    means = ("sites", "atoms", "characters", "plain characters", "describing", "decoding")
    for name in means:
        unit, factor = ("ms", 1e3) if name.endswith("ing") else ("per crystal", 1.0)
        print(f"{name}: {factor * totals.pop(name) / count:.2f} {unit}")
    for name in ("rmsd", "plain rmsd"):
        matched = totals["match" if name == "rmsd" else "plain match"]
        print(f"mean {name}: {totals.pop(name) / max(1, matched):.4f}")
    for name, value in totals.items():
        of = compared if "match" in name or name == "plain group kept" else count
        print(f"{name}: {value} of {of}")


if __name__ == "__main__":
    main()
