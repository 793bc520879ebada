"""The state of each job of a run, from the run's folder, SLURM's queue and this host's processes.

Nothing is written, so that a run can be watched from another node, and by another person.
"""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flowllm.commands.job_log import last_attempt
from flowllm.commands.jobs import Job
from flowllm.config.model import Config
from flowllm.config.stage_settings import stage_values
from flowllm.errors import FlowllmError
from flowllm.io.archive_index import read_index
from flowllm.plain_text import printable
from flowllm.runtime.provenance import provenance_path, read_record
from flowllm.runtime.writer_lock import is_written
from flowllm.slurm.commands import ask

State = Literal["done", "running", "failed", "waiting"]

_QUEUE = ("squeue", "--me", "--noheader", "--states=all", "--format=%t|%r|%Z|%k")
"""Command for the user's jobs: state, reason, working folder and comment."""

_PENDING = "PD"
_RUNNING = ("R", "CF", "CG", "S", "ST", "SO")


@dataclass(frozen=True)
class JobState:
    """What is known of one job.

    Attributes:
        job: the job.
        state: done, running, failed or waiting.
        error: the cause of a failure.
        done: items that are done, of a running job.
        total: number of items, as far as known.
        rate: items per second, of a running or finished job.
    """

    job: Job
    state: State
    error: str | None = None
    done: int = 0
    total: int | None = None
    rate: float | None = None


@dataclass(frozen=True)
class Activity:
    """The jobs of a run that are known to the queue, or have a process on this host.

    Attributes:
        running: comments of SLURM jobs that run.
        pending: comments of SLURM jobs that wait, with SLURM's reason.
        logs: logs of the processes on this host.
    """

    running: frozenset[str] = frozenset()
    pending: dict[str, str] = field(default_factory=dict)
    logs: frozenset[Path] = frozenset()


def find_activity(run_dir: Path, configured: Path) -> Activity:
    """Ask SLURM, where there is one, and this host for the jobs of a run.

    Args:
        run_dir: the run's folder.
        configured: `run_dir` of its configuration. A SLURM job belongs to the run if this path,
            from the job's working folder, is the run's folder.
    """
    running, pending = set(), {}
    for line in ask(_QUEUE).lines:  # none without SLURM, or if it does not answer
        state, reason, folder, comment = (*line.split("|", 3), "", "", "")[:4]
        if Path(folder, configured).resolve() != run_dir.resolve():
            continue
        if state == _PENDING:
            pending[comment] = printable(reason)
        elif state in _RUNNING:
            running.add(comment)
    return Activity(frozenset(running), pending, frozenset(_logs_of_processes()))


def _logs_of_processes() -> set[Path]:
    """Return the logs (`--log`) of the stages that run on this host (Linux)."""
    logs = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"flowllm" in words and b"--log" in words[:-1]:
                log = os.fsdecode(words[words.index(b"--log") + 1])
                logs.add((process / "cwd").readlink() / log)
        except OSError:  # it has ended, or belongs to another user
            continue
    return {log.resolve() for log in logs}


def state_of(
    job: Job,
    run_dir: Path,
    activity: Activity,
    values: Mapping[str, Any] | None = None,
    archived: Collection[str] = (),
) -> JobState:
    """Return the state of a job.

    A job that runs or waits in SLURM's queue is not done, even if an older output is in place. An
    output that was made with other settings is not the job's either: it stays until the job has
    replaced it.

    Args:
        job: the job.
        run_dir: the run's folder.
        activity: the run's jobs in the queue and on this host.
        values: the job's settings (`stage_values`), None if those of its output are not compared.
        archived: paths within the run's folder that are archived, and count as present.
    """
    output, log = run_dir / job.output, run_dir / job.log
    alive = job.comment in activity.running or is_written(output) or log.resolve() in activity.logs
    if not alive and job.comment in activity.pending:
        return JobState(job, "waiting", total=job.items)
    if not alive and all(str(path) in archived or (run_dir / path).exists() for path in job.files):
        record = _record_of(output)
        if record is None or values is None or _made_with(record) == values:
            return _finished(job, record)
    attempt = last_attempt(log, job.stage)
    if alive:
        if attempt is None or attempt.total is None:
            return JobState(job, "running", total=job.items)
        return JobState(job, "running", None, attempt.done or 0, attempt.total, attempt.rate)
    if attempt is None or attempt.finished:  # or its output was removed
        return JobState(job, "waiting", total=job.items)
    ended = f"ended without an error message; its log ends with: {attempt.last}"
    return JobState(job, "failed", attempt.error or ended, total=job.items)


def _record_of(output: Path) -> dict[str, Any] | None:
    """Return the record of an output; None without one, since the output counts without it."""
    try:
        return read_record(provenance_path(output))
    except (FlowllmError, OSError, json.JSONDecodeError):
        return None


def _made_with(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that an output was made with, as `stage_values`."""
    return {"seed": record["seed"], "version": record["stage_version"], **record["settings"]}


def _finished(job: Job, record: Mapping[str, Any] | None) -> JobState:
    """Return the state of a finished job, with the mean rate of its last attempt."""
    if record is None:
        return JobState(job, "done", total=job.items)
    counts = record["counts"]
    items = job.items or counts.get("steps") or counts.get("rows_in")
    if not isinstance(items, int) or record["seconds"] <= 0:
        return JobState(job, "done", total=job.items)
    return JobState(job, "done", None, items, items, items / record["seconds"])


def states_of(
    jobs: Sequence[Job], run_dir: Path, activity: Activity, config: Config
) -> list[JobState]:
    """Return the states of jobs of a configuration, in their order."""
    rows = {(job.stage, job.row) for job in jobs}
    values = {(stage, row): stage_values(config, stage, row) for stage, row in rows}
    archived = read_index(run_dir)
    return [state_of(job, run_dir, activity, values[job.stage, job.row], archived) for job in jobs]
