"""Submission of jobs to SLURM: refused ones wait, and those that live already are followed."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flowllm.errors import FlowllmError
from flowllm.runtime.failures import Failures, shown_name
from flowllm.runtime.log import Failure
from flowllm.slurm.jobs import job_name, living_jobs
from flowllm.slurm.refusals import Refusal, read_refusal

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
SECONDS_BETWEEN_LOOKS = 10.0


@dataclass(frozen=True)
class EarlierJobs:
    """What to do about a job of an earlier start that makes the outputs of a job.

    Attributes:
        has_same_task: returns whether both have the same task.
        has_finished: returns whether the outputs of the job are finished.
        follow: notes that it is waited for.
        leave: notes that its outputs are left to it, and that the job fails.
    """

    has_same_task: Callable[[Any], bool]
    has_finished: Callable[[Any], bool]
    follow: Callable[[Any], None]
    leave: Callable[[Any], None]


class Submissions:
    """Jobs on their way into SLURM, of one executor of the plugin.

    A job that is refused for now waits here, without using up an attempt, and all later jobs wait
    behind it. A thread submits them as soon as SLURM accepts them.

    Attributes:
        numbers: SLURM jobs that are followed, and have not ended.
        all_numbers: those that have ended, too.
    """

    def __init__(
        self, executor: Any, submit: Any, failures: Failures, earlier: EarlierJobs
    ) -> None:
        """Find the jobs of an earlier start that still wait or run.

        Args:
            executor: the plugin's executor.
            submit: its method that submits one job.
            failures: receives the causes of refusals.
            earlier: what to do about the jobs of an earlier start.

        Raises:
            FlowllmError: squeue does not answer.
        """
        self._executor, self._submit, self._failures = executor, submit, failures
        self._earlier_jobs = earlier
        self._living = living_jobs()
        self._earlier = frozenset(self._living.values())
        self._seen: dict[str, str] | None = None
        self._look_after = 0.0
        self._waiting: deque[Any] = deque()
        self._refusal: Refusal | None = None
        self._said: str | None = None
        self._lock = threading.Lock()
        self._serves = False
        self._stopped = threading.Event()
        self.numbers: set[str] = set()
        self.all_numbers: list[str] = []

    def submit(self, job: Any) -> None:
        """Submit a job, or follow its living predecessor, or let it wait."""
        if self._leave_to_earlier(job):  # it needs no sbatch
            return
        with self._lock:
            if self._serves:
                self._waiting.append(job)
                return
        if not self._send(job):
            self._say_waiting()
            with self._lock:
                self._waiting.append(job)
                if self._serves:
                    return
                self._serves = True
            threading.Thread(target=self._serve, daemon=True).start()

    def refused(self, job: Any, said: str) -> Failure | None:
        """Return why a job is not submitted; None if it waits."""
        refusal = read_refusal(said)
        if refusal.passes:
            self._refusal = refusal
            return None
        self._failures.known[job] = Failure(
            f"SLURM refused it: {refusal.reason}", recurs=refusal.kind == "final"
        )
        return self._failures.known[job]

    def follow(self, number: str) -> None:
        """Note a submitted job."""
        self.numbers.add(number)
        self.all_numbers.append(number)

    def stop(self) -> None:
        """Submit nothing more."""
        self._stopped.set()

    def _send(self, job: Any) -> bool:
        """Submit a job; return False if it is refused for now."""
        self._refusal = None
        self._submit(self._executor, job)
        return self._refusal is None

    def _leave_to_earlier(self, job: Any) -> bool:
        """Use the job of an earlier start that makes the outputs of a job, or fail beside it.

        Returns:
            False if the job must be submitted.
        """
        number = self._living.pop(job_name(job), None)
        if number is None or number in self.all_numbers:
            return False
        if number not in self._earlier:  # of this start, accepted although SLURM did not say so
            self._follow(job, number)
            return True
        is_same = self._earlier_jobs.has_same_task(job)
        if not self._lives(job, number):
            if not is_same or not self._earlier_jobs.has_finished(job):
                return False
            self._executor.workflow.scheduler.finish_callback(job)
        elif is_same:
            self._earlier_jobs.follow(job)
            self._follow(job, number)
        else:
            self._fail_beside(job, number)
        return True

    def _follow(self, job: Any, number: str) -> None:
        """Wait for a living job in place of a new one."""
        self._executor.logger.info(
            f"{shown_name(job)} is SLURM job {number} of an earlier start, which still waits or "
            "runs: it is waited for and not submitted again."
        )
        self._executor.follow_living(job, number)

    def _lives(self, job: Any, number: str) -> bool:
        """Return whether a job that lived at the start still does; True if unknown.

        One answer of SLURM is used for some seconds: a start may have hundreds of such jobs.
        """
        if time.monotonic() >= self._look_after:
            try:
                self._seen = living_jobs()
            except FlowllmError:
                self._seen = None
            self._look_after = time.monotonic() + SECONDS_BETWEEN_LOOKS
        return self._seen is None or self._seen.get(job_name(job)) == number

    def _fail_beside(self, job: Any, number: str) -> None:
        """Report a job as failed whose outputs are being made with other settings or inputs."""
        self._earlier_jobs.leave(job)
        self._failures.known[job] = Failure(
            f"SLURM job {number} of an earlier start makes its outputs with other settings or "
            f"inputs. Wait for its end or cancel it (scancel {number}), then start again",
            recurs=True,
        )
        self._executor.workflow.scheduler.error_callback(job)

    def _serve(self) -> None:
        """Submit the waiting jobs in their order, with growing pauses while SLURM refuses them."""
        pause = FIRST_PAUSE_SECONDS
        while not self._stopped.wait(pause):
            if self._executor.workflow.scheduler._user_kill:
                self._give_up()
            elif self._knows_living() and self._try_reporting(self._waiting[0]):
                self._waiting.popleft()
                pause = 0.0
            else:
                self._say_waiting()
                pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
            with self._lock:
                if not self._waiting:
                    self._said, self._serves = None, False
                    return

    def _try_reporting(self, job: Any) -> bool:
        """Try to submit a job; an unexpected error, which would end this thread, fails the job."""
        try:
            return self._leave_to_earlier(job) or self._send(job)
        except Exception as error:
            self._failures.known[job] = Failure(f"its submission failed: {error!r}")
            self._executor.workflow.scheduler.error_callback(job)
            return True

    def _knows_living(self) -> bool:
        """Look whether a job was accepted although SLURM did not say so; False if unknown."""
        if self._refusal is None or self._refusal.kind != "controller":
            return True
        try:
            self._living = living_jobs()
        except FlowllmError:
            return False
        return True

    def _say_waiting(self) -> None:
        """Say once per reason that jobs wait."""
        if self._refusal is None or self._refusal.reason == self._said:
            return
        self._said = self._refusal.reason
        self._executor.logger.warning(
            f"SLURM accepts no job at present ({self._said}). Jobs wait and are submitted as soon "
            "as it does; this uses up no attempt."
        )

    def _give_up(self) -> None:
        """Report the waiting jobs as failed, since Snakemake is to end."""
        while self._waiting:
            job = self._waiting.popleft()
            reason = "not submitted, since snakemake was stopped"
            self._failures.known[job] = Failure(reason, recurs=True)
            self._executor.workflow.scheduler.error_callback(job)
