"""Submission to a real SLURM: limits, refusals, failures and a restart while jobs live.

The jobs are those of `sample_pairs`, answered by helpers/slow_stage.py. `prepare` is the real stage
with a damaged input. Skipped, with the reason, where SLURM is not installed (see test_slurm.py).
"""

import csv
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from flowllm.slurm.refusals import read_refusal
from slow_stage import GO_ON_FILE, SECONDS_FILE, make_python
from slurm_cluster import (
    ACCOUNT,
    QOS,
    make_refusing_sbatch,
    missing_programs,
    slurm_cluster,
)
from tiny_run import ROOT, SNAKEMAKE, TINY, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]

LIMIT = 5
SIZES = {"num_pairs": 10, "pairs_per_shard": 1, "num_val_pairs": 1}
ONE_CORE = {"cpus": 1, "mem_mb": 500, "gpus": 0}
OVERLAY = {"sizes": SIZES, "resources": {"sample_pairs": ONE_CORE, "prepare": ONE_CORE}}


def shard(number: int) -> str:
    return f"run/pairs/train/shard-{number:05d}.parquet"


@dataclass(frozen=True)
class Site:
    """The cluster, and a run whose model and crystals exist.

    Attributes:
        folder: working directory of the run.
        environment: of all commands.
        command: snakemake with its profile and configuration.
    """

    folder: Path
    environment: dict[str, str]
    command: list[str]

    def start(self, *targets: str, options: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start snakemake; what it prints goes into `said`."""
        with (self.folder / "said").open("w") as said:
            return subprocess.Popen(
                [*self.command, *options, "--", *targets],
                cwd=self.folder,
                env=self.environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def finish(self, *targets: str, options: Sequence[str] = ()) -> tuple[int, str]:
        """Run snakemake to its end; return its exit code and what it printed."""
        code = self.start(*targets, options=options).wait(timeout=200)
        return code, (self.folder / "said").read_text()

    def searching(self, folder: Path) -> "Site":
        """Return this site with programs of a folder in place of others of their names."""
        path = f"{folder}{os.pathsep}{self.environment['PATH']}"
        return replace(self, environment={**self.environment, "PATH": path})

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of SLURM."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=check
        )

    def jobs(self) -> list[list[str]]:
        """Number and name of all jobs so far."""
        words = ["sacct", "--allocations", "--parsable2", "--noheader"]
        lines = self.run(*words, "--starttime=now-1days", "--format=JobIDRaw,JobName").stdout
        return [line.split("|") for line in lines.splitlines()]

    def attempts(self, log: str) -> list[str]:
        """Lines of a log that begin an attempt."""
        path = self.folder / "run" / "logs" / log
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith("=== attempt")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    scratch = tmp_path_factory.mktemp("submission")
    python = make_python(scratch / "bin")
    folder = scratch / "work"
    write_inputs(folder)
    overlay = scratch / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(OVERLAY))
    command = [*SNAKEMAKE, "--profile", str(profile(scratch)), "--latency-wait", "5"]
    command += ["--slurm-init-seconds-before-status-checks", "1"]
    command += ["--configfile", *TINY[1:], str(overlay), "--allowed-rules", "sample_pairs"]
    with slurm_cluster(tmp_path_factory.mktemp("cluster")) as conf:
        given = {**environment(), "SLURM_CONF": str(conf)}
        given["PATH"] = f"{python}{os.pathsep}{given['PATH']}"
        yield Site(folder, given, command)


def write_inputs(folder: Path) -> None:
    """Write a model and crystals, of which no job reads anything."""
    for name in ("llm/model/weights", *(f"crystals/{one}.parquet" for one in ("train", "val"))):
        path = folder / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made by the test")


@pytest.fixture(scope="module")
def limited(site):
    """A run with a job that reaches its time limit of a minute, beside the other tests."""
    folder = site.folder.parent / "limited"
    write_inputs(folder)
    (folder / SECONDS_FILE).write_text("600")
    # SIGTERM before the limit would end the job.
    without_signal = folder / "site.yaml"
    text = (site.folder.parent / "profile" / "site.yaml").read_text()
    without_signal.write_text(text.replace("signal_seconds: 120", "signal_seconds: 0"))
    options = ["--slurm-partition-config", str(without_signal), "--retries", "0"]
    options += ["--set-resources", "sample_pairs:runtime=1"]
    started = replace(site, folder=folder)
    return started, started.start(shard(0), options=options)


def profile(scratch: Path) -> Path:
    """Copy the profile, with the account and the QOS of the tests' cluster."""
    folder = scratch / "profile"
    folder.mkdir()
    entries = f"all_jobs: {{account: {ACCOUNT}, qos: {QOS}}} "
    for name, given, filled in (
        ("config.yaml", "slurm-partition-config: slurm/", f"slurm-partition-config: {folder}/"),
        ("site.yaml", "all_jobs: {} ", entries),
    ):
        text = (ROOT / "workflow" / "profiles" / "slurm" / name).read_text()
        assert given in text, given
        (folder / name).write_text(text.replace(given, filled))
    return folder


def limit_jobs(site: Site, number: int) -> None:
    modify = ["sacctmgr", "--immediate", "modify", "qos", QOS, "set"]
    site.run(*modify, f"MaxSubmitJobsPerUser={number}")


def test_ten_shards_finish_in_one_start_under_a_limit_of_five(site):
    (site.folder / SECONDS_FILE).write_text("0")
    limit_jobs(site, LIMIT)
    targets = [shard(number) for number in range(10)]
    code, said = site.finish(*targets, options=["--slurm-efficiency-report"])
    limit_jobs(site, -1)
    assert code == 0, said[-3000:]
    assert all((site.folder / target).exists() for target in targets)
    assert said.count("SLURM accepts no job at present") == 1
    assert "QOSMaxSubmitJobPerUserLimit" in said
    assert "Trying to restart" not in said
    assert len(site.attempts("sample_pairs/train-00000.log")) == 1
    names = [name.rpartition(".")[0] for _, name in site.jobs()]
    assert sorted(names) == [f"sample_pairs.train_{number:05d}" for number in range(10)]
    [report] = site.folder.glob("efficiency_report_*.csv")
    with report.open() as file:
        reported = {row["MainJobID"] for row in csv.DictReader(file)}
    assert reported == {number for number, _ in site.jobs()}


def test_living_jobs_are_waited_for_after_a_restart(site):
    """Two jobs run while snakemake is killed; the next start submits neither again."""
    targets = [shard(10 + number) for number in range(2)]
    more = ["--config", "sizes={num_pairs: 12, pairs_per_shard: 1, num_val_pairs: 1}"]
    (site.folder / SECONDS_FILE).write_text("600")
    before = len(site.jobs())
    first = site.start(*targets, options=more)
    logs = [site.folder / "run" / "logs" / "sample_pairs" / f"train-000{n}.log" for n in (10, 11)]
    deadline = time.monotonic() + 60
    while not all(log.exists() for log in logs):
        assert time.monotonic() < deadline, (site.folder / "said").read_text()[-3000:]
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    site.finish(*targets, options=[*more, "--unlock"])
    try:
        second = site.start(*targets, options=more)
        while (site.folder / "said").read_text().count("of an earlier start") < 2:
            assert second.poll() is None, (site.folder / "said").read_text()[-3000:]
            assert time.monotonic() < deadline + 60, (site.folder / "said").read_text()[-3000:]
            time.sleep(0.2)
        (site.folder / GO_ON_FILE).touch()
        assert second.wait(timeout=100) == 0, (site.folder / "said").read_text()[-3000:]
    finally:
        (site.folder / SECONDS_FILE).write_text("0")
        (site.folder / GO_ON_FILE).unlink(missing_ok=True)
    numbers = {number for number, _ in site.jobs()[before:]}
    assert len(numbers) == 2
    assert {(site.folder / target).read_text() for target in targets} == numbers
    assert [len(site.attempts(f"sample_pairs/{log.name}")) for log in logs] == [1, 1]


@pytest.mark.usefixtures("limited")  # which runs meanwhile
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("--constraint=nonsense", "Invalid feature specification"),
        ("--account=nobody", "Invalid account or account/partition combination specified"),
    ],
)
def test_a_job_that_slurm_never_accepts_fails_at_once_with_the_reason(
    site, wrong, reason, tmp_path
):
    (site.folder / shard(0)).unlink(missing_ok=True)
    code, said = site.searching(make_refusing_sbatch(tmp_path / "bin", wrong)).finish(shard(0))
    assert code == 1
    assert "Trying to restart" not in said
    [line] = [line for line in said.splitlines() if line.startswith("sample_pairs train 00000 ")]
    assert "failed (attempt 1 of 3): SLURM refused it: " in line
    assert line.endswith("It is not tried again. Log: run/logs/sample_pairs/train-00000.log")
    assert reason in line


def test_a_cancelled_job_is_tried_again_and_the_terminal_says_what_happened(site):
    (site.folder / shard(1)).unlink(missing_ok=True)
    (site.folder / SECONDS_FILE).write_text("30")
    before = len(site.attempts("sample_pairs/train-00001.log"))
    process = site.start(shard(1))
    deadline = time.monotonic() + 60
    while len(site.attempts("sample_pairs/train-00001.log")) == before:
        assert time.monotonic() < deadline, (site.folder / "said").read_text()[-3000:]
        time.sleep(0.2)
    (site.folder / SECONDS_FILE).write_text("0")
    number = site.attempts("sample_pairs/train-00001.log")[-1].split()[-1]
    site.run("scancel", number)
    assert process.wait(timeout=100) == 0
    said = (site.folder / "said").read_text()
    assert f"failed (attempt 1 of 3): SLURM job {number}: it was cancelled (scancel)." in said
    assert "Reason: Unknown" not in said
    assert len(site.attempts("sample_pairs/train-00001.log")) == before + 2


def test_a_damaged_input_is_tried_once_and_its_error_is_on_the_terminal(site):
    manifest = site.folder / "run" / "download" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{cut off")
    code, said = site.finish("run/crystals/test.parquet", options=["--allowed-rules", "prepare"])
    assert code == 1
    assert len(site.attempts("prepare.log")) == 1
    [line] = [line for line in said.splitlines() if line.startswith("prepare failed")]
    assert "manifest.json: not a manifest of download" in line
    assert "It is not tried again." in line


def test_the_time_limit_is_the_cause_on_the_terminal(limited):
    run, process = limited
    assert process.wait(timeout=150) == 1
    said = (run.folder / "said").read_text()
    [line] = [line for line in said.splitlines() if line.startswith("sample_pairs train 00000 ")]
    assert re.search(r"\(attempt 1 of 1\): SLURM job \d+: the time limit of 1 minutes\.", line)


@pytest.mark.parametrize(
    "wrong",
    [
        "--constraint=nonsense",
        "--partition=nonsense",
        "--account=nonsense",
        "--qos=nonsense",
        "--gres=nonsense:1",
        "--mem=900G",
    ],
)
def test_slurms_own_words_are_final_refusals(site, wrong):
    done = site.run("sbatch", wrong, "--wrap=true", "--output=/dev/null", check=False)
    assert done.returncode != 0
    assert read_refusal(done.stderr).kind == "final", done.stderr
