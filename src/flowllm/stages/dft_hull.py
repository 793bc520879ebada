"""Take the reference entries that DFT energies are measured against, and name their correction."""

from collections.abc import Iterator
from pathlib import Path

from flowllm import tables
from flowllm.config import DftHull, StageSettings
from flowllm.dft.entries import ReferenceEntry, read_entries
from flowllm.dft.reference_sources import matbench_file, materials_project_entries
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import dft_label, entry_row
from flowllm.runlog import stage_run


def run(settings: StageSettings, *, out: Path) -> None:
    """Write the reference entries of DFT energies.

    Raises:
        FlowllmError: no source is named, or it cannot be fetched or read.
    """
    section: DftHull = settings.dft_hull
    if section.source is None:
        raise FlowllmError(
            "dft_hull.source is null: name matbench_discovery, mp_api, or a JSON file of DFT "
            "reference entries (docs/energies.md), or run without DFT energies (target all)"
        )
    file = _file(section.source, out.parent)
    with stage_run(settings, inputs={"source": file} if file else {}, output=out) as run:
        label = dft_label(section.correction_scheme)
        entries: Iterator[ReferenceEntry] = (
            read_entries(file) if file else materials_project_entries()
        )
        rows = [entry_row(entry, kind="dft", source=label) for entry in entries]
        if not rows:
            raise FlowllmError(f"{section.source}: no entry with a composition and an energy in it")
        tables.write_table(out, rows, tables.HULL_ENTRIES, run.metadata())
        run.count(rows_in=len(rows), rows_out=len(rows), rows_failed=0)


def _file(source: str, folder: Path) -> Path | None:
    """The file of entries, fetched first if it is Matbench Discovery's; None for the API."""
    if source == "mp_api":
        return None
    return matbench_file(folder) if source == "matbench_discovery" else Path(source)
