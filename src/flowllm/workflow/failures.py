"""Why a job of the workflow failed, and what Snakemake does about it.

Snakemake runs a failed job again, whatever the cause. Here a failure that would recur (a damaged
input, settings that do not fit, a refused submission) ends the job at once, and each failure is one
line on the terminal with its cause. A stage says itself whether its failure recurs, in its log.
"""

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flowllm.runtime.log import Failure, attempts, last_failure

VERSION = "9.27"
"""Series of Snakemake whose methods are changed; another one runs unchanged, with a warning."""


class Failures:
    """Causes of failed jobs.

    Attributes:
        known: causes that the executor has already found, by job.
    """

    def __init__(self) -> None:
        self.known: dict[Any, Failure] = {}
        self._attempts: dict[str, int] = {}

    def note_start(self, job: Any) -> None:
        """Remember how many attempts the logs of a job have before it runs."""
        self.known.pop(job, None)
        self._attempts.update({str(path): attempts(path) for path in log_paths(job)})

    def cause(self, job: Any) -> Failure:
        """Return why a job failed; an error of an earlier attempt in its log is not its cause."""
        if job in self.known:
            return self.known.pop(job)
        for path in log_paths(job):
            failure = last_failure(path)
            if failure is not None and attempts(path) > self._attempts.get(str(path), 0):
                return failure
        return Failure("no error in its log; see the messages above")


FAILURES = Failures()
"""Causes of this process."""


def log_paths(job: Any) -> list[Path]:
    """Return the logs of a job, or of all jobs of a group."""
    return [Path(path) for one in members(job) for path in one.log]


def members(job: Any) -> Iterable[Any]:
    """Return the jobs of a group, or the job itself."""
    return list(job) if job.is_group() else [job]


def shown_name(job: Any) -> str:
    """Return rule and wildcards of a job, or of the jobs of a group, for messages."""
    return ", ".join(" ".join([one.rule.name, *one.wildcards]) for one in members(job))


@cache
def change_snakemake(in_job: bool) -> None:
    """Change Snakemake for all jobs of this process; a second call changes nothing more.

    Args:
        in_job: whether this process runs one job for another Snakemake, which decides on retries.
    """
    installed = version("snakemake")
    if not installed.startswith(f"{VERSION}."):
        import_module("snakemake.logging").logger.warning(
            f"Snakemake {installed} is installed, but FlowLLM changes {VERSION} only: failures "
            "that would recur are tried again, and a log has the last attempt only."
        )
        return
    _keep_logs(import_module("snakemake.jobs").Job)
    if not in_job:
        _decide_retries(import_module("snakemake.scheduling.job_scheduler").JobScheduler, FAILURES)


def _keep_logs(job_class: Any) -> None:
    """Keep the logs of earlier attempts, to which a stage appends.

    Snakemake removes the logs of a job before it runs, also that of a living job which runs twice.
    """
    remove = job_class.remove_existing_output

    async def remove_existing_output(job: Any) -> None:
        kept, job._log = job.log, []
        try:
            await remove(job)
        finally:
            job._log = kept

    job_class.remove_existing_output = remove_existing_output


def _decide_retries(scheduler_class: Any, failures: Failures) -> None:
    """Print the cause of a failure, and use up the attempts of a job whose failure recurs."""
    run, handle = scheduler_class.run, scheduler_class._handle_error

    def run_jobs(scheduler: Any, jobs: Any, *words: Any, **options: Any) -> None:
        for job in jobs:
            failures.note_start(job)
        run(scheduler, jobs, *words, **options)

    def handle_error(scheduler: Any, job: Any, *words: Any, **options: Any) -> None:
        failure = failures.cause(job)
        import_module("snakemake.logging").logger.error(_said(job, failure))
        if failure.recurs:
            # Not by the property, which forgets the resources that are to be freed.
            job._attempt = job.restart_times + 1
        handle(scheduler, job, *words, **options)

    scheduler_class.run, scheduler_class._handle_error = run_jobs, handle_error


def _said(job: Any, failure: Failure) -> str:
    """Return the line about a failure."""
    attempt = f"attempt {job.attempt} of {job.restart_times + 1}"
    logs = ", ".join(str(path) for path in log_paths(job) if path.exists())
    ended = job.restart_times >= job.attempt and failure.recurs
    return (
        f"{shown_name(job)} failed ({attempt}): {failure.message.rstrip('.')}."
        + (" It is not tried again." if ended else "")
        + (f" Log: {logs}" if logs else "")
    )
