"""Compute or read the reference entries for the potential's energies."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pymatgen.core import Composition

from flowllm.config.sections.energies import Potential, ReferenceHull, RelaxationLimits
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.dft.entries import ReferenceEntry, read_entries, without_structure
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import (
    entry_row,
    ground_state_name,
    potential_label,
    unrecorded_label,
)
from flowllm.io import hull_schemas, schemas, tables
from flowllm.relax.ground_states import ground_states
from flowllm.relax.models import LABELS, load_potential
from flowllm.relax.relaxer import Relaxation, relax
from flowllm.runtime.device import pick_device
from flowllm.runtime.log import Progress, log
from flowllm.runtime.malloc import keep_freed_memory
from flowllm.runtime.provenance import StageRun, stage_run
from flowllm.runtime.resume import make_parts


@dataclass(frozen=True)
class _Candidate:
    """A crystal whose energy becomes an entry.

    Attributes:
        entry_id: id of the entry.
        formula: of the cell.
        crystal: the crystal before its relaxation.
        is_training: whether it is a training crystal and not an element's ground state.
    """

    entry_id: str
    formula: str
    crystal: Crystal
    is_training: bool


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    reference_hull: ReferenceHull
    potential: Potential
    prerelax: RelaxationLimits


def run(settings: Settings, *, crystals: Path, out: Path) -> None:
    """Compute or read the reference entries for the potential's energies.

    Args:
        settings: sections `reference_hull`, `potential` and `prerelax`.
        crystals: The training split (crystals/train.parquet).
        out: Table of reference entries to write.

    Raises:
        FlowllmError: the file of entries cannot be read, or no training crystal has an energy.
    """
    section: ReferenceHull = settings.reference_hull
    keep_freed_memory()
    potential: Potential = settings.potential
    inputs = {"crystals": crystals}
    if section.source != "train":
        inputs["source"] = Path(section.source)
    with stage_run(settings, inputs=inputs, output=out) as run:
        if section.source == "train":
            _write_from_train(settings, crystals, out, run)
        elif Path(section.source).suffix == ".parquet":
            _write_from_run(settings, Path(section.source), out, run)
        else:
            label = unrecorded_label(LABELS[potential.name])
            # Their structures are not needed, and take gigabytes.
            entries = [without_structure(entry) for entry in read_entries(Path(section.source))]
            _warn_of_dft(entries, section.source)
            rows = [entry_row(entry, kind="potential", source=label) for entry in entries]
            tables.write_table(out, rows, hull_schemas.POTENTIAL_ENTRIES, run.metadata())
            run.count(rows_in=len(rows), rows_out=len(rows), rows_failed=0)


def _write_from_run(settings: Settings, source: Path, out: Path, run: StageRun) -> None:
    """Write the entries of another run's hull, which must be relaxed as this run's crystals are.

    The hull of a release has no crystals, and its entries have null in their place.

    Raises:
        FlowllmError: the file is not a hull of the same potential and criterion of relaxation.
    """
    has_crystals = hull_schemas.has_crystals(tables.column_names(source))
    schema = hull_schemas.POTENTIAL_ENTRIES if has_crystals else schemas.HULL_ENTRIES
    table = tables.read_table(source, schema)
    prerelax: RelaxationLimits = settings.prerelax
    name = LABELS[settings.potential.name]
    needed = potential_label(name, prerelax.max_force, prerelax.max_steps)
    found = set(table.column("source").to_pylist())
    if found != {needed}:
        raise FlowllmError(
            f"{source}: its entries are of {' + '.join(sorted(found)) or 'nothing'}, but this run "
            f"needs {needed}; set reference_hull.source to train, or potential and prerelax as in "
            "the run that made the file"
        )
    tables.write_table(out, table.to_pylist(), hull_schemas.POTENTIAL_ENTRIES, run.metadata())
    run.count(
        rows_in=table.num_rows,
        rows_out=table.num_rows,
        rows_failed=0,
        not_converged=table.column("converged").to_pylist().count(False),
    )


def _warn_of_dft(entries: Sequence[ReferenceEntry], source: str) -> None:
    """Warn of entries that look like DFT's, which a potential's hull must not contain."""
    dft = [one.entry_id for one in entries if one.run is not None and one.run.run_type is not None]
    if dft:
        log.warning(
            "reference_hull: %s: %d of %d entries (first: %s) have a run_type, as DFT entries do; "
            "their energies must be the potential's",
            source,
            len(dft),
            len(entries),
            dft[0],
        )


def _write_from_train(settings: Settings, crystals: Path, out: Path, run: StageRun) -> None:
    """Relax the training crystals and the elements' ground states in parts.

    A hull needs an entry for each element, and a training set has few elemental crystals, some of
    which are not the ground state. Of two crystals of an element the lower one is on the hull.
    """
    prerelax: RelaxationLimits = settings.prerelax
    name = settings.potential.name
    candidates = _candidates(crystals)
    progress = Progress("reference_hull", len(candidates))
    # No time limit: an entry that is lost on a busy machine would make other crystals stable.
    evaluate = partial(
        relax,
        load_potential(name, pick_device()),
        max_force=prerelax.max_force,
        max_steps=prerelax.max_steps,
        max_seconds=float("inf"),
        advance=progress.advance,
    )
    label = potential_label(LABELS[name], prerelax.max_force, prerelax.max_steps)

    def make_rows(items: range) -> list[dict[str, Any]]:
        chunk = [candidates[item] for item in items]
        return _entry_rows(chunk, evaluate([one.crystal for one in chunk]), label)

    schema, chunk_size = hull_schemas.POTENTIAL_ENTRIES, settings.reference_hull.chunk_size
    table = make_parts(out, run, schema, len(candidates), chunk_size, make_rows)
    given = {one.entry_id for one in candidates if one.is_training}
    made = sum(entry_id in given for entry_id in table.column("entry_id").to_pylist())
    if not made:
        raise FlowllmError(
            f"{crystals}: the potential could evaluate none of {len(given)} crystals"
        )
    tables.write_table(out, table, schema, run.metadata())
    run.count(
        rows_in=len(given),
        rows_out=table.num_rows,
        rows_failed=len(given) - made,
        elemental_references=table.num_rows - made,
        not_converged=table.column("converged").to_pylist().count(False),
    )


def _candidates(crystals: Path) -> list[_Candidate]:
    """Return the training crystals in their order, then the elements' ground states."""
    rows = tables.read_table(crystals, schemas.CRYSTALS).to_pylist()
    training = [
        _Candidate(row["id"], row["formula"], tables.required_crystal(row, crystals), True)
        for row in rows
    ]
    return training + [
        _Candidate(ground_state_name(symbol, one.entry_id), one.crystal.formula, one.crystal, False)
        for symbol, one in ground_states().items()
    ]


def _entry_rows(
    candidates: Sequence[_Candidate], results: Sequence[Relaxation], label: str
) -> list[dict[str, Any]]:
    """Return one entry per crystal that has an energy; the others are named in the log."""
    entries = []
    for one, result in zip(candidates, results, strict=True):
        energy = result.final_energy_per_atom
        if result.failure is not None or energy is None:
            detail = "no energy" if result.failure is None else result.failure.detail
            log.warning("reference_hull: %s left out: %s", one.entry_id, detail)
            continue
        amounts = Composition(one.formula).get_el_amt_dict()
        entry = ReferenceEntry(one.entry_id, amounts, energy)
        row = entry_row(entry, kind="potential", source=label, converged=result.converged)
        entries.append(row | tables.crystal_columns(result.crystal))
    return entries
