"""The table of `flowllm generate`: one row per draft, ordered by energy above the hull."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flowllm.commands.generate_chain import Followed
from flowllm.crystal import Crystal
from flowllm.data.wishes import ELEMENTS_MODE
from flowllm.io.tables import crystal_columns, crystal_of
from flowllm.report.gallery import space_group_text

Row = dict[str, Any]

CIF_FOLDER = "cif"

NOT_MEASURED = "not measured"

FROM_RELAXED = ("formula", "max_force", "converged")
FROM_STABILITY = (
    *("energy_per_atom", "formation_energy_per_atom", "e_above_hull"),
    *("check_e_above_hull", "hull_compounds", "stable", "metastable"),
)
FROM_JUDGED = (
    "structurally_valid",
    "compositionally_valid",
    "unique",
    "duplicate_group",
    "novel",
    "matched_material_id",
    "sun",
)
ANSWERED = ("asked", "got", "met", "all_met")
FROM_DRAFT = ("attempts", "prompt")


def table_rows(
    followed: Sequence[Followed],
    names: Mapping[str, str],
) -> list[Row]:
    """Return the rows of `schemas.ON_REQUEST`, by energy above the hull.

    Crystals of whose elements the hull has no compound follow the others, since their energies
    above it are too low. Then come those without such an energy, and drafts without a relaxed
    crystal are last.

    Args:
        followed: what became of each draft.
        names: file or key of each given crystal, by id.
    """
    rows = [_row(one) | {"source_name": names.get(one.draft["id"])} for one in followed]
    rows.sort(key=_order)
    rank = 0
    for row in rows:
        if row["lengths"] is not None:
            rank += 1
            row["rank"], row["cif"] = rank, f"{CIF_FOLDER}/{_file_name(rank, row)}"
    return rows


def _order(row: Row) -> tuple[bool, bool, float, str]:
    energy = math.inf if row["e_above_hull"] is None else row["e_above_hull"]
    return row["lengths"] is None, not has_reference(row), energy, row["id"]


def _file_name(rank: int, row: Row) -> str:
    """Return a file name that sorts by rank and says formula and energy above the hull."""
    energy = row["e_above_hull"]
    shown = "no-hull" if energy is None else f"{energy:+.3f}eV"
    return f"{rank:04d}_{row['reduced_formula']}_{shown}.cif"


def _row(one: Followed) -> Row:
    crystal = crystal_of(one.relaxed)
    stability = one.stability
    return {
        "id": one.draft["id"],
        **crystal_columns(crystal),
        "rank": None,
        "cif": None,
        **_described(crystal),
        **{name: one.relaxed[name] for name in FROM_RELAXED},
        **{name: stability[name] for name in FROM_STABILITY},
        **{name: one.judged[name] for name in FROM_JUDGED},
        **{name: one.judged.get(name) for name in ANSWERED},
        **{name: one.draft[name] for name in FROM_DRAFT},
        "status": stability["status"],
        "error": stability["error"] or one.judged["error"],
    }


def _described(crystal: Crystal | None) -> Row:
    """Return what the table says of a relaxed crystal beside its energies."""
    if crystal is None:
        return dict.fromkeys(("reduced_formula", "space_group"))
    structure = crystal.to_structure()
    return {
        "reduced_formula": structure.composition.reduced_formula,
        "space_group": space_group_text(structure),
    }


def has_reference(row: Row) -> bool:
    """Return whether the hull has what the energy of a relaxed crystal is compared with.

    That is an entry of each element and, for a compound, of a compound of its elements.
    """
    return row["e_above_hull"] is not None and row["hull_compounds"] != 0


def verdict(row: Row) -> str:
    """Return whether a crystal is known, repeated or novel, as text."""
    group, known = row["duplicate_group"], row["matched_material_id"] is not None
    if row["lengths"] is not None and not known and not row["unique"] and group is not None:
        return f"as {group}"
    return novelty(row)


def novelty(row: Row) -> str:
    """Return whether a crystal is known or novel, as text."""
    if row["lengths"] is None:
        return "-"
    if row["matched_material_id"] is not None:
        return f"known: {row['matched_material_id']}"
    return "novel" if row["novel"] else "not compared"


def wishes_text(row: Row) -> str:
    """Return asked and got of each condition as text; empty where nothing was asked."""
    got, met = dict(row["got"] or ()), dict(row["met"] or ())
    parts = []
    for name, asked in row["asked"] or ():
        if name == ELEMENTS_MODE:
            continue
        answer = NOT_MEASURED
        if name in met:
            answer = f"{got.get(name, 'unknown')}, {'met' if met[name] else 'not met'}"
        parts.append(f"{name} {asked}: {answer}")
    return "; ".join(parts)
