"""What becomes of a job whose outputs a SLURM job of an earlier start may be making."""

from types import SimpleNamespace
from typing import Any

import pytest

from flowllm.runtime.failures import Failures
from flowllm.slurm import submissions
from flowllm.slurm.jobs import job_name
from flowllm.slurm.submissions import EarlierJobs, Submissions


class Job(SimpleNamespace):
    """As much of Snakemake's job as a submission reads."""

    __hash__ = object.__hash__


JOB = Job(
    name="refine",
    rule=SimpleNamespace(name="refine"),
    output=["refined.parquet"],
    wildcards=[],
    log=[],
    is_group=lambda: False,
)
NAME, NUMBER = job_name(JOB), "7"


class Site:
    """A cluster with one job at the start, and the notes of what becomes of Snakemake's job.

    Attributes:
        living: numbers of the jobs that wait or run, by name.
        done: what was done, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **facts: bool) -> None:
        """Start a run while the job lives.

        Args:
            monkeypatch: of the test.
            facts: `has_same_task` and `has_finished`.
        """
        self.living = {NAME: NUMBER}
        self.done: list[str] = []
        monkeypatch.setattr(submissions, "living_jobs", lambda: dict(self.living))
        earlier = EarlierJobs(
            has_same_task=lambda _job: facts["has_same_task"],
            has_finished=lambda _job: facts["has_finished"],
            follow=lambda _job: self.done.append("follow"),
            leave=lambda _job: self.done.append("leave"),
        )
        scheduler = SimpleNamespace(
            error_callback=lambda _job: self.done.append("failed"),
            finish_callback=lambda _job: self.done.append("finished"),
        )
        executor = SimpleNamespace(
            logger=SimpleNamespace(info=lambda _text: None),
            workflow=SimpleNamespace(scheduler=scheduler),
            follow_living=lambda _job, number: self.done.append(f"wait for {number}"),
        )
        self.submissions = Submissions(executor, self._submit, Failures(), earlier)

    def _submit(self, _executor: Any, _job: Any) -> None:
        self.done.append("sbatch")


@pytest.mark.parametrize("serves", [False, True])
@pytest.mark.parametrize(
    ("lives", "has_same_task", "has_finished", "done"),
    [
        (True, True, False, ["follow", "wait for 7"]),
        (True, False, False, ["leave", "failed"]),
        (False, True, True, ["finished"]),
        (False, True, False, ["sbatch"]),
        (False, False, True, ["sbatch"]),
        (False, False, False, ["sbatch"]),
    ],
)
def test_an_earlier_job_is_asked_for_again_before_it_is_followed(
    monkeypatch, serves, lives, has_same_task, has_finished, done
):
    """An ended one would be waited for without end: SLURM forgets it."""
    site = Site(monkeypatch, has_same_task=has_same_task, has_finished=has_finished)
    if not lives:
        site.living.clear()
    site.submissions._serves = serves
    site.submissions.submit(JOB)
    waits = serves and done == ["sbatch"]  # behind a refused job, in its thread
    assert site.done == ([] if waits else done)
    assert list(site.submissions._waiting) == ([JOB] if waits else [])


def test_slurm_is_asked_once_for_many_earlier_jobs(monkeypatch):
    site = Site(monkeypatch, has_same_task=True, has_finished=False)
    asked = []
    monkeypatch.setattr(submissions, "living_jobs", lambda: asked.append(1) or {NAME: NUMBER})
    for _ in range(3):
        site.submissions._living = {NAME: NUMBER}
        site.submissions.submit(JOB)
    assert site.done == ["follow", "wait for 7"] * 3
    assert len(asked) == 1


def test_a_job_is_followed_once(monkeypatch):
    """Its second attempt is a new job."""
    site = Site(monkeypatch, has_same_task=True, has_finished=False)
    site.submissions.submit(JOB)
    site.submissions.follow(NUMBER)
    site.submissions.submit(JOB)
    assert site.done == ["follow", "wait for 7", "sbatch"]
