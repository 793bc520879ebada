"""Read the results of the DFT runs, and report the status of each crystal."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pymatgen.core import Composition

from flowllm.config.sections.energies import DftCollect
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.dft.gpaw_output import GPAW_OUTPUT
from flowllm.dft.results import corrected_energy, read_run, scheme_of
from flowllm.dft.runs import RequestedRun, RunProblem
from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.runtime.descent import generated_digests
from flowllm.runtime.log import Progress, log
from flowllm.runtime.provenance import stage_run

Record = Mapping[str, Any]

_OF_MANIFEST = (
    *("id", "path", "formula", "status", "error"),
    *("taken_as", "inclusion_probability", "leads_class"),
)
"""Columns of the manifest that the results repeat."""

_MAX_ERROR = 500
"""Most characters of a row's error."""


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    dft_collect: DftCollect


def run(settings: Settings, *, manifest: Path, out: Path) -> None:
    """Read the results of the DFT runs, and report the status of each crystal.

    The status is ok; the reason why the crystal has no folder; unconverged_ionic where the energy
    is that of the last good step of an unfinished relaxation; or the problem of the run: missing,
    unfinished, unreadable, unconverged_electronic, wrong_composition, wrong_functional,
    other_settings, no_correction. Folders beside the manifest that it does not name are logged and
    counted.

    Args:
        settings: section `dft_collect`.
        manifest: The manifest.parquet of dft_inputs.
        out: Table of DFT results to write, one row per row of the manifest.

    Raises:
        FlowllmError: the manifest is missing or has another schema.
    """
    section: DftCollect = settings.dft_collect
    with stage_run(settings, inputs={"manifest": manifest}, output=out) as run:
        entries = tables.read_table(manifest, schemas.DFT_MANIFEST).to_pylist()
        foreign = _foreign_folders(manifest.parent, entries)
        for folder in foreign:
            log.warning("dft_collect: %s is not in the manifest and is left out", _one_line(folder))
        progress = Progress("dft_collect", len(entries))
        rows = []
        for entry in entries:
            rows.append(_collect(entry, manifest.parent, section))
            progress.advance()
        metadata = run.metadata() | generated_digests([manifest])
        tables.write_table(out, rows, schemas.DFT_RESULTS, metadata)
        statuses = [row["status"] for row in rows]
        run.count(
            rows_in=len(rows),
            rows_out=len(rows),
            rows_failed=len(rows) - statuses.count("ok"),
            statuses={name: statuses.count(name) for name in sorted(set(statuses))},
            foreign_folders=len(foreign),
        )


def _foreign_folders(root: Path, entries: Sequence[Record]) -> list[str]:
    """Return the folders below `root` that have DFT files and that no row names, relative to it.

    Hidden folders are not searched, since dft_inputs first writes a folder under a hidden name.
    Links and folders that cannot be listed are skipped, too.
    """
    known = {entry["path"] for entry in entries if entry["path"]}
    found, folders = set(), [str(root)]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as members:
                for member in members:
                    name = member.name
                    if name in ("POSCAR", GPAW_OUTPUT) or name.startswith("vasprun.xml"):
                        found.add(os.path.relpath(folder, root))
                    if not name.startswith(".") and member.is_dir(follow_symlinks=False):
                        folders.append(member.path)
        except OSError:
            continue
    return sorted(found - known)


def _collect(entry: Record, root: Path, section: DftCollect) -> dict[str, Any]:
    """Return the result row of one manifest row."""
    row = {name: entry[name] for name in _OF_MANIFEST}
    if entry["path"] is None:
        return row
    try:
        return row | _read(root / entry["path"], entry, section)
    except RunProblem as problem:
        return row | {"status": problem.status, "error": _one_line(str(problem))}
    except FlowllmError:
        raise
    # A folder can contain anything; an unexpected error concerns only its own row.
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        return row | {"status": "unreadable", "error": _one_line(detail)}


def _one_line(text: str) -> str:
    """Return a text as one printable line of limited length."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:_MAX_ERROR])
    return shown + ("..." if len(text) > _MAX_ERROR else "")


def _read(folder: Path, entry: Record, section: DftCollect) -> dict[str, Any]:
    """Return the columns of a run with an energy; it is an upper bound if unconverged_ionic."""
    asked = (entry["input_set"], entry["potcar_symbols"], entry["structure_hash"])
    found = read_run(folder, RequestedRun(*asked))
    if found.structure.composition != Composition(entry["formula"]):
        raise RunProblem(
            "wrong_composition",
            f"the run is of {found.structure.formula}, the manifest says {entry['formula']}",
        )
    num_atoms = len(found.structure)
    energy = corrected_energy(found, section.correction_scheme, section.strict_anions)
    return {
        **tables.crystal_columns(Crystal.from_structure(found.structure)),
        "raw_energy_per_atom": found.energy / num_atoms,
        "corrected_energy_per_atom": energy / num_atoms,
        "correction_scheme": scheme_of(found, section.correction_scheme, section.strict_anions),
        "run_type": found.run_type,
        "converged_electronic": found.converged_electronic,
        "converged_ionic": found.converged_ionic,
        "num_steps": found.num_steps,
        "status": "ok" if found.converged_ionic else "unconverged_ionic",
        "error": found.shortfall and _one_line(found.shortfall),
    }
