"""Distances of crystals from their relaxed states, before and after the flow.

python benchmarks/relaxed_gain.py RUN_DIR drafts refined

RUN_DIR is the folder of a run, the other two arguments are names of its methods. Match rates and
RMSD are those of the paper's table 2, and the same without scaling to equal volumes. A crystal that
does not relax or does not match counts as not matched.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pymatgen.analysis.structure_matcher import StructureMatcher

from flowllm.crystal import Crystal
from flowllm.evaluate.matching import DEFAULT, LOOSE
from flowllm.io import schemas
from flowllm.io.tables import crystal_of, read_tables

MATCHERS = {
    f"{name}, {scaling}": StructureMatcher(**asdict(by), primitive_cell=True, scale=scale)
    for scaling, scale in (("scaled", True), ("unscaled", False))
    for name, by in (("default", DEFAULT), ("loose", LOOSE))
}
"""Matchers with scaling to equal volumes, as in table 2, and without."""


@dataclass(frozen=True)
class Version:
    """The crystals of one method.

    Attributes:
        generated: crystals by id.
        relaxed: the relaxed crystals by id.
        rows: rows of `schemas.RELAXED` by id, of the crystals that relaxed.
    """

    generated: dict[str, Crystal]
    relaxed: dict[str, Crystal]
    rows: dict[str, dict[str, Any]]


def read_version(run_dir: Path, name: str) -> Version:
    """Read the shards of a method."""
    generated, _ = _read(run_dir / "generated" / name, schemas.GENERATED)
    return Version(generated, *_read(run_dir / "relaxed" / name, schemas.RELAXED))


def _read(folder: Path, schema: pa.Schema) -> tuple[dict[str, Crystal], dict[str, dict[str, Any]]]:
    shards = sorted(folder.glob("shard-*.parquet"))
    rows = {row["id"]: row for row in read_tables(shards, schema).to_pylist()}
    crystals = {name: crystal_of(row) for name, row in rows.items()}
    found = {name: crystal for name, crystal in crystals.items() if crystal is not None}
    return found, {name: rows[name] for name in found}


def distances(
    first: dict[str, Crystal],
    second: dict[str, Crystal],
    names: Sequence[str],
    matcher: StructureMatcher,
) -> np.ndarray:
    """Return the RMSD between crystals of the same name, NaN if there is none or no match."""
    found = np.full(len(names), np.nan)
    for index, name in enumerate(names):
        if name in first and name in second:
            match = matcher.get_rms_dist(first[name].to_structure(), second[name].to_structure())
            found[index] = np.nan if match is None else match[0]
    return found


def describe(name: str, found: np.ndarray) -> str:
    """Describe the match rate and the mean RMSD of the matches."""
    matched = found[np.isfinite(found)]
    rmsd = f"{matched.mean():.4f}" if len(matched) else "none"
    share = len(matched) / len(found)
    return f"{name}: {len(matched)} of {len(found)} match ({share:.1%}), RMSD {rmsd}"


def relaxation(version: Version, names: Sequence[str]) -> str:
    """Describe the relaxations: counts, and medians of energy, steps and volume change."""
    rows = [version.rows[name] for name in names if name in version.rows]
    energies = [row["delta_energy_per_atom"] for row in rows]
    changes = [
        abs(np.log(_volume(version.relaxed[name]) / _volume(version.generated[name])))
        for name in names
        if name in version.rows
    ]
    return (
        f"{len(rows)} relaxed, {sum(row['converged'] for row in rows)} converged; medians: energy "
        f"{np.median(energies):.3f} eV/atom, {np.median([row['num_steps'] for row in rows]):.0f} "
        f"steps, volume by {np.expm1(np.median(changes)):.1%}"
    )


def _volume(crystal: Crystal) -> float:
    return crystal.to_structure().volume


def main() -> None:
    """Print match rates, RMSD and relaxations before and after the flow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("before")
    parser.add_argument("after")
    given = parser.parse_args()
    versions = {name: read_version(given.run_dir, name) for name in (given.before, given.after)}
    before, after = versions.values()
    names = sorted(before.generated)
    for name, version in versions.items():
        print(f"{name}: {relaxation(version, names)}")
    for label, matcher in MATCHERS.items():
        own = {
            name: distances(version.generated, version.relaxed, names, matcher)
            for name, version in versions.items()
        }
        for name, found in own.items():
            print(describe(f"{label}, {name} to their own relaxed state", found))
        both = np.isfinite(list(own.values())).all(axis=0)
        means = ", ".join(f"{name} {found[both].mean():.4f}" for name, found in own.items())
        print(f"{label}, RMSD of the {both.sum()} that match in both methods: {means}")
        moved = distances(after.generated, before.relaxed, names, matcher)
        print(describe(f"{label}, {given.after} to the relaxed state of {given.before}", moved))


if __name__ == "__main__":
    main()
