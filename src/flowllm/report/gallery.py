"""The best candidates of a run: their choice, and what the page shows and gives of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SymmetryUndeterminedError

from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.evaluate.matching import DEFAULT, rms_distance_or_error
from flowllm.io import schemas
from flowllm.io.tables import crystal_of, read_table
from flowllm.report.metrics_files import Result
from flowllm.report.scene import SYMPREC, Scene, formula_parts, scenes
from flowllm.report.training_history import ALL_FOUND, is_there, list_shards

LIMIT = 12
"""Number of candidates shown."""

EXAMINED_PER_SHOWN = 10
"""Crystals examined per candidate shown, since several methods can have the same crystal."""

Rank = tuple[bool, bool, float, int, str]
"""Sort key of a crystal: without a compound of its elements in the hull, whose E_hull means little;
not S.U.N.; E_hull; index of its method; id."""

BARE = "the hull has no compound of its elements"


@dataclass(frozen=True)
class Candidate:
    """One crystal of the gallery.

    Attributes:
        name: id of the crystal.
        source: name of its method, or of its file.
        structure: the relaxed crystal.
        e_above_hull: eV per atom.
        sun: whether it is stable, unique and novel.
        converged: whether its relaxation converged.
        space_group: symbol and number of the space group.
        known: id of the known crystal that it matches, None for one that matches none.
        compared: whether the matcher could compare it with known crystals.
        note: further text in small print.
    """

    name: str
    source: str
    structure: Structure
    e_above_hull: float
    sun: bool
    converged: bool
    space_group: str
    known: str | None = None
    compared: bool = True
    note: str = ""

    @property
    def formula(self) -> str:
        """The reduced formula."""
        return str(self.structure.composition.reduced_formula)

    @property
    def formula_parts(self) -> list[tuple[str, str]]:
        """The reduced formula as pairs of letters and number, for subscripts."""
        return formula_parts(self.formula)

    @property
    def files(self) -> dict[str, str]:
        """The relaxed crystal as texts by the format's name."""
        return {
            "CIF": self.structure.to(fmt="cif"),
            "POSCAR": self.structure.to(fmt="poscar"),
        }

    @cached_property
    def scenes(self) -> list[Scene]:
        """One cell and, where it is small, a supercell, for the viewer and the picture."""
        return scenes(self.structure)

    @property
    def verdict(self) -> str:
        """Whether the crystal is known, S.U.N., or novel and not stable, as text."""
        if self.known is not None:
            return f"known: {self.known}"
        if not self.compared:
            return "not compared with known crystals"
        return "S.U.N." if self.sun else "novel, not stable"


def find_candidates(
    results: Sequence[Result],
    run_dir: Path,
    shards: Mapping[str, int] = ALL_FOUND,
    limit: int = LIMIT,
) -> list[Candidate]:
    """Return the novel crystals with the lowest energy above the hull, S.U.N. crystals first.

    Crystals of which the hull has no compound are last, since they are compared with the elements
    alone. Of crystals that match each other, in one or several methods, the first is taken.

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
            [name for *_, other, name in ranked if other == order],
        )
        for order in sorted({order for *_, order, _ in ranked})
    }
    found: list[Candidate] = []
    shown: list[Crystal] = []
    for bare, not_sun, energy, order, name in ranked:
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
            one = _candidate(row, crystal, results[order], energy, not not_sun)
            found.append(replace(one, note=BARE) if bare else one)
    return found


def methods_without_files(
    results: Sequence[Result], run_dir: Path, shards: Mapping[str, int] = ALL_FOUND
) -> list[str]:
    """Return the methods whose metrics have candidates, but whose relaxed crystals are absent.

    Args:
        results: results by one source of energies.
        run_dir: folder of the run.
        shards: number of shards of the run, by folder.

    Raises:
        FlowllmError: a shard is missing beside others, or beside its record.
    """
    ranked = [results[order] for order in sorted({order for *_, order, _ in _ranked(results)})]
    return [
        one.method for one in ranked if not any(map(is_there, _relaxed_files(one, run_dir, shards)))
    ]


def _ranked(results: Sequence[Result]) -> list[Rank]:
    """Return the best novel crystal of each class and method, in their order."""
    ranked: list[tuple[Rank, str]] = []
    for order, result in enumerate(results):
        for row in result.per_crystal.to_pylist():
            placed = row["e_above_hull"] is not None and (row["num_elements"] or 0) >= 2
            if placed and row["novel"]:
                bare = row["hull_compounds"] == 0
                rank = (bare, not row["sun"], row["e_above_hull"], order, row["id"])
                ranked.append((rank, row["duplicate_group"]))
    best: dict[tuple[int, str], Rank] = {}
    for rank, group in sorted(ranked):
        best.setdefault((rank[3], group), rank)
    return sorted(best.values())


def _relaxed_rows(
    result: Result, run_dir: Path, shards: Mapping[str, int], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Read the named relaxed crystals of a method; empty if their files are not in the run."""
    if result.kind == "potential":
        schema, converged = schemas.RELAXED, "converged"
    else:
        schema, converged = schemas.DFT_RESULTS, "converged_ionic"
    columns = ["id", "atomic_numbers", "frac_coords", "lengths", "angles", converged]
    found: dict[str, dict[str, Any]] = {}
    for path in _relaxed_files(result, run_dir, shards):
        if is_there(path):
            table = read_table(path, schema, columns).rename_columns([*columns[:-1], "converged"])
            wanted = table.filter(pc.is_in(table.column("id"), pa.array(names, pa.string())))
            found |= {row["id"]: row for row in wanted.to_pylist()}
    return found


def _relaxed_files(result: Result, run_dir: Path, shards: Mapping[str, int]) -> list[Path]:
    """Return the files of the relaxed crystals of a method in the folder of the run."""
    if result.kind == "potential":
        return list_shards(run_dir, f"relaxed/{result.method}", shards)
    return [run_dir / "dft" / f"{result.method}.parquet"]


def _candidate(
    row: Mapping[str, Any], crystal: Crystal, result: Result, e_above_hull: float, sun: bool
) -> Candidate:
    structure = crystal.to_structure()
    return Candidate(
        name=row["id"],
        source=result.method,
        structure=structure,
        e_above_hull=e_above_hull,
        sun=sun,
        converged=bool(row["converged"]),
        space_group=space_group_text(structure),
    )


def space_group_text(structure: Structure) -> str:
    """Return symbol and number of a structure's space group, by spglib."""
    try:
        symbol, number = structure.get_space_group_info(symprec=SYMPREC)
    except SymmetryUndeterminedError:  # spglib fails if atoms nearly coincide
        return "not found"
    return f"{symbol} ({number})"
