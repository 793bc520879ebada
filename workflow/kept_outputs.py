"""Keep a finished output in its place until its successor is written whole.

Snakemake removes the outputs of a job when the job starts, and again when it fails, even where
sbatch refused it and nothing ran. A stage replaces its outputs by renaming, so that none of this is
needed. `install` changes Snakemake as follows:

- No output is removed when a job starts. A job that ends without an error, but leaves an earlier
  output unchanged, has failed.
- After a failed job, the outputs that it has not touched stay, and Snakemake's metadata of them,
  too: with the earlier configuration nothing is planned. Others are removed, as by Snakemake.
- A job that fails after its stage has written all outputs and its record has succeeded: a signal, a
  time limit or a crash between the stage's end and the job's end costs nothing.
- The main process writes a note of each job before its start. The next `snakemake` reads the notes
  of jobs whose end was not seen: an unchanged output is complete, an output that was finished in
  the meantime gets the metadata of the job that made it, any other is incomplete.
"""

import asyncio
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import snakemake
from snakemake.dag import DAG
from snakemake.exceptions import MissingOutputException
from snakemake.jobs import Job
from snakemake.logging import logger
from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord, PersistenceBase
from snakemake.scheduling.job_scheduler import JobScheduler

from flowllm.errors import FlowllmError
from flowllm.io.files import write_text
from flowllm.runtime.provenance import digest_role, provenance_path

WRITTEN_FOR = "9.27."
"""Version of Snakemake whose functions are changed; of another version nothing is changed."""

_TIMESTAMP = ".snakemake_timestamp"
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Note:
    """What is known of a job before its start.

    Attributes:
        outputs: state of each output (`state_of`), None for an output that does not exist.
        records: state of each record that the stage may write.
        settings: the stage's settings as JSON; None if the rule has no such parameter.
        metadata: Snakemake's record of the job; None in a process that does not write it.
    """

    outputs: dict[str, str | None]
    records: dict[str, str | None]
    settings: str | None
    metadata: dict[str, Any] | None

    def is_unchanged(self, output: str) -> bool:
        """Return whether an output existed before the job and is still the same."""
        before = self.outputs[output]
        return before is not None and state_of(Path(output)) == before

    def is_finished(self) -> bool:
        """Return whether the stage has written all outputs and its record since the job's start.

        The record must have the job's settings, and the digests of the inputs as they are now.
        """
        for output, before in self.outputs.items():
            if (now := state_of(Path(output))) is None or now == before:
                return False
        return any(
            state_of(Path(record)) not in (None, before) and self._is_of_this_job(Path(record))
            for record, before in self.records.items()
        )

    def _is_of_this_job(self, path: Path) -> bool:
        if self.settings is None:
            return False
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            made_with = {"seed": record["seed"], "version": record["stage_version"]}
            if made_with | record["settings"] != json.loads(self.settings):
                return False
            paths = {role: _as_paths(given) for role, given in record["input_paths"].items()}
            return {role: digest_role(given) for role, given in paths.items()} == record["inputs"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, FlowllmError):
            return False


def _as_paths(given: str | list[str]) -> Path | list[Path]:
    return Path(given) if isinstance(given, str) else [Path(path) for path in given]


def state_of(path: Path) -> str | None:
    """Return a digest that changes when a file or folder is replaced; None if there is none.

    It contains sizes and times of modification. The bytes are not read, since a model has 140 GB.
    """
    try:
        number = os.open(path, os.O_RDONLY)  # opening makes NFS ask its server
    except OSError:
        return None
    try:
        found = os.fstat(number)
    finally:
        os.close(number)
    lines = [f"{found.st_mtime_ns} {found.st_size}"]
    if stat.S_ISDIR(found.st_mode):
        # The times of a folder change with Snakemake's file in it.
        lines = sorted(_members(path)) or [str(found.st_ino)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _members(folder: Path) -> Iterator[str]:
    """Yield a line per member of a folder, without Snakemake's file."""
    for path in folder.rglob("*"):
        if path.name != _TIMESTAMP:
            found = path.lstat()
            times = "" if path.is_dir() else f"{found.st_mtime_ns} {found.st_size}"
            yield f"{path.relative_to(folder)} {times}"


_notes: dict[str, Note] = {}
"""Notes of the jobs that this process has started, by output."""

_failing: ContextVar[bool] = ContextVar("failing", default=False)
"""Whether Snakemake is handling a failed job."""


def install() -> None:
    """Change Snakemake as described above, once in a process."""
    if not snakemake.__version__.startswith(WRITTEN_FOR):
        logger.warning(
            f"Snakemake {snakemake.__version__} removes the outputs of a job when it starts and "
            f"when it fails. workflow/kept_outputs.py, which prevents this, is for {WRITTEN_FOR}x"
        )
        return
    if hasattr(JobScheduler.run, "__wrapped__"):
        return
    Job.remove_existing_output = remove_logs
    for changed, of in (
        (_postprocess, Job),
        (_cleanup_job, Job),
        (_finished, PersistenceBase),
        (_incomplete, PersistenceBase),
        (_cleanup_metadata_of, PersistenceBase),
        (_check_and_touch_output, DAG),
        (_run, JobScheduler),
        (_error_callback, JobScheduler),
    ):
        name = _ORIGINAL.get(changed.__name__, changed.__name__.removeprefix("_"))
        original = getattr(of, name)
        setattr(of, name, wraps(original)(_with_original(changed, original)))


_ORIGINAL = {"_cleanup_job": "cleanup", "_cleanup_metadata_of": "cleanup"}


def _with_original(changed: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that calls `changed` with the original method as its first argument."""
    return lambda *given, **words: changed(original, *given, **words)


async def remove_logs(self: Job) -> None:
    """Remove the logs of a job before it starts, and no output."""
    for path in self.log:
        await path.remove(remove_non_empty_dir=False)


def _run(original: Any, self: JobScheduler, jobs: Iterable[Any], executor: Any = None) -> None:
    """Note the state of the outputs, then run jobs."""
    if not (self.dryrun or self.touch):
        for job in _single_jobs(jobs):
            _start(job)
    original(self, jobs, executor)


def _single_jobs(jobs: Iterable[Any]) -> Iterator[Job]:
    for job in jobs:
        members = job.jobs if job.is_group() else [job]
        yield from (member for member in members if member.output)


def _start(job: Job) -> None:
    outputs = [str(path) for path in job.output]
    settings = job.params.get("settings")
    persistence = job.dag.workflow.persistence
    is_main = job.dag.workflow.is_main_process
    note = Note(
        outputs={path: state_of(Path(path)) for path in outputs},
        records={str(path): state_of(path) for path in _records_of(outputs)},
        settings=settings if isinstance(settings, str) else None,
        metadata=_metadata(persistence, job) if is_main else None,
    )
    for output in outputs:
        _notes[output] = note
        if is_main:
            _write_note(_note_path(persistence, output), note)


def _write_note(path: Path, note: Note) -> None:
    try:
        write_text(path, json.dumps(asdict(note)))
    except FlowllmError as error:  # an error here would cancel all running jobs
        logger.warning(f"{error}. Without this note a job whose end is not seen is run again")


def _records_of(outputs: Iterable[str]) -> list[Path]:
    """Return where the stage may write its record: beside an output, or beside its folder."""
    found = {}
    for output in map(Path, outputs):
        found[provenance_path(output)] = None
        if output.parent.name:
            found[provenance_path(output.parent)] = None
    return list(found)


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


def _note_path(persistence: PersistenceBase, output: str) -> Path:
    name = hashlib.sha256(output.encode()).hexdigest()
    return persistence.path / "started" / f"{name}.json"


def _read_note(persistence: PersistenceBase, output: str) -> Note | None:
    """Return the note of a job whose end was not seen, or which failed."""
    try:
        return Note(**json.loads(_note_path(persistence, output).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _note_of(job: Job) -> Note | None:
    return _notes.get(str(job.output[0])) if job.output else None


def _error_callback(original: Any, self: JobScheduler, job: Any) -> None:
    """Let a job that fails after its stage has finished succeed."""
    singles = list(_single_jobs([job]))
    notes = [_note_of(one) for one in singles]
    if not singles or not all(note is not None and note.is_finished() for note in notes):
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
            _note_path(self, str(path)).unlink(missing_ok=True)


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
    await original(self, job, **words)


async def _incomplete(original: Any, self: PersistenceBase, job: Job) -> list[Any]:
    """Return the outputs of a job that are incomplete; write the metadata of finished ones."""
    found = await original(self, job)
    incomplete = []
    for path in job.output:
        note = _read_note(self, str(path))
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
    _note_path(self, str(path)).unlink(missing_ok=True)
