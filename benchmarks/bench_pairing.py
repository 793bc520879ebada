"""Transport cost of pairs with the atoms in the given order and matched.

python benchmarks/bench_pairing.py --pairs runs/x/pairs/train/shard-00000.parquet ...

The cost of a pair is the mean over its atoms of the squared displacement on the torus from c0 to
c1, in fractions of a cell, after the best common translation: the squared target velocity of the
flow. For cells of at most `--exact` atoms the cost after matching is compared with the least cost,
from an exhaustive search over all orders within the elements and all translations.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np

from flowllm.io.schemas import PAIRS
from flowllm.io.tables import crystal_of, read_table
from flowllm.rfm.pairs import match_atoms


def main() -> None:
    """Print mean costs without and with matching, and of the exhaustive search on small cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, nargs="+", required=True)
    parser.add_argument(
        "--exact", type=int, default=6, help="largest cells (atoms) of the exhaustive search"
    )
    given = parser.parse_args()
    rows = [row for path in given.pairs for row in read_table(path, PAIRS).to_pylist()]
    plain, matched, found, least = [], [], [], []
    seconds = 0.0
    for row in rows:
        if row["status"] != "ok":
            continue
        c0, c1 = crystal_of(row), crystal_of(row, "target_")
        start, end = (c.frac_coords.astype(np.float64) for c in (c0, c1))
        clock = time.perf_counter()
        moved = match_atoms(c0.atomic_numbers, start, end)
        seconds += time.perf_counter() - clock
        plain.append(best_shift_cost(start, end))
        matched.append(best_shift_cost(start, moved))
        if c0.num_atoms <= given.exact:
            found.append(matched[-1])
            least.append(least_cost(c0.atomic_numbers, start, end))
    gain = 1 - np.mean(matched) / np.mean(plain)
    print(
        f"{len(plain)} pairs: given order {np.mean(plain):.4f}, matched {np.mean(matched):.4f} "
        f"({gain:.0%} less), root mean square displacement {np.mean(plain) ** 0.5:.3f} and "
        f"{np.mean(matched) ** 0.5:.3f} of a cell; {1e3 * seconds / len(plain):.2f} ms per pair"
    )
    reached = np.mean(np.array(found) <= np.array(least) + 1e-9)
    print(
        f"{len(found)} of at most {given.exact} atoms: matched {np.mean(found):.4f}, "
        f"least possible {np.mean(least):.4f}, reached in {reached:.0%}"
    )


def best_shift_cost(start: np.ndarray, end: np.ndarray) -> float:
    """Return the least mean squared displacement (n, 3), over all common translations.

    In each direction the best translation is the mean of the differences after the first k of them
    in ascending order were increased by one cell, for some k.
    """
    ways = np.sort(np.mod(end - start, 1.0), axis=0)
    turns = np.tri(len(ways), k=-1).T[:, :, None]  # row k: the first k are increased
    return float(np.var(ways[:, None] + turns, axis=0).min(axis=0).sum())


def least_cost(elements: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """Return the least mean squared displacement over all orders within the elements, too."""
    groups = [np.flatnonzero(elements == z) for z in np.unique(elements)]
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    places = np.concatenate(groups)
    return min(best_shift_cost(start[places], end[list(sum(order, ()))]) for order in orders)


if __name__ == "__main__":
    main()
