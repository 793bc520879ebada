"""Checks of the crystals and entries from outside that a run's crystals are compared with."""

from pathlib import Path

from flowllm.config.model import Config
from flowllm.errors import FlowllmError


def reference_hull(config: Config) -> str:
    """Check the entries of the potential's hull, if they are not made from the training crystals.

    Raises:
        FlowllmError: the file cannot be read, or lacks what the configuration needs of it.
    """
    source = config.reference_hull.source
    if source == "train":
        return "training crystals"
    if Path(source).suffix == ".parquet":
        # pyarrow takes long to import.
        from flowllm.io import hull_schemas, schemas
        from flowllm.io.tables import column_names, read_table

        count = read_table(Path(source), schemas.HULL_ENTRIES).num_rows
        if config.potential.check and not hull_schemas.has_crystals(column_names(Path(source))):
            raise FlowllmError(
                f"{source}: has no crystals, which potential.check evaluates; set source to train "
                "or to the hull of a run, or potential.check to null"
            )
        return f"{count} entries of another run"
    return first_entry(source)


def known_crystals(config: Config) -> str:
    """Check that each known crystal has its own id.

    Raises:
        FlowllmError: the file cannot be read, lacks a column, or repeats an id.
    """
    path = config.metrics.known_crystals
    if path is None:
        return "none beside the run's own"
    # pyarrow takes long to import.
    from flowllm.io import schemas
    from flowllm.io.tables import read_table

    rows: dict[str, int] = {}
    ids = read_table(Path(path), schemas.KNOWN_CRYSTALS).column("id").to_pylist()
    for row, name in enumerate(ids):
        if name in rows:
            raise FlowllmError(
                f"{path}, rows {rows[name]} and {row}: both crystals have the id {name}, so that a "
                "match would not say which; give each crystal its own id"
            )
        rows[name] = row
    return f"{len(rows)} crystals"


def first_entry(source: str) -> str:
    """Read the first entry of a file of entries.

    Raises:
        FlowllmError: the file cannot be read, or has none.
    """
    from flowllm.dft.entries import read_entries

    if next(read_entries(Path(source)), None) is None:
        raise FlowllmError(f"{source}: no entry with a composition and an energy in it")
    return source
