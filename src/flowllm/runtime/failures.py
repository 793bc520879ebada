"""Why jobs of the workflow failed, for the messages on the terminal and the decision on a retry."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flowllm.runtime.log import Failure, attempts, last_failure


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
