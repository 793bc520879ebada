"""Partial results of a stage, from which a killed job resumes.

They are in `.<output name>.partial/` beside the output, and are not declared to the workflow, which
deletes the declared outputs that a failed job has replaced. They are deleted if they belong to
other settings, another seed or other inputs, and after the output and its record are written (a job
that fails before that loses its output). One process at a time uses them (`writer_lock`).

The wall time until the last saved result is kept beside them, so that the record of a resumed job
has the time of all results. The time after the last saved result is not counted.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.io.file_errors import check_form, read_json
from flowllm.io.files import write_text
from flowllm.io.tables import read_table, write_table
from flowllm.runtime.log import log
from flowllm.runtime.provenance import StageRun
from flowllm.runtime.signals import noting_sigterm
from flowllm.runtime.writer_lock import only_writer

_KEY_FILE = "fingerprint.json"

_SECONDS_FILE = "seconds.json"


def partial_folder(output: Path, run: StageRun) -> Path:
    """Return the folder of an output's partial results, emptied if it belongs to another run.

    Only this run uses the folder until its record is written. Then the folder is deleted; if the
    run fails, the folder stays. Of the processes that share a job, the leader calls this first.

    Args:
        output: the final output of the stage.
        run: the run; its fingerprint decides whether existing results can be used.

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
        # Everything is written, so SIGTERM has nothing to stop. Some file systems keep a folder
        # whose files are mapped into memory.
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
            run.earlier_seconds = _kept_seconds(folder)
            return folder
        log.info("%s: %s has results of other settings or inputs and is deleted", run.stage, folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_text(key_path, json.dumps(key))
    return folder


def keep_seconds(folder: Path, run: StageRun, seconds: float | None = None) -> None:
    """Save the wall time of a run; called after each saved part or checkpoint.

    Args:
        folder: folder of the partial results.
        run: the run; of the processes that share a job, the leader alone saves.
        seconds: wall time of all attempts until the saved result was complete, None for now.
    """
    if run.leader:
        total = run.seconds() if seconds is None else seconds
        write_text(folder / _SECONDS_FILE, json.dumps({"seconds": round(total, 3)}))


def _kept_seconds(folder: Path) -> float:
    path = folder / _SECONDS_FILE
    if not path.exists():
        return 0.0
    cure = "delete it and run the same command again: the time of earlier attempts is not counted"
    values = read_json(path, cure)
    check_form(values, dict[str, float], path, cure)
    return float(values.get("seconds", 0.0))


def partial_path(output: Path) -> Path:
    """Return the folder of an output's partial results."""
    return output.with_name(f".{output.name}.partial")


def make_parts(
    output: Path,
    run: StageRun,
    schema: pa.Schema,
    num_rows: int,
    rows_per_part: int,
    make_rows: Callable[[range], Sequence[Mapping[str, Any]]],
) -> pa.Table:
    """Make a table in parts; each part is saved while the next is computed.

    The parts stay in `partial_path(output)` until the run's record is written.

    Args:
        output: the file of the whole table.
        run: the stage's run.
        schema: schema of the rows.
        num_rows: number of work items.
        rows_per_part: work items per part: the most that a killed job loses.
        make_rows: returns the rows of a range of work items, in order. It is called only for parts
            that are not on disk, and must not depend on earlier parts.

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
            # Memory then has the rows of at most two parts: one is computed, one is saved.
            if saved is not None:
                saved.result()
            saved = writer.submit(_save_part, part, rows, schema, run, run.seconds())
        if saved is not None:
            saved.result()
    return pa.concat_tables([read_table(part, schema) for part in parts] or [schema.empty_table()])


def _save_part(
    part: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema, run: StageRun, seconds: float
) -> None:
    write_table(part, rows, schema, run.metadata())
    keep_seconds(part.parent, run, seconds)


def write_in_parts(
    output: Path,
    run: StageRun,
    schema: pa.Schema,
    num_rows: int,
    rows_per_part: int,
    make_rows: Callable[[range], Sequence[Mapping[str, Any]]],
) -> pa.Table:
    """Make a table in parts (see `make_parts`), and write the whole table at the end.

    Returns:
        The table that was written.
    """
    table = make_parts(output, run, schema, num_rows, rows_per_part, make_rows)
    write_table(output, table, schema, run.metadata())
    return table
