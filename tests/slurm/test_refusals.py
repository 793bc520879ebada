"""What sbatch's words mean; test_submission.py asks a real SLURM for some of them."""

import pytest

from flowllm.slurm.refusals import read_refusal

POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


# The texts are those of SLURM's src/common/slurm_errno.c and src/slurmctld/acct_policy.c.
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (f"QOSMaxSubmitJobPerUserLimit\nsbatch: error: {POLICY}", "limit"),
        (f"AssocMaxSubmitJobLimit\nsbatch: error: {POLICY}", "limit"),
        (f"AssocGrpSubmitJobsLimit\nsbatch: error: {POLICY}", "limit"),
        (f"QOSMaxWallDurationPerJobLimit\nsbatch: error: {POLICY}", "final"),
        (f"AssocMaxCpuPerJobLimit\nsbatch: error: {POLICY}", "final"),
        (POLICY, "unclear"),
        ("Slurm temporarily unable to accept job, sleeping and retrying", "limit"),
        ("Socket timed out on send/recv operation", "controller"),
        ("Unable to contact slurm controller (connect failure)", "controller"),
        ("slurm_persist_conn_open: Something happened: Connection refused", "controller"),
        ("Zero Bytes were transmitted or received", "controller"),
        ("Invalid account or account/partition combination specified", "final"),
        ("Invalid feature specification", "final"),
        ("invalid partition specified: gpus", "final"),
        ("Invalid qos specification", "final"),
        ("Invalid generic resource (gres) specification", "final"),
        ("Requested node configuration is not available", "final"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "final"),
        ("User's group not permitted to use this partition", "final"),
        ("Unspecified error", "unclear"),
    ],
)
def test_the_kind_of_a_refusal(said, kind):
    refusal = read_refusal(
        f"SLURM sbatch failed. The error message was 'sbatch: error: {said}'.\n"
        "    sbatch call:\n        sbatch --comment 'Invalid account' --wrap=\"...\"\n"
    )
    assert (refusal.kind, refusal.passes) == (kind, kind in ("limit", "controller"))
    assert refusal.reason == "sbatch: error: " + " ".join(said.split())


def test_the_plugins_own_check_of_the_account_is_a_refusal():
    said = "The given account nobody appears to be invalid. Available accounts:\nmaterials, root"
    assert read_refusal(said).kind == "final"
    said = "The 'sacctmgr' reported: 'sacctmgr: error: Connection refused' and likewise 'sshare'"
    assert read_refusal(said).kind == "controller"
