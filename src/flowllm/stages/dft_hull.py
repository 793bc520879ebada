"""Take the reference entries that DFT energies are measured against from a file of entries."""

from pathlib import Path

from flowllm import tables
from flowllm.config import DftHull, StageSettings
from flowllm.dft.entries import read_entries
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import dft_label, entry_row
from flowllm.runlog import stage_run


def run(settings: StageSettings, *, out: Path) -> None:
    """Write the reference entries of DFT energies.

    Raises:
        FlowllmError: no file is named, or it cannot be read.
    """
    section: DftHull = settings.dft_hull
    if section.source is None:
        raise FlowllmError(
            "dft_hull.source is null: name a JSON file of DFT reference entries (data/README.md "
            "tells where the Materials Project's are), or run without DFT energies (target all)"
        )
    source = Path(section.source)
    with stage_run(settings, inputs={"source": source}, output=out) as run:
        label = dft_label(section.correction_scheme)
        rows = [entry_row(entry, kind="dft", source=label) for entry in read_entries(source)]
        if not rows:
            raise FlowllmError(f"{source}: no entry with a composition and an energy in it")
        tables.write_table(out, rows, tables.HULL_ENTRIES, run.metadata())
        run.count(rows_in=len(rows), rows_out=len(rows), rows_failed=0)
