"""Make the reference entries that the potential's energies are measured against."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pymatgen.core import Composition

from flowllm import relax as relax_package
from flowllm import tables
from flowllm.config import Potential, ReferenceHull, StageSettings
from flowllm.device import pick_device
from flowllm.dft.entries import ReferenceEntry, read_entries
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import entry_row
from flowllm.memory import keep_freed_memory
from flowllm.relax.models import LABELS, load_potential
from flowllm.relax.relaxer import Relaxation, relax
from flowllm.resume import make_parts
from flowllm.runlog import Progress, StageRun, log, stage_run

_ELEMENTS = Path(relax_package.__file__).parent / "mp_elements.yaml"


def run(settings: StageSettings, *, crystals: Path, out: Path) -> None:
    """Write the reference entries: the training crystals by the potential, or those of a file.

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
        label = LABELS[potential.name]
        if section.source == "train":
            _write_from_train(section, potential, crystals, out, run)
        else:
            entries = read_entries(Path(section.source))
            rows = [entry_row(entry, kind="potential", source=label) for entry in entries]
            tables.write_table(out, rows, tables.HULL_ENTRIES, run.metadata())
            run.count(rows_in=len(rows), rows_out=len(rows), rows_failed=0)


def _write_from_train(
    section: ReferenceHull, potential: Potential, crystals: Path, out: Path, run: StageRun
) -> None:
    """Evaluate the training crystals part by part; those that fail are counted and left out."""
    rows = tables.read_table(crystals, tables.CRYSTALS).to_pylist()
    progress = Progress("reference_hull", len(rows))
    loaded = load_potential(potential.name, pick_device())
    evaluate = partial(
        relax,
        loaded,
        max_force=section.max_force,
        max_steps=section.relax_steps,
        max_seconds=float("inf"),
        advance=progress.advance,
    )

    def make_rows(items: range) -> list[dict[str, Any]]:
        chunk = [rows[item] for item in items]
        results = evaluate([tables.crystal_of(row) for row in chunk])
        return _entry_rows(chunk, results, LABELS[potential.name])

    schema = tables.HULL_ENTRIES
    table = make_parts(out, run, schema, len(rows), section.chunk_size, make_rows)
    if not table.num_rows:
        raise FlowllmError(f"{crystals}: the potential could evaluate none of {len(rows)} crystals")
    elements = missing_elements(table.column("formula").to_pylist())
    whole = pa.concat_tables([table, pa.Table.from_pylist(elements, schema=schema)])
    tables.write_table(out, whole, schema, run.metadata())
    run.count(
        rows_in=len(rows),
        rows_out=table.num_rows,
        rows_failed=len(rows) - table.num_rows,
        elemental_references=len(elements),
    )


def missing_elements(formulas: Iterable[str]) -> list[dict[str, Any]]:
    """Entries by the Materials Project for the elements that no formula is of alone.

    A hull needs an entry for each element, and a training set has few elemental crystals. CHGNet
    was fitted to the Materials Project's corrected energies, so the scale is the same. How well it
    is met: elemental crystals relaxed by CHGNet less the Materials Project's energy of the same
    crystal, for 16 of MP-20, mean 0.018, standard deviation 0.033 eV/atom, the largest Cr 0.112;
    ground states among the AFLOW prototypes less these energies, 25 elements, median 0.032, the
    largest W 0.195, U 0.123, B 0.111 and I -0.091 eV/atom.
    """
    given = yaml.safe_load(_ELEMENTS.read_text())
    pure = {formula for formula in map(Composition, formulas) if len(formula) == 1}
    present = {next(iter(formula)).symbol for formula in pure}
    return [
        entry_row(
            ReferenceEntry(entry["entry_id"], {symbol: 1.0}, entry["energy_per_atom"]),
            kind="potential",
            source=given["label"],
        )
        for symbol, entry in given["elements"].items()
        if symbol not in present
    ]


def _entry_rows(
    rows: Sequence[Mapping[str, Any]], results: Sequence[Relaxation], label: str
) -> list[dict[str, Any]]:
    """One entry a crystal that has an energy; the others are named in the log."""
    entries = []
    for row, result in zip(rows, results, strict=True):
        if result.fault is not None:
            log.warning("reference_hull: %s left out: %s", row["id"], result.fault.detail)
            continue
        amounts = Composition(row["formula"]).get_el_amt_dict()
        entry = ReferenceEntry(row["id"], amounts, result.final_energy_per_atom)
        entries.append(entry_row(entry, kind="potential", source=label))
    return entries
