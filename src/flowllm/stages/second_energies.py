"""Evaluate relaxed crystals, or those of the reference hull, with the second potential."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowllm.config.sections.energies import Potential
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.io import hull_schemas, schemas, tables
from flowllm.io.shards import Shards
from flowllm.relax.second_potential import SecondPotential
from flowllm.runtime.device import pick_device
from flowllm.runtime.log import Progress
from flowllm.runtime.malloc import keep_freed_memory
from flowllm.runtime.provenance import stage_run
from flowllm.runtime.resume import write_in_parts

PART_CRYSTALS = 200
"""Crystals per saved part: the most that a killed job loses. An evaluation is one step."""

NOT_BOTH = "give either --relaxed (the shards of a method) or --hull (hull/potential.parquet)"


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    potential: Potential


def run(settings: Settings, *, out: Path, relaxed: Shards = (), hull: Path | None = None) -> None:
    """Evaluate relaxed crystals, or those of the reference hull, with the second potential.

    No crystal is moved, so that another second potential relaxes nothing again.

    Args:
        settings: section `potential`.
        out: Table of energies to write, one row per crystal, in their order.
        relaxed: Shards of relaxed crystals: files, or FOLDER=COUNT. Repeat the option for each.
        hull: Reference entries of the potential (hull/potential.parquet).

    Raises:
        FlowllmError: there is no second potential, it cannot be loaded, or the entries have no
            crystals.
    """
    if settings.potential.check is None:
        raise FlowllmError("potential.check is null; name the second potential")
    if (hull is None) == (not relaxed):
        raise FlowllmError(NOT_BOTH)
    keep_freed_memory()
    inputs: dict[str, Path | Sequence[Path]]
    inputs = {"relaxed": relaxed} if hull is None else {"hull": hull}
    with stage_run(settings, inputs=inputs, output=out) as run:
        crystals = _relaxed(relaxed) if hull is None else _of_hull(hull)
        progress = Progress("second_energies", len(crystals))
        potential = SecondPotential(settings.potential.check, pick_device())

        def make_rows(items: range) -> list[dict[str, Any]]:
            rows = second_rows([crystals[item] for item in items], potential)
            progress.advance(len(items))
            return rows

        schema = hull_schemas.SECOND_ENERGIES
        table = write_in_parts(out, run, schema, len(crystals), PART_CRYSTALS, make_rows)
        evaluated = len(crystals) - table.column("check_energy_per_atom").null_count
        run.count(
            rows_in=len(crystals), rows_out=len(crystals), rows_failed=len(crystals) - evaluated
        )


def second_rows(
    crystals: Sequence[tuple[str, Crystal | None]], potential: SecondPotential
) -> list[dict[str, Any]]:
    """Return the rows of `hull_schemas.SECOND_ENERGIES` of crystals with their ids."""
    energies = potential.energies([crystal for _, crystal in crystals])
    return [
        {"id": name, "check_potential": potential.label, "check_energy_per_atom": energy}
        for (name, _), energy in zip(crystals, energies, strict=True)
    ]


def _relaxed(shards: Sequence[Path]) -> list[tuple[str, Crystal | None]]:
    columns = ["id", "atomic_numbers", "frac_coords", "lengths", "angles"]
    rows = tables.read_tables(shards, schemas.RELAXED, columns).to_pylist()
    return [(row["id"], tables.crystal_of(row)) for row in rows]


def _of_hull(hull: Path) -> list[tuple[str, Crystal | None]]:
    columns = ["entry_id", *hull_schemas.CRYSTAL]
    crystals: list[tuple[str, Crystal | None]] = []
    if hull_schemas.has_crystals(tables.column_names(hull)):
        rows = tables.read_table(hull, hull_schemas.POTENTIAL_ENTRIES, columns).to_pylist()
        crystals = [(row["entry_id"], tables.crystal_of(row)) for row in rows]
    if all(crystal is None for _, crystal in crystals):
        raise FlowllmError(
            f"{hull}: its entries have no crystals, which the second potential evaluates; it was "
            "made by an earlier version, or from a file without crystals "
            "(reference_hull.source). Run reference_hull again (snakemake --forcerun "
            "reference_hull), with source train or the hull of another run"
        )
    return crystals
