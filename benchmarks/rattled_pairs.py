"""Pairs without a language model: crystals shaken out of their relaxed state, and these states.

python benchmarks/rattled_pairs.py crystals/train.parquet --split train --draws 20 --out OUT.parquet

A draft has its crystal's atoms; each draft has a strength of its own between none and the largest.
"""

import argparse
from pathlib import Path

import numpy as np

from flowllm import tables
from flowllm.crystal import Crystal
from flowllm.seeds import generator

COORDS_NOISE = 0.08
"""Largest standard deviation of the fractional coordinates."""
LENGTHS_NOISE = 0.15
"""Largest standard deviation of each length's logarithm, and of all three lengths' together."""
ANGLES_NOISE = 6.0
"""Largest standard deviation of the angles, degrees; they stay between 60 and 120."""


def rattled(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """A draft of a crystal: coordinates, lengths and angles with noise."""
    for_coords, for_lengths, for_angles = rng.random(3)
    moves = rng.normal(size=crystal.frac_coords.shape)
    coords = crystal.frac_coords + COORDS_NOISE * for_coords * moves
    scales = rng.normal(size=3) + rng.normal()
    angles = crystal.angles + ANGLES_NOISE * for_angles * rng.normal(size=3)
    return Crystal.from_arrays(
        crystal.atomic_numbers,
        np.mod(coords, 1.0),
        crystal.lengths * np.exp(LENGTHS_NOISE * for_lengths * scales),
        np.clip(angles, 60.0, 120.0),
    )


def main() -> None:
    """Write one shard of pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("crystals", type=Path)
    parser.add_argument("--split", required=True)
    parser.add_argument("--draws", type=int, required=True, help="drafts a crystal")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = []
    for crystal_row in tables.read_table(given.crystals, tables.CRYSTALS).to_pylist():
        target = tables.crystal_of(crystal_row)
        assert target is not None
        for _ in range(given.draws):
            rng = generator(42, "rattled_pairs", given.split, len(rows))
            rows.append(
                {
                    "id": f"{given.split}-rattled-{len(rows):08d}",
                    **tables.crystal_columns(rattled(target, rng)),
                    **tables.crystal_columns(target, "target_"),
                    "material_id": crystal_row["id"],
                    "draw": len(rows),
                    "formula": target.formula,
                    "status": "ok",
                }
            )
    tables.write_table(given.out, rows, tables.PAIRS, {"benchmark": "rattled_pairs"})


if __name__ == "__main__":
    main()
