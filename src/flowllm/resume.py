"""Partial results of a stage, so that a killed one goes on from what it had finished.

They lie in `.<output name>.partial/` beside the output, are never declared to the workflow (which
deletes the declared outputs of a failed job), and are dropped when they belong to other settings,
another seed or other inputs.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.runlog import StageRun, log
from flowllm.tables import read_table, write_table, write_text

_KEY_FILE = "fingerprint.json"


def partial_folder(output: Path, run: StageRun) -> Path:
    """Return the folder of an output's partial results, emptied if it is another run's.

    Args:
        output: the final output of the stage.
        run: the run; its fingerprint decides whether what lies there can be used.
    """
    folder = output.with_name(f".{output.name}.partial")
    key = {"fingerprint": run.fingerprint()}
    key_path = folder / _KEY_FILE
    if folder.exists():
        found = json.loads(key_path.read_text()) if key_path.exists() else None
        if found == key:
            log.info("%s: resuming from %s", run.stage, folder)
            return folder
        log.info("%s: %s holds results of other settings or inputs, dropped", run.stage, folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_text(key_path, json.dumps(key))
    return folder


def drop_partial(folder: Path) -> None:
    """Remove the partial results once the final output is in place."""
    shutil.rmtree(folder)


def write_in_parts(
    output: Path,
    run: StageRun,
    schema: pa.Schema,
    num_rows: int,
    rows_per_part: int,
    make_rows: Callable[[range], Sequence[Mapping[str, Any]]],
    side: pa.Field | None = None,
) -> pa.Table:
    """Make a table part by part, each saved when finished, and write it whole at the end.

    Args:
        output: the Parquet file to write.
        run: the stage's run.
        schema: schema of the rows.
        num_rows: number of work items.
        rows_per_part: work items a part; what a kill can cost.
        make_rows: from a range of work items to their rows, in order. It is called only for parts
            not yet on disk, and must not depend on the parts before it.
        side: one more column of the rows that is kept with the parts and returned, but not written
            to the output (a wall time, which would make the output's bytes differ).

    Returns:
        The table that was written, with the side column if there is one.
    """
    folder = partial_folder(output, run)
    part_schema = schema if side is None else schema.append(side)
    parts = []
    for start in range(0, num_rows, rows_per_part):
        items = range(start, min(start + rows_per_part, num_rows))
        part = folder / f"part-{start:08d}.parquet"
        if not part.exists():
            write_table(part, make_rows(items), part_schema, run.metadata())
        parts.append(part)
    tables = [read_table(part, part_schema) for part in parts]
    table = pa.concat_tables(tables or [part_schema.empty_table()])
    write_table(output, table.select(schema.names), schema, run.metadata())
    drop_partial(folder)
    return table
