"""Keep a finished output in its place until its successor is written whole.

Snakemake removes the outputs of a job when the job starts, and again when it fails, even where
sbatch refused it and nothing ran. A stage replaces its outputs by renaming, so that none of this is
needed. `install` changes Snakemake as follows:

- Nothing is removed when a job starts, neither an output nor a log, to which each attempt appends.
  A job that ends without an error, but leaves an earlier output unchanged, has failed.
- After a failed job, the outputs that it has not touched stay, and Snakemake's metadata of them,
  too: with the earlier configuration nothing is planned. Others are removed, as by Snakemake.
- A job that fails after its stage has written all outputs and its record has succeeded: a signal, a
  time limit or a crash between the stage's end and the job's end costs nothing.
- The main process writes a note of each job before its start. The next `snakemake` reads the notes
  of jobs whose end was not seen: an unchanged output is complete, an output that was finished in
  the meantime gets the metadata of the job that made it, any other is incomplete.
- A job of an earlier start that still runs on the cluster is waited for (`follow`) if it has the
  same task. Its outputs are used if its record has the settings and inputs of the present plan.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

from snakemake.dag import DAG
from snakemake.exceptions import MissingOutputException
from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord, PersistenceBase
from snakemake.scheduling.job_scheduler import JobScheduler

from flowllm.errors import FlowllmError
from flowllm.runtime.failures import members
from flowllm.workflow.changes import change_method
from flowllm.workflow.notes import Note, note_path, read_note, records_of, state_of, write_note

_LOOK_SECONDS = 1.0

_notes: dict[str, Note] = {}
"""Notes of the jobs that this process has started, by output."""

_earlier: dict[str, Note] = {}
"""Notes of an earlier start in whose places those of this process are, by output."""

_followed: set[str] = set()
"""Outputs of jobs of an earlier start whose ends this process waits for."""

_left: set[str] = set()
"""Outputs that are left to a job of an earlier start with another task."""

_failing: ContextVar[bool] = ContextVar("failing", default=False)
"""Whether Snakemake is handling a failed job."""


def install() -> None:
    """Change Snakemake as described above."""
    for of, name, changed in (
        (Job, "remove_existing_output", _remove_nothing),
        (Job, "postprocess", _postprocess),
        (Job, "cleanup", _cleanup_job),
        (PersistenceBase, "finished", _finished),
        (PersistenceBase, "incomplete", _incomplete),
        (PersistenceBase, "cleanup", _cleanup_metadata_of),
        (DAG, "check_and_touch_output", _check_and_touch_output),
        (JobScheduler, "run", _run),
        (JobScheduler, "error_callback", _error_callback),
    ):
        change_method(of, name, changed)


async def _remove_nothing(_original: Any, _job: Job) -> None:
    """Leave earlier outputs and logs in their places when a job starts."""


def _run(original: Any, self: JobScheduler, jobs: Iterable[Any], executor: Any = None) -> None:
    """Note the state of the outputs, then run jobs."""
    if not (self.dryrun or self.touch):
        for job in _single_jobs(jobs):
            _start(job)
    original(self, jobs, executor)


def _single_jobs(jobs: Iterable[Any]) -> Iterator[Job]:
    for job in jobs:
        yield from (member for member in members(job) if member.output)


def _start(job: Job) -> None:
    outputs = [str(path) for path in job.output]
    settings = job.params.get("settings")
    persistence = job.dag.workflow.persistence
    is_main = job.dag.workflow.is_main_process
    note = Note(
        outputs={path: state_of(Path(path)) for path in outputs},
        records={str(path): state_of(path) for path in records_of(outputs)},
        settings=settings if isinstance(settings, str) else None,
        metadata=_metadata(persistence, job) if is_main else None,
    )
    earlier = read_note(note_path(persistence.path, outputs[0])) if is_main else None
    if earlier is not None and earlier.outputs.keys() == note.outputs.keys():
        _earlier.update(dict.fromkeys(outputs, earlier))
        if earlier.has_same_task(note) and earlier.is_finished():
            # It has finished since the plan was made, and its output does not change any more.
            note = earlier
    for output in outputs:
        _notes[output] = note
        if is_main:
            _save(note_path(persistence.path, output), note)


def has_same_task(job: Any) -> bool:
    """Return whether the job of an earlier start that makes the outputs of a job has its task."""
    noted = [path for path in _outputs(job) if path in _earlier]
    return all(_earlier[path].has_same_task(_notes[path]) for path in noted)


def has_finished(job: Any) -> bool:
    """Return whether all stages of a job have finished since this or an earlier start of it."""
    notes = map(_note_of, _single_jobs([job]))
    return all(note is not None and note.is_finished() for note in notes)


def follow(job: Any) -> None:
    """Use the end of a job of an earlier start, which still runs, as the end of this job."""
    outputs = _outputs(job)
    _followed.update(outputs)
    # What it has written before this start is its output, too.
    _restore_notes(job, outputs)
    _notes.update({path: _earlier[path] for path in outputs if path in _earlier})


def leave(job: Any) -> None:
    """Leave the outputs and notes of a job to that of an earlier start; this job is to fail."""
    outputs = _outputs(job)
    _left.update(outputs)
    _restore_notes(job, outputs)
    # This job is never finished.
    _notes.update({path: replace(_notes[path], settings=None) for path in outputs})


def _outputs(job: Any) -> list[str]:
    return [str(path) for one in _single_jobs([job]) for path in one.output]


def _restore_notes(job: Any, outputs: Iterable[str]) -> None:
    folder = next(iter(members(job))).dag.workflow.persistence.path
    for path in outputs:
        if path in _earlier:
            _save(note_path(folder, path), _earlier[path])


def _save(path: Path, note: Note) -> None:
    try:
        write_note(path, note)
    except FlowllmError as error:  # an error here would cancel all running jobs
        logger.warning(f"{error}. Without this note a job whose end is not seen is run again")


def _metadata(persistence: PersistenceBase, job: Job) -> dict[str, Any]:
    """Return the record that Snakemake writes when a job has finished, as far as it is known."""
    record = MetadataRecord(
        rule=job.rule.name,
        code=persistence._code(job.rule),
        input=[str(path) for path in persistence._input(job)],
        log=[str(path) for path in persistence._log(job)],
        params=persistence._params(job),
        shellcmd=job.shellcmd,
        conda_env=persistence._conda_env(job),
        container_img_url=job.container_img_url,
        software_stack_hash=persistence._software_stack_hash(job),
        job_hash=hash(job),
        record_format_version=RECORD_FORMAT_VERSION,
        incomplete=False,
        starttime=time.time(),
    )
    return dict(record.items())


def _note_of(job: Job) -> Note | None:
    return _notes.get(str(job.output[0])) if job.output else None


def _error_callback(original: Any, self: JobScheduler, job: Any) -> None:
    """Let a job that fails after its stage has finished succeed."""
    if not _outputs(job) or not has_finished(job):
        original(self, job)
        return
    logger.warning(
        f"Job {job.jobid} failed after its stage had written its outputs and its record; "
        "they are complete and are used."
    )
    self.finish_callback(job)


async def _postprocess(original: Any, self: Job, *given: Any, **words: Any) -> None:
    token = _failing.set(bool(words.get("error")))
    try:
        await original(self, *given, **words)
    finally:
        _failing.reset(token)


async def _finished(original: Any, self: PersistenceBase, job: Job) -> None:
    """Write the metadata of a job; of a failed one only if its stage has finished."""
    note = _note_of(job)
    if _failing.get() and note is not None and not note.is_finished():
        for path in job.output:
            self._unmark_incomplete(self._get_key(path))
        return
    await original(self, job)
    if self.dag.workflow.is_main_process:
        for path in job.output:
            note_path(self.path, str(path)).unlink(missing_ok=True)


async def _cleanup_job(original: Any, self: Job, skip_outputs: Any) -> None:
    """Remove the outputs of a failed job, except earlier or finished ones.

    On a cluster this is left to the main process, which has started the job.
    """
    note = _note_of(self)
    if note is None:
        await original(self, skip_outputs)
        return
    if not self.dag.workflow.is_main_process or note.is_finished():
        return
    if not _left.isdisjoint(note.outputs):
        return
    kept = [path for path in self.output if note.is_unchanged(str(path))]
    if kept:
        logger.info(f"The earlier output of the failed job stays: {', '.join(map(str, kept))}")
    await original(self, [*skip_outputs, *kept])


def _cleanup_metadata_of(original: Any, self: PersistenceBase, job: Job) -> None:
    """Delete the metadata of a job whose outputs were not accepted, except of earlier outputs."""
    note = _note_of(job)
    if note is None:
        original(self, job)
        return
    for path in job.output:
        if note.is_unchanged(str(path)):
            self._unmark_incomplete(self._get_key(path))
        else:
            self.cleanup_metadata(path)


async def _check_and_touch_output(original: Any, self: DAG, job: Job, **words: Any) -> None:
    """Wait until all outputs are new, then check them."""
    note = _note_of(job)
    until = time.monotonic() + words.get("wait", 3)
    while note is not None and (old := [path for path in note.outputs if note.is_unchanged(path)]):
        if time.monotonic() >= until:
            text = f"Not written again, the earlier files stay: {', '.join(old)}"
            raise MissingOutputException(text, rule=job.rule, jobid=self.jobid(job))
        await asyncio.sleep(_LOOK_SECONDS)
    if note is not None and not _followed.isdisjoint(note.outputs):
        while not note.is_finished():
            if note.is_made_otherwise() or time.monotonic() >= until:
                _followed.difference_update(note.outputs)
                text = f"Not made from the present inputs: {', '.join(note.outputs)}"
                raise MissingOutputException(text, rule=job.rule, jobid=self.jobid(job))
            await asyncio.sleep(_LOOK_SECONDS)
        _followed.difference_update(note.outputs)
    await original(self, job, **words)


async def _incomplete(original: Any, self: PersistenceBase, job: Job) -> list[Any]:
    """Return the outputs of a job that are incomplete; write the metadata of finished ones."""
    found = await original(self, job)
    incomplete = []
    for path in job.output:
        note = read_note(note_path(self.path, str(path)))
        if note is None:
            incomplete += [path] if path in found else []
        elif not Path(path).exists() or note.is_unchanged(str(path)):
            continue
        elif note.is_finished():
            _write_metadata(self, path, note)
        else:
            incomplete.append(path)
    return incomplete


def _write_metadata(self: PersistenceBase, path: Any, note: Note) -> None:
    key = self._get_key(path)
    self._clear_cache()
    made = {**(note.metadata or {}), "endtime": Path(path).stat().st_mtime}
    self._write_record(key, MetadataRecord(**made))
    self._unmark_incomplete(key)
    note_path(self.path, str(path)).unlink(missing_ok=True)
