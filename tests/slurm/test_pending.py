"""Reasons of squeue for which a job cannot start as it is."""

import pytest

from flowllm.slurm.pending import meaning


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("JobHeldUser", "scontrol release"),
        ("JobHoldMaxRequeue", "scontrol release"),
        ("launch failed requeued held", "scontrol release"),
        ("QOSMaxGRESPerNode", "more than a limit"),
        ("PartitionTimeLimit, and more", "more time than its partition allows"),
    ],
)
def test_a_job_that_cannot_start_is_explained(reason, said):
    assert said in str(meaning(reason))


@pytest.mark.parametrize("reason", ["Priority", "Resources", "QOSMaxJobsPerUserLimit", "None", ""])
def test_a_job_that_waits_for_others_is_not(reason):
    assert meaning(reason) is None
