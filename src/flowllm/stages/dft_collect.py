"""Read the DFT runs that have finished, and say of each crystal what became of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pymatgen.core import Composition

from flowllm import tables
from flowllm.config import DftCollect, StageSettings
from flowllm.crystal import Crystal
from flowllm.descent import generated_digests
from flowllm.dft.results import GPAW_OUTPUT, corrected_energy, read_run, scheme_of
from flowllm.dft.runs import RunProblem
from flowllm.runlog import Progress, log, stage_run

Row = Mapping[str, Any]


def run(settings: StageSettings, *, manifest: Path, out: Path) -> None:
    """Write one row for each row of the manifest.

    Status is ok, what kept the crystal from getting a folder, unconverged_ionic where the energy
    is that of the last good step of a relaxation that has not come to its end, or what is wrong
    with its run: missing, unfinished, unreadable, unconverged_electronic, wrong_composition,
    wrong_functional, no_correction. Folders beside the manifest that it does not name are reported
    in the log and counted.
    """
    section: DftCollect = settings.dft_collect
    with stage_run(settings, inputs={"manifest": manifest}, output=out) as run:
        entries = tables.read_table(manifest, tables.DFT_MANIFEST).to_pylist()
        foreign = _foreign_folders(manifest.parent, entries)
        for folder in foreign:
            log.warning("dft_collect: %s is not in the manifest, left out", folder)
        progress = Progress("dft_collect", len(entries))
        rows = []
        for entry in entries:
            rows.append(_collect(entry, manifest.parent, section))
            progress.advance()
        metadata = run.metadata() | generated_digests([manifest])
        tables.write_table(out, rows, tables.DFT_RESULTS, metadata)
        statuses = [row["status"] for row in rows]
        run.count(
            rows_in=len(rows),
            rows_out=len(rows),
            rows_failed=len(rows) - statuses.count("ok"),
            statuses={name: statuses.count(name) for name in sorted(set(statuses))},
            foreign_folders=len(foreign),
        )


def _foreign_folders(root: Path, entries: Sequence[Row]) -> list[str]:
    """Folders with an output or input below `root` that no row names, relative to it."""
    known = {entry["path"] for entry in entries if entry["path"]}
    names = ("POSCAR", "vasprun.xml*", GPAW_OUTPUT)
    found = {path.parent for name in names for path in root.rglob(name)}
    return sorted({path.relative_to(root).as_posix() for path in found} - known)


def _collect(entry: Row, root: Path, section: DftCollect) -> dict[str, Any]:
    """The row of one manifest row."""
    row = {name: entry[name] for name in ("id", "path", "formula", "status", "error")}
    if entry["path"] is None:
        return row
    try:
        return row | _read(root / entry["path"], entry["formula"], section)
    except RunProblem as problem:
        return row | {"status": problem.status, "error": str(problem)}


def _read(folder: Path, formula: str, section: DftCollect) -> dict[str, Any]:
    """Columns of a run with an energy; status unconverged_ionic where it is an upper bound."""
    found = read_run(folder)
    if found.structure.composition != Composition(formula):
        raise RunProblem(
            "wrong_composition",
            f"the run is of {found.structure.formula}, the manifest says {formula}",
        )
    num_atoms = len(found.structure)
    energy = corrected_energy(found, section.correction_scheme, section.strict_anions)
    return {
        **tables.crystal_columns(Crystal.from_structure(found.structure)),
        "raw_energy_per_atom": found.energy / num_atoms,
        "corrected_energy_per_atom": energy / num_atoms,
        "correction_scheme": scheme_of(found, section.correction_scheme),
        "run_type": found.run_type,
        "converged_electronic": found.converged_electronic,
        "converged_ionic": found.converged_ionic,
        "num_steps": found.num_steps,
        "status": "ok" if found.converged_ionic else "unconverged_ionic",
        "error": found.shortfall,
    }
