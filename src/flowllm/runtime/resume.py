"""Partial results of a stage, so that a killed one goes on from what it had finished.

They lie in `.<output name>.partial/` beside the output, are never declared to the workflow (which
deletes the declared outputs of a failed job), and are dropped when they belong to other settings,
another seed or other inputs, or when all is done: after the output and its record are written,
since a job that fails before loses its output. One process at a time has them (`writer_lock`).
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.io.files import write_text
from flowllm.io.tables import read_table, write_table
from flowllm.runtime.log import log
from flowllm.runtime.provenance import StageRun
from flowllm.runtime.signals import noting_sigterm
from flowllm.runtime.writer_lock import only_writer

_KEY_FILE = "fingerprint.json"


def partial_folder(output: Path, run: StageRun) -> Path:
    """Return the folder of an output's partial results, emptied if it is another run's.

    The folder is this run's alone until its record is written, and dropped then; where the run
    fails it stays. Of the processes that share a job the leader's call comes first.

    Args:
        output: the final output of the stage.
        run: the run; its fingerprint decides whether what lies there can be used.

    Raises:
        FlowllmError: another process is writing the same output.
    """
    if not run.leader:
        return partial_path(output)
    return run.until_recorded.enter_context(_held_folder(output, run))


@contextmanager
def _held_folder(output: Path, run: StageRun) -> Iterator[Path]:
    with only_writer(output) as is_held:
        folder = _opened(output, run)
        yield folder
        # All is written, and a signal has nothing left to stop. Some file systems keep a folder
        # whose files are still mapped.
        with noting_sigterm():
            if is_held():
                shutil.rmtree(folder, ignore_errors=True)


def _opened(output: Path, run: StageRun) -> Path:
    folder = partial_path(output)
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


def partial_path(output: Path) -> Path:
    """Where the partial results of an output lie."""
    return output.with_name(f".{output.name}.partial")


def make_parts(
    output: Path,
    run: StageRun,
    schema: pa.Schema,
    num_rows: int,
    rows_per_part: int,
    make_rows: Callable[[range], Sequence[Mapping[str, Any]]],
) -> pa.Table:
    """Make a table part by part; each is saved while the next is made.

    The parts stay in `partial_path(output)` until the run's record is written.

    Args:
        output: the file that the table is made for.
        run: the stage's run.
        schema: schema of the rows.
        num_rows: number of work items.
        rows_per_part: work items a part; what a kill can cost.
        make_rows: from a range of work items to their rows, in order. It is called only for parts
            not yet on disk, and must not depend on the parts before it.

    Returns:
        All parts as one table.
    """
    folder = partial_folder(output, run)
    parts = []
    with ThreadPoolExecutor(max_workers=1) as writer:
        saved: Future[None] | None = None
        for start in range(0, num_rows, rows_per_part):
            items = range(start, min(start + rows_per_part, num_rows))
            part = folder / f"part-{start:08d}.parquet"
            parts.append(part)
            if part.exists():
                continue
            rows = make_rows(items)
            # No third part: memory holds the rows of one being made and of one being saved.
            if saved is not None:
                saved.result()
            saved = writer.submit(write_table, part, rows, schema, run.metadata())
        if saved is not None:
            saved.result()
    return pa.concat_tables([read_table(part, schema) for part in parts] or [schema.empty_table()])


def write_in_parts(
    output: Path,
    run: StageRun,
    schema: pa.Schema,
    num_rows: int,
    rows_per_part: int,
    make_rows: Callable[[range], Sequence[Mapping[str, Any]]],
) -> pa.Table:
    """Make a table part by part (see `make_parts`), and write it whole at the end.

    Returns:
        The table that was written.
    """
    table = make_parts(output, run, schema, num_rows, rows_per_part, make_rows)
    write_table(output, table, schema, run.metadata())
    return table
