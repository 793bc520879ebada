"""Agreement of the run's energies with those that the source of the crystals gives, e.g. by DFT.

Energies above the hull are compared twice: with those of the source, whose hull is another, and
with the distances of the known formation energies to the hull of the training crystals' own. The
second comparison leaves out how complete the run's hull is.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition

from flowllm.evaluate.agreement import bounds, pearson, spearman
from flowllm.evaluate.hull import ReferenceHull
from flowllm.evaluate.statistics import rate, summary
from flowllm.io import schemas
from flowllm.io.tables import read_table

KNOWN = "with both energies"

Bounds = Mapping[str, Callable[[np.ndarray], np.ndarray]]
Rows = Sequence[Mapping[str, Any]]


def add_train_distances(rows: Sequence[dict[str, Any]], train: Path) -> list[dict[str, Any]]:
    """Return the rows with the distance of their known formation energies to the training hull.

    The elements are at 0 on that hull, by the definition of a formation energy.

    Args:
        rows: rows of `schemas.METRICS_WITH_ENERGIES` without `known_e_above_train`.
        train: table of the training crystals.
    """
    table = read_table(train, schemas.CRYSTALS, ["formula", "formation_energy_per_atom"])
    entries = [
        (_amounts(one["formula"]), one["formation_energy_per_atom"])
        for one in table.to_pylist()
        if one["formation_energy_per_atom"] is not None
    ]
    placed = [dict(row) for row in rows]
    known = [row for row in placed if row["known_formation_energy"] is not None and row["formula"]]
    symbols = {symbol for row in known for symbol in _amounts(row["formula"])}
    hull = ReferenceHull([*entries, *(({symbol: 1.0}, 0.0) for symbol in sorted(symbols))])
    for row in known if entries else []:
        energy = row["known_formation_energy"]
        row["known_e_above_train"] = hull.e_above_hull(_amounts(row["formula"]), energy)
    return placed


def _amounts(formula: str) -> dict[str, float]:
    return dict(Composition(formula).get_el_amt_dict())


def known_agreement(rows: Rows, rule: Mapping[str, Any]) -> dict[str, Any] | None:
    """Compare energies above the hull and formation energies with the known ones.

    An energy above the hull of the source is never below 0 where the crystal is itself an entry of
    that hull, as in the Materials Project: such a crystal is stable at 0. The run's own distance is
    to a hull without the crystal, and can be negative. Therefore the source's value counts as
    stable at `stable_below` too, whatever `inclusive` says.

    Args:
        rows: rows of `schemas.METRICS_WITH_ENERGIES`.
        rule: section `stability` of the configuration.

    Returns:
        Comparisons by name: `source` (its own hull), `train` (the hull of the training crystals),
        `formation` (formation energies, without rates); None for rows without known energies.
    """
    if not rows or "known_e_above_hull" not in rows[0]:
        return None
    ours, elements = bounds(rule), rule["min_elements"]
    above, formed = "e_above_hull", "formation_energy_per_atom"
    of_source = bounds({**rule, "inclusive": True})
    found = {
        "source": _compared(rows, (above, "known_e_above_hull"), elements, (ours, of_source)),
        "train": _compared(rows, (above, "known_e_above_train"), elements, (ours, ours)),
        "formation": _compared(rows, (formed, "known_formation_energy"), elements, ({}, {})),
    }
    return {name: one for name, one in found.items() if one["count"]}


def _compared(
    rows: Rows, columns: tuple[str, str], min_elements: int, rules: tuple[Bounds, Bounds]
) -> dict[str, Any]:
    """Return rates, correlations and differences of two columns of energies.

    Args:
        rows: the rows.
        columns: the run's energies, and the known ones.
        min_elements: distinct elements that a stable crystal has at least.
        rules: what is stable and what is metastable, by the run's energies and by the known ones.
    """
    both = [row for row in rows if None not in (row.get(columns[0]), row.get(columns[1]))]
    ours, known = (np.array([row[one] for row in both], dtype=np.float64) for one in columns)
    enough = np.array([row["num_elements"] >= min_elements for row in both], dtype=bool)
    rates: dict[str, Any] = {}
    for name in rules[0]:
        first, second = rules[0][name](ours) & enough, rules[1][name](known) & enough
        stable_by_both = int((first & second).sum())
        rates |= {
            f"agree_{name}": rate(int((first == second).sum()), len(both), KNOWN),
            f"ours_{name}": rate(int(first.sum()), len(both), KNOWN),
            f"known_{name}": rate(int(second.sum()), len(both), KNOWN),
            f"confirmed_{name}": rate(stable_by_both, int(first.sum()), f"{name} in this run"),
            f"found_{name}": rate(stable_by_both, int(second.sum()), f"{name}, known"),
        }
    return {
        "count": len(both),
        "rates": rates,
        "correlations": {"pearson": pearson(ours, known), "spearman": spearman(ours, known)},
        "differences": {
            "difference": summary((ours - known).tolist(), "eV/atom", KNOWN),
            "absolute": summary(np.abs(ours - known).tolist(), "eV/atom", KNOWN),
        },
    }
