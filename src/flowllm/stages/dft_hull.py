"""Take the reference entries for DFT energies from their source, and name their correction."""

from collections.abc import Iterator
from pathlib import Path

from flowllm.config.sections.energies import DftCollect, DftHull
from flowllm.config.stage_settings import StageSettings
from flowllm.dft.corrections import scheme_name
from flowllm.dft.entries import ReferenceEntry, read_entries
from flowllm.dft.reference_corrections import apply_correction_scheme
from flowllm.dft.reference_sources import matbench_file, materials_project_entries
from flowllm.errors import FlowllmError
from flowllm.evaluate.hull import dft_label, entry_row
from flowllm.io import schemas, tables
from flowllm.runtime.provenance import stage_run


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    dft_hull: DftHull
    dft_collect: DftCollect


def run(settings: Settings, *, out: Path) -> None:
    """Fetch or read the reference entries for DFT energies, from dft_hull.source.

    Args:
        settings: sections `dft_hull` and `dft_collect`.
        out: Table of reference entries to write.

    Raises:
        FlowllmError: no source is named, it cannot be fetched or read, or its energies cannot be
            brought to the correction of our own.
    """
    section: DftHull = settings.dft_hull
    if section.source is None:
        raise FlowllmError(
            "dft_hull.source is null: name matbench_discovery, mp_api, or a JSON file of DFT "
            "reference entries (docs/energies.md), or run without DFT energies (target all)"
        )
    file = _file(section.source, out.parent)
    with stage_run(settings, inputs={"source": file} if file else {}, output=out) as run:
        found: Iterator[ReferenceEntry] = (
            read_entries(file) if file else materials_project_entries()
        )
        entries, counts = apply_correction_scheme(found, section, settings.dft_collect)
        label = dft_label(
            scheme_name(section.correction_scheme, settings.dft_collect.strict_anions)
        )
        rows = [entry_row(entry, kind="dft", source=label) for entry in entries]
        if not rows:
            raise FlowllmError(
                f"{section.source}: contains no entry with a composition and an energy; set "
                "dft_hull.source to another file"
            )
        tables.write_table(out, rows, schemas.HULL_ENTRIES, run.metadata())
        failed = counts["not_covered"]
        run.count(rows_in=len(rows) + failed, rows_out=len(rows), rows_failed=failed, **counts)


def _file(source: str, folder: Path) -> Path | None:
    """Return the file of entries, downloaded if it is Matbench Discovery's; None for the API."""
    if source == "mp_api":
        return None
    return matbench_file(folder) if source == "matbench_discovery" else Path(source)
