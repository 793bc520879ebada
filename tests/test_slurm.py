"""The tiny run through `--profile slurm` on a real SLURM of this one machine.

Skipped, with the reason, where Debian's packages munge, slurmctld, slurmd and slurm-client are not
installed or the daemons may not run (they need root).
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from flowllm.config import STAGES
from flowllm.runlog import provenance_path
from slurm_cluster import missing_programs, slurm_cluster
from test_workflow import ROOT, TINY, finished_run, snakemake  # noqa: F401

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]

# Unlike a cluster's, this machine has one GPU to count and no accounting database.
ONE_GPU = """\
resources:
  refine:         {gpus: 1, cpus: 1, mem_mb: 2000, runtime: 10}
  reference_hull: {gpus: 1, cpus: 1, mem_mb: 2000, runtime: 10}
"""
ON_GPU = ("refine", "reference_hull")


@pytest.fixture(scope="module")
def slurm_run(finished_run, tmp_path_factory):  # noqa: F811
    """A copy of the local run in which the later stages ran again, on SLURM."""
    folder = tmp_path_factory.mktemp("slurm")
    shutil.copytree(finished_run, folder / "work")
    (folder / "one_gpu.yaml").write_text(ONE_GPU)
    with slurm_cluster(folder / "cluster") as conf:
        os.environ["SLURM_CONF"] = str(conf)
        snakemake(
            *["--profile", str(ROOT / "slurm"), "--slurm-status-command", "squeue"],
            *["--slurm-partition-config", str(ROOT / "slurm" / "partitions.yaml")],
            *["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "5"],
            *["--forcerun", "prepare", "reference_hull", "refine"],
            *["--until", "prepare", "reference_hull", "stability"],
            *TINY,
            str(folder / "one_gpu.yaml"),
            cwd=folder / "work",
        )
        del os.environ["SLURM_CONF"]
    return folder / "work"


def records(run: Path) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {stage: [] for stage in STAGES}
    for path in run.rglob("_*.provenance.json"):
        record = json.loads(path.read_text())
        found[record["stage"]].append(record)
    return found


def test_rules_land_in_their_partition_with_their_gpu(slurm_run):
    for stage, on_slurm in records(slurm_run / "run").items():
        for record in on_slurm:
            job = record["slurm"]
            if stage in ON_GPU:
                assert job["SLURM_JOB_PARTITION"] == "gpu"
                assert job["CUDA_VISIBLE_DEVICES"] == "0"
            elif job is not None:
                assert job["SLURM_JOB_PARTITION"] == "cpu"
                assert job["CUDA_VISIBLE_DEVICES"] is None


def test_artefacts_equal_the_local_runs(slurm_run, finished_run):  # noqa: F811
    for folder in ("crystals", "hull", "generated", "relaxed", "stability"):
        for path in (finished_run / "run" / folder).rglob("*.parquet"):
            other = slurm_run / path.relative_to(finished_run)
            assert provenance_path(other).exists() or folder == "crystals"
            assert other.read_bytes() == path.read_bytes(), path
