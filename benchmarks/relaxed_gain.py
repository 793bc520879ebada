"""How near generated crystals are to their relaxed state: match rate and RMSD, as in table 2.

python benchmarks/relaxed_gain.py generated.parquet relaxed.parquet
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa

from flowllm import tables
from flowllm.crystal import Crystal
from flowllm.evaluate.matching import DEFAULT, LOOSE, Tolerances, rms_distance
from flowllm.tables import crystal_of, read_table


def read_crystals(path: Path, schema: pa.Schema) -> dict[str, Crystal | None]:
    """Crystals of a table by their ids."""
    rows = read_table(path, schema).to_pylist()
    return {row["id"]: crystal_of(row) for row in rows}


def distances(
    first: dict[str, Crystal | None], second: dict[str, Crystal | None], tolerances: Tolerances
) -> list[float | None]:
    """RMSD of the crystals that both tables have, None where two do not match."""
    both = [(a, second[name]) for name, a in first.items() if a and second[name]]
    return [rms_distance(a, b, tolerances) for a, b in both]


def main() -> None:
    """Print one line a matcher."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("generated", type=Path)
    parser.add_argument("relaxed", type=Path)
    given = parser.parse_args()
    generated = read_crystals(given.generated, tables.GENERATED)
    relaxed = read_crystals(given.relaxed, tables.RELAXED)
    for name, tolerances in (("default", DEFAULT), ("loose", LOOSE)):
        found = distances(generated, relaxed, tolerances)
        matched = [one for one in found if one is not None]
        rmsd = f"{np.mean(matched):.4f}" if matched else "none"
        print(
            f"{given.generated.stem}, {name} matcher: {len(matched)} of {len(generated)} match "
            f"({len(found)} relaxed), mean RMSD {rmsd}"
        )


if __name__ == "__main__":
    main()
