"""`snakemake --profile slurm` on a real SLURM of this one machine.

The stages after sampling run again on SLURM, in a copy of the finished local run. Meanwhile one job
is cancelled between two of its parts, and a configuration file is edited. Skipped, with the reason,
where Debian's packages munge, slurmctld, slurmd and slurm-client are missing or the daemons may
not run (they need root).
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from slurm_cluster import missing_programs, slurm_cluster
from tiny_run import ROOT, SNAKEMAKE, TINY, environment, planned, snakemake

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]

ON_GPU = ("refine", "reference_hull")
ON_CPU = ("prerelax", "stability")
SITE = {"resources": {rule: {"gpus": 1} for rule in ON_GPU}}
EDITED = {**SITE, "stability": {"metastable_below": 0.5}}


@dataclass(frozen=True)
class Run:
    """A copy of the local run in which stages ran again on SLURM.

    Attributes:
        folder: its working directory.
        overlay: the configuration file that was edited meanwhile.
        said: what snakemake printed.
        parts: parts of the reference hull that the cancelled job had saved.
    """

    folder: Path
    overlay: Path
    said: str
    parts: int


@pytest.fixture(scope="module")
def slurm_run(finished_run, tmp_path_factory) -> Iterator[Run]:
    scratch = tmp_path_factory.mktemp("slurm")
    folder, overlay = scratch / "work", scratch / "site.yaml"
    shutil.copytree(finished_run, folder)
    overlay.write_text(yaml.safe_dump(SITE))
    words = [
        *["--profile", str(ROOT / "slurm"), "--slurm-status-command", "squeue"],
        *["--slurm-partition-config", str(ROOT / "slurm" / "partitions.yaml")],
        *["--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "5"],
        *["--groups", "prerelax=relaxations", "--group-components", "relaxations=2"],
        *["--forcerun", "reference_hull", "refine", "--until", "stability"],
        *[*TINY, str(overlay)],
    ]
    with slurm_cluster(scratch / "cluster") as conf, (scratch / "said").open("w") as said:
        cluster = {**environment(), "SLURM_CONF": str(conf)}
        process = subprocess.Popen(
            [*SNAKEMAKE, *words], cwd=folder, env=cluster, stdout=said, stderr=subprocess.STDOUT
        )
        parts = cancel_between_parts(folder / "run" / "hull", cluster, process)
        overlay.write_text(yaml.safe_dump(EDITED))
        code = process.wait()
    text = (scratch / "said").read_text()
    assert code == 0, text[-8000:]
    return Run(folder, overlay, text, parts)


def cancel_between_parts(hull: Path, cluster: dict[str, str], process: subprocess.Popen) -> int:
    """Cancel the job of the reference hull once it has saved a part, and wait for its end."""
    folder = hull / ".potential.parquet.partial"
    while not list(folder.glob("part-*.parquet")):
        assert process.poll() is None, "snakemake ended before the reference hull had a part"
        time.sleep(0.02)
    squeue = ["squeue", "--noheader", "--states=all", "--format=%A %T %k"]
    jobs = subprocess.run(squeue, env=cluster, capture_output=True, text=True, check=True).stdout
    job = next(line.split()[0] for line in jobs.splitlines() if "rule_reference_hull" in line)
    subprocess.run(["scancel", job], env=cluster, check=True)
    while (
        f"{job} CANCELLED"
        not in subprocess.run(
            squeue, env=cluster, capture_output=True, text=True, check=True
        ).stdout
    ):
        time.sleep(0.1)
    return len(list(folder.glob("part-*.parquet")))


def records(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in folder.rglob("_*.provenance.json")]


def test_jobs_land_in_their_partition_with_their_gpu(slurm_run):
    by_stage: dict[str, list[dict]] = {}
    for record in records(slurm_run.folder / "run"):
        by_stage.setdefault(record["stage"], []).append(record["slurm"])
    for stage in ON_GPU:
        for job in by_stage[stage]:
            assert job["SLURM_JOB_PARTITION"] == "gpu"
            assert job["CUDA_VISIBLE_DEVICES"] == "0"
    for stage in ON_CPU:
        for job in by_stage[stage]:
            assert job["SLURM_JOB_PARTITION"] == "cpu"
            assert job["CUDA_VISIBLE_DEVICES"] is None
    shards = [job["SLURM_JOB_ID"] for job in by_stage["prerelax"]]
    assert len(shards) == 4
    assert len(set(shards)) == 2  # two shards a job, by the group


def test_artefacts_equal_the_local_runs(slurm_run, finished_run):
    for folder in ("hull", "generated", "relaxed", "stability"):
        paths = list((finished_run / "run" / folder).rglob("*.parquet"))
        assert paths
        for path in paths:
            other = slurm_run.folder / path.relative_to(finished_run)
            assert other.read_bytes() == path.read_bytes(), path
            assert other.stat().st_mtime > path.stat().st_mtime


def test_a_cancelled_job_is_tried_again_and_goes_on(slurm_run):
    first = (slurm_run.folder / ".snakemake" / "slurm_logs" / "rule_reference_hull").rglob("*.log")
    assert any("stopped by SIGTERM" in path.read_text() for path in first)
    second = (slurm_run.folder / "run" / "logs" / "reference_hull.log").read_text()
    assert "reference_hull: resuming from" in second
    assert slurm_run.parts >= 1
    assert "Trying to restart job" in slurm_run.said


def test_an_edited_configuration_counts_from_the_next_start(slurm_run):
    """Stability ran after the edit and equals the local run; the next plan makes it again."""
    command = ["-n", "--until", "stability", *TINY, str(slurm_run.overlay)]
    assert planned(snakemake(*command, cwd=slurm_run.folder)) == {"stability": 2}
