"""The best candidates as structures that a reader can rotate, and save as CIF."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Element, Structure
from pymatgen.symmetry.analyzer import SymmetryUndeterminedError

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.evaluate.matching import DEFAULT, rms_distance_or_error
from flowllm.io import schemas
from flowllm.io.tables import crystal_of, read_table
from flowllm.report.metrics_files import Result
from flowllm.report.training_history import ALL_FOUND, is_there, list_shards

LIMIT = 12
"""Number of candidates shown."""

EXAMINED_PER_SHOWN = 10
"""Crystals examined per candidate shown, since several methods can have the same crystal."""

SYMPREC = 0.1
"""Tolerance of the space group in angstrom, as used by the Materials Project."""

BOND_FACTOR = 1.2
"""Atoms closer than this factor times the sum of their covalent radii are bonded."""

EDGE = 1e-3
"""Fractional distance to a face of the cell within which an atom is repeated on the other face."""

Rank = tuple[bool, float, int, str]
"""Sort key of a crystal: not S.U.N., E_hull, index of its method, id."""


@dataclass(frozen=True)
class Candidate:
    """One crystal of the gallery.

    Attributes:
        name: id of the crystal.
        method: name of its method.
        energies: names of the energies.
        formula: reduced formula.
        e_above_hull: eV per atom.
        sun: whether it is stable, unique and novel.
        converged: whether its relaxation converged.
        space_group: symbol and number of the space group.
        cif: the relaxed crystal as CIF.
        scene: atoms, bonds and cell for the page's viewer (see `scene`).
        known: id of the known crystal that it matches, None for a novel crystal.
    """

    name: str
    method: str
    energies: str
    formula: str
    e_above_hull: float
    sun: bool
    converged: bool
    space_group: str
    cif: str
    scene: dict[str, Any]
    known: str | None = None

    @property
    def verdict(self) -> str:
        """Whether the crystal is known, S.U.N., or novel and not stable, as text."""
        if self.known is not None:
            return f"known: {self.known}"
        return "S.U.N." if self.sun else "novel, not stable"


def find_candidates(
    results: Sequence[Result],
    run_dir: Path,
    shards: Mapping[str, int] = ALL_FOUND,
    limit: int = LIMIT,
) -> list[Candidate]:
    """Return the novel crystals with the lowest energy above the hull, S.U.N. crystals first.

    Of crystals that match each other, in one or several methods, the first is taken.

    Args:
        results: results by one source of energies.
        run_dir: folder of the run, with the relaxed crystals.
        shards: number of shards of the run, by folder.
        limit: maximum number of candidates.

    Raises:
        FlowllmError: a shard is missing, or the relaxed crystals are not those of the metrics.
    """
    ranked = _ranked(results)[: EXAMINED_PER_SHOWN * limit]
    relaxed = {
        order: _relaxed_rows(
            results[order],
            run_dir,
            shards,
            [name for _, _, other, name in ranked if other == order],
        )
        for order in sorted({order for _, _, order, _ in ranked})
    }
    found: list[Candidate] = []
    shown: list[Crystal] = []
    for not_sun, energy, order, name in ranked:
        if len(found) == limit:
            break
        if relaxed[order] and name not in relaxed[order]:
            raise FlowllmError(
                f"{run_dir}: the relaxed crystals of {results[order].method} have no id {name!r}, "
                "but its metrics do. Run the stage metrics again."
            )
        crystal = crystal_of(relaxed[order][name]) if relaxed[order] else None
        if crystal is None:
            continue
        if all(rms_distance_or_error(crystal, one, DEFAULT)[0] is None for one in shown):
            shown.append(crystal)
            row = relaxed[order][name]
            found.append(_candidate(row, crystal, results[order], energy, not not_sun))
    return found


def _ranked(results: Sequence[Result]) -> list[Rank]:
    """Return the best novel crystal of each class and method, S.U.N. and lowest E_hull first."""
    ranked: list[tuple[Rank, str]] = []
    for order, result in enumerate(results):
        for row in result.per_crystal.to_pylist():
            placed = row["e_above_hull"] is not None and (row["num_elements"] or 0) >= 2
            if placed and row["novel"]:
                rank = (not row["sun"], row["e_above_hull"], order, row["id"])
                ranked.append((rank, row["duplicate_group"]))
    best: dict[tuple[int, str], Rank] = {}
    for rank, group in sorted(ranked):
        best.setdefault((rank[2], group), rank)
    return sorted(best.values())


def _relaxed_rows(
    result: Result, run_dir: Path, shards: Mapping[str, int], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Read the named relaxed crystals of a method; empty if their files are not in the run."""
    if result.kind == "potential":
        paths = list_shards(run_dir, f"relaxed/{result.method}", shards)
        schema, converged = schemas.RELAXED, "converged"
    else:
        paths = [run_dir / "dft" / f"{result.method}.parquet"]
        schema, converged = schemas.DFT_RESULTS, "converged_ionic"
    columns = ["id", "atomic_numbers", "frac_coords", "lengths", "angles", converged]
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if is_there(path):
            table = read_table(path, schema, columns).rename_columns([*columns[:-1], "converged"])
            wanted = table.filter(pc.is_in(table.column("id"), pa.array(names, pa.string())))
            found |= {row["id"]: row for row in wanted.to_pylist()}
    return found


def _candidate(
    row: Mapping[str, Any], crystal: Crystal, result: Result, e_above_hull: float, sun: bool
) -> Candidate:
    structure = crystal.to_structure()
    return Candidate(
        name=row["id"],
        method=result.method,
        energies=", ".join(result.numbers["protocol"]["energy_sources"]),
        formula=structure.composition.reduced_formula,
        e_above_hull=e_above_hull,
        sun=sun,
        converged=bool(row["converged"]),
        space_group=space_group_text(structure),
        cif=structure.to(fmt="cif"),
        scene=scene(structure),
    )


def space_group_text(structure: Structure) -> str:
    """Return symbol and number of a structure's space group, by spglib."""
    try:
        symbol, number = structure.get_space_group_info(symprec=SYMPREC)
    except SymmetryUndeterminedError:  # spglib fails if atoms nearly coincide
        return "not found"
    return f"{symbol} ({number})"


def scene(structure: Structure) -> dict[str, Any]:
    """Return a structure as coordinates in angstrom, with the center of the cell at the origin.

    Args:
        structure: the crystal; atoms on a face of the cell are repeated on the opposite face.

    Returns:
        `atoms` [x, y, z, kind], `kinds` [symbol, color, radius], `bonds` [atom, atom], `edges`
        [x, y, z, x, y, z] and `size`, the distance of the farthest corner from the origin.
    """
    matrix = structure.lattice.matrix
    center = matrix.sum(axis=0) / 2
    symbols = sorted({site.specie.symbol for site in structure})
    positions, kinds = [], []
    for site in structure:
        wrapped = np.mod(site.frac_coords + EDGE, 1) - EDGE
        for shift in itertools.product((0, 1), repeat=3):
            shifted = wrapped + shift
            if (shifted <= 1 + EDGE).all():
                positions.append(shifted @ matrix - center)
                kinds.append(symbols.index(site.specie.symbol))
    corners = np.array(list(itertools.product((0, 1), repeat=3))) @ matrix - center
    edges = [
        [*corners[first], *corners[second]]
        for first, second in itertools.combinations(range(8), 2)
        if (first ^ second).bit_count() == 1
    ]
    return {
        "atoms": [[*_rounded(xyz), kind] for xyz, kind in zip(positions, kinds, strict=True)],
        "kinds": [[symbol, _color(symbol), _radius(symbol)] for symbol in symbols],
        "bonds": _bonds(np.array(positions), [symbols[kind] for kind in kinds]),
        "edges": [_rounded(edge) for edge in edges],
        "size": round(float(np.linalg.norm(corners, axis=1).max()), 3),
    }


def _bonds(positions: np.ndarray, symbols: Sequence[str]) -> list[list[int]]:
    """Return the pairs of bonded atoms; two metal atoms are bonded only if all atoms are metals."""
    metals = {symbol for symbol in symbols if Element(symbol).is_metal}
    only_metals = metals == set(symbols)
    bonds = []
    for first, second in itertools.combinations(range(len(symbols)), 2):
        if {symbols[first], symbols[second]} <= metals and not only_metals:
            continue
        reach = BOND_FACTOR * (_covalent(symbols[first]) + _covalent(symbols[second]))
        if math.dist(positions[first], positions[second]) < reach:
            bonds.append([first, second])
    return bonds


def _covalent(symbol: str) -> float:
    return float(CovalentRadius.radius.get(symbol, 1.5))


def _radius(symbol: str) -> float:
    """Return the drawn radius of an atom in angstrom, 0.38 times its atomic radius."""
    radius = Element(symbol).atomic_radius
    return round(0.38 * float(radius), 3) if radius else 0.5


@cache
def _colors() -> dict[str, list[int]]:
    text = files("pymatgen.vis").joinpath("ElementColorSchemes.yaml").read_text()
    colors: dict[str, list[int]] = yaml.safe_load(text)["VESTA"]
    return colors


def _color(symbol: str) -> str:
    red, green, blue = _colors().get(symbol, (150, 150, 150))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 3) for value in values]
