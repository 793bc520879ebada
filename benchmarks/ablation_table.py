"""The table of the ablation: one row per model and text, with 95 % intervals.

python benchmarks/ablation_table.py runs/ablation [--json table.json]

Shares have Wilson's intervals, medians and divergences those of 1,000 bootstrap samples. A share is
of all drafts, unless the column says otherwise. The minimum distance includes an atom's own images.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_models import MODELS, TEXTS
from pymatgen.core import Composition
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from flowllm.crystal import Crystal
from flowllm.evaluate.hull import MissingReference, ReferenceHull
from flowllm.evaluate.matching import DEFAULT, rms_distance_or_error
from flowllm.evaluate.per_crystal import first_of_each_class, match_samples, novel_names
from flowllm.evaluate.samples import Sample
from flowllm.evaluate.statistics import wilson_interval
from flowllm.evaluate.validity import is_compositionally_valid, reduced_composition
from flowllm.io import schemas
from flowllm.io.tables import crystal_of, read_table
from flowllm.runtime.provenance import read_provenance
from flowllm.seeds import generator

MALFORMED = {
    *("truncated", "wrong_count", "bad_number", "unknown_element"),
    *("unknown_group", "cell_mismatch", "unknown_site", "wrong_multiplicity"),
}
"""Reasons for which a text is no crystal text at all; those of the second line are of symmetric
text, whose names and numbers must fit together."""

NEAR = {"coinciding_atoms", "close_atoms"}
"""Reasons for which a crystal with the requested atoms is rejected."""

MIN_DISTANCE = 0.5
SHARD = "shard-00000.parquet"
Interval = tuple[float, float, float]


def main() -> None:
    """Print the table of all cells that are finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    hull = read_hull(given.out / "hull" / "hull" / "potential.parquet")
    cells = {}
    for name in (f"{model}-{text}" for text in TEXTS for model in MODELS):
        if (given.out / name / "relaxed" / "free" / SHARD).exists():
            cells[name] = measure(given.out / name, hull, given.workers)
    if given.json:
        given.json.write_text(json.dumps(cells, indent=1) + "\n")
    for number, (name, values) in enumerate(cells.items()):
        if number == 0:
            print(f"| model and text | {' | '.join(values)} |")
            print("|---" * (len(values) + 1) + "|")
        print(f"| {name} | {' | '.join(map(shown, values.values()))} |")


def measure(run_dir: Path, hull: ReferenceHull | None, workers: int) -> dict[str, Interval | None]:
    """Return value, low and high by the name of the column."""
    free = read_table(run_dir / "base" / "free" / SHARD, schemas.BASE).to_pylist()
    asked = read_table(run_dir / "base" / "formula" / SHARD, schemas.CSP_BASE).to_pylist()
    crystals = {row["id"]: crystal for row in free if (crystal := crystal_of(row)) is not None}
    far = {name for name, crystal in crystals.items() if min_distance(crystal) >= MIN_DISTANCE}
    trained = read_provenance(run_dir / "llm" / "adapter")["counts"]
    speed = trained["tokens"] / trained["training_seconds"]
    return {
        "tokens/s": (speed, speed, speed),
        "parse": share(is_parsed(row) for row in free),
        "distance >= 0.5 of parsed": share(name in far for name in crystals),
        "accepted": share(row["id"] in far for row in free),
        "parse, formula": share(is_parsed(row) for row in asked),
        "exact formula": share(has_atoms(row) for row in asked),
        "accepted, formula": share(is_accepted(row) for row in asked),
        "SMACT-valid of parsed": share(smact_valid(crystal) for crystal in crystals.values()),
        **unique_and_novel(run_dir, free, crystals, workers),
        "space groups, JS": space_groups(run_dir, list(crystals.values())),
        **relaxation(run_dir, crystals, hull),
    }


def is_parsed(row: dict[str, Any]) -> bool:
    """Return whether a text is crystal text, of whatever crystal."""
    return row["status"] == "ok" or not MALFORMED & set(row["rejections"])


def has_atoms(row: dict[str, Any]) -> bool:
    """Return whether a text has just the requested atoms."""
    return row["status"] == "ok" or bool(NEAR & set(row["rejections"]))


def is_accepted(row: dict[str, Any]) -> bool:
    """Return whether a text has just the requested atoms, which are apart."""
    crystal = crystal_of(row)
    return crystal is not None and min_distance(crystal) >= MIN_DISTANCE


def min_distance(crystal: Crystal) -> float:
    """Return the smallest distance of two atoms, or of an atom and its own image, in angstrom."""
    structure = crystal.to_structure()
    between = structure.distance_matrix[np.triu_indices(len(structure), 1)]
    own = structure.lattice.get_lll_reduced_lattice().abc
    return float(min([*between, *own]))


def smact_valid(crystal: Crystal) -> bool:
    """Return whether the charges of a composition can balance."""
    return is_compositionally_valid(reduced_composition(crystal.atomic_numbers), "smact14")


def unique_and_novel(
    run_dir: Path, rows: Sequence[dict[str, Any]], crystals: dict[str, Crystal], workers: int
) -> dict[str, Interval]:
    """Compare the drafts themselves with each other and with the training crystals."""
    samples = [as_sample(name, crystal) for name, crystal in crystals.items()]
    train = {"train": run_dir / "crystals" / "train.parquet"}
    matches = match_samples(samples, train, ["train"], workers)
    unique = first_of_each_class(matches.classes, matches.classes)
    novel = novel_names(matches, ["train"])
    return {
        "unique": share(row["id"] in unique for row in rows),
        "novel": share(row["id"] in novel for row in rows),
    }


def as_sample(name: str, crystal: Crystal) -> Sample:
    """Return a draft in the place of a relaxed crystal, which `match_samples` compares."""
    return Sample(
        name=name,
        source_name=None,
        base_status="ok",
        attempts=1,
        rejections=(),
        generated_status="ok",
        generated=crystal,
        relaxed_status="ok",
        relaxed=crystal,
        converged=True,
        initial_energy=None,
        final_energy=None,
        num_steps=None,
        num_elements=None,
        e_above_hull=None,
        stable=False,
        metastable=False,
    )


def space_groups(run_dir: Path, crystals: Sequence[Crystal]) -> Interval:
    """Return the Jensen-Shannon divergence (bits) of space groups from those of the test split."""
    test = read_table(run_dir / "crystals" / "test.parquet", schemas.CRYSTALS).to_pylist()
    known = [crystal for row in test if (crystal := crystal_of(row)) is not None]
    reference = np.bincount([group_of(crystal) for crystal in known], minlength=231)
    found = np.array([group_of(crystal) for crystal in crystals])
    return bootstrapped(found, lambda part: divergence(np.bincount(part, minlength=231), reference))


def group_of(crystal: Crystal) -> int:
    """Return the number of the space group with a tolerance of 0.1 angstrom; 0 if none is found."""
    try:
        return int(SpacegroupAnalyzer(crystal.to_structure(), 0.1).get_space_group_number())
    except (TypeError, ValueError):  # spglib finds none where atoms coincide
        return 0


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Jensen-Shannon divergence of two counts, in bits, 0 to 1."""
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    parts = [(x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum() for x in (p, q)]
    return float(sum(parts) / 2)


def relaxation(
    run_dir: Path, crystals: dict[str, Crystal], hull: ReferenceHull | None
) -> dict[str, Interval | None]:
    """Compare the drafts with their relaxed states, and these with the hull."""
    rows = read_table(run_dir / "relaxed" / "free" / SHARD, schemas.RELAXED).to_pylist()
    relaxed = {row["id"]: row for row in rows if row["status"] == "ok" and row["id"] in crystals}
    matches, above = [], []
    for name, row in relaxed.items():
        state = crystal_of(row)
        assert state is not None
        matches.append(rms_distance_or_error(crystals[name], state, DEFAULT)[0] is not None)
        if hull is not None:
            amounts = state.to_structure().composition.get_el_amt_dict()
            try:
                above.append(hull.e_above_hull(amounts, row["final_energy_per_atom"]))
            except MissingReference:
                continue
    released = np.array([row["delta_energy_per_atom"] for row in relaxed.values()])
    return {
        "relaxed of parsed": share(name in relaxed for name in crystals),
        "match relaxed state": share(matches),
        "released, eV/atom": bootstrapped(released, np.median),
        "above hull, eV/atom": bootstrapped(np.array(above), np.median) if above else None,
    }


def read_hull(path: Path) -> ReferenceHull | None:
    """Read the hull of relaxed training crystals; None if it was not made."""
    if not path.exists():
        return None
    rows = read_table(path, schemas.HULL_ENTRIES).to_pylist()
    entries = [
        (Composition(row["formula"]).get_el_amt_dict(), row["energy_per_atom"]) for row in rows
    ]
    return ReferenceHull(entries)


def share(flags: Any) -> Interval:
    """Return a share and its interval."""
    found = list(flags)
    value = sum(found) / len(found) if found else float("nan")
    return (value, *wilson_interval(sum(found), len(found)))


def bootstrapped(values: np.ndarray, statistic: Callable[[np.ndarray], Any]) -> Interval:
    """Return a statistic and the 2.5th and 97.5th percentiles of its bootstrap samples."""
    if values.size == 0:
        return (float("nan"),) * 3
    rng = generator(0, "ablation", "bootstrap")
    drawn = [statistic(rng.choice(values, values.size)) for _ in range(1000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(statistic(values)), float(low), float(high)


def shown(value: Interval | None) -> str:
    """Return a value with its interval as a cell of the table."""
    if value is None:
        return "-"
    middle, low, high = value
    if low == high:
        return f"{middle:.0f}"
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
