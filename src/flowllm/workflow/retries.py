"""Whether a failed job is tried again, and what the terminal says of it.

Snakemake runs a failed job again, whatever the cause. Here a failure that would recur (a damaged
input, settings that do not fit, a refused submission) ends the job at once, and each failure is one
line on the terminal with its cause. A stage says itself whether its failure recurs, in its log.
"""

from collections.abc import Collection
from typing import Any

from snakemake.logging import logger
from snakemake.scheduling.job_scheduler import JobScheduler

from flowllm.runtime.failures import FAILURES, log_paths, shown_name
from flowllm.runtime.log import Failure
from flowllm.workflow.changes import change_method


def install() -> None:
    """Change Snakemake as described above."""
    change_method(JobScheduler, "run", _run)
    change_method(JobScheduler, "_handle_error", _handle_error)


def _run(original: Any, self: JobScheduler, jobs: Collection[Any], executor: Any = None) -> None:
    """Note the attempts that the logs have, then run jobs."""
    for job in jobs:
        FAILURES.note_start(job)
    original(self, jobs, executor)


def _handle_error(original: Any, self: JobScheduler, job: Any, *words: Any, **options: Any) -> None:
    """Print the cause of a failure, and use up the attempts of a job whose failure recurs."""
    failure = FAILURES.cause(job)
    logger.error(_said(job, failure))
    if failure.recurs:
        # Not by the property, which forgets the resources that are to be freed.
        job._attempt = job.restart_times + 1
    original(self, job, *words, **options)


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
