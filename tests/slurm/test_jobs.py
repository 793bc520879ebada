"""Why a SLURM job failed, by its state and its stage's log; test_submission.py has real ones."""

from types import SimpleNamespace

import pytest

from flowllm.slurm.jobs import failure_of

BEGIN = "=== attempt 1, 2026-11-29 00:04:11, process 4242 on node7, SLURM job 815\n"
STOPPED = (
    "00:05:00 WARNING stopped by SIGTERM; run the same command again: finished parts are kept\n"
)
DAMAGED = (
    "00:05:00 ERROR FILE: damaged\n00:05:00 ERROR Another attempt would fail in the same way.\n"
)


@pytest.mark.parametrize(
    ("state", "logged", "said", "recurs"),
    [
        ("TIMEOUT", "", "the time limit of 240 minutes", False),
        ("OUT_OF_MEMORY", "", "more memory than the 4000 MB that it requests", False),
        ("NODE_FAIL", "", "its node failed", False),
        ("FAILED", STOPPED, "SIGTERM, which SLURM sends before the time limit of 240", False),
        ("FAILED", DAMAGED, "FILE: damaged", True),
        ("OUT_OF_MEMORY", DAMAGED, "than the 4000 MB that it requests; FILE: damaged", False),
        ("FAILED", "", "the last words", False),
    ],
)
def test_the_cause_of_a_state(tmp_path, state, logged, said, recurs):
    log, printed = tmp_path / "refine.log", tmp_path / "815.log"
    log.write_text(BEGIN + logged)
    printed.write_text("the last words\n")
    resources = {"runtime": 240, "mem_mb": 4000}
    job = SimpleNamespace(log=[log], resources=resources, is_group=lambda: False)
    failure = failure_of(job, "815", f"SLURM status is: '{state}'.", printed)
    assert failure.message.startswith("SLURM job 815: ")
    assert said in failure.message
    assert failure.recurs is recurs


def test_an_error_of_an_earlier_job_is_not_the_cause(tmp_path):
    log = tmp_path / "refine.log"
    log.write_text(BEGIN + DAMAGED)
    job = SimpleNamespace(log=[log], resources={}, is_group=lambda: False)
    failure = failure_of(job, "816", "status is: 'FAILED'", None)
    assert failure.message == "SLURM job 816: the state FAILED without a message"
