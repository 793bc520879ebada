"""A site's particulars and the checks before a start, on a real SLURM of this machine.

The cluster is that of `test_slurm.py`, and the tests are skipped where it is. Examples of
docs/site.md are compared with the options that the plugin would submit.
"""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flowllm.config.load import load_config
from flowllm.config.site import Site
from flowllm.slurm.pending import Watch
from flowllm.slurm.requests import (
    SubmitSettings,
    chosen_partition,
    read_partitions,
    requests_of_config,
    sbatch_words,
)
from slurm_cluster import ACCOUNT, QOS, missing_programs, slurm_cluster
from tiny_run import ROOT, SNAKEMAKE, TINY, environment, snakemake

PAGE = (ROOT / "docs" / "site.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.*?)```(?:\s*```text\n(.*?)```)?", PAGE, re.DOTALL)
SITE_FILE = ROOT / "slurm" / "site.yaml"
CONFIG = load_config([ROOT / "config.yaml"])
TINY_CONFIG = load_config([Path(path) for path in TINY[1:]])
PARTITIONS = {
    "cpu": {"max_runtime": 10080, "max_mem_mb": 20000, "max_threads": 8},
    "gpu": {"max_runtime": 10080, "max_mem_mb": 20000, "max_threads": 8, "max_gpu": 1},
}
CRYSTALS = "run/crystals/train.parquet"  # a download where snakemake runs, and one SLURM job


@pytest.mark.parametrize(("entries", "expected"), EXAMPLES)
def test_an_example_of_the_page_gives_the_options_that_it_lists(entries, expected, tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SITE_FILE.read_text()) | yaml.safe_load(entries)))
    site = Site.model_validate(yaml.safe_load(path.read_text()))
    for line in expected.splitlines():
        rule, options = line.split(": ", 1)
        [request] = requests_of_config(CONFIG, site, [rule], retries=0)
        partition = chosen_partition(request, read_partitions(path))
        words = sbatch_words(request, partition, SubmitSettings(path, None, None))
        for option in re.findall(r"-\w \S+|--\S+", options):
            assert f" {option} " in f" {' '.join(words)} ", (line, words)


def test_the_page_has_every_key_and_eight_checked_examples():
    keys = {key for entries, _ in EXAMPLES for key in yaml.safe_load(entries)}
    assert keys == Site.model_fields.keys()
    assert sum(bool(expected) for _, expected in EXAMPLES) >= 8


def test_a_jobs_number_of_gpus_is_the_configurations(tmp_path):
    """As SLURM's job starts snakemake, where the GPUs were requested by --gres alone."""
    overlay = tmp_path / "gpus.yaml"
    overlay.write_text(yaml.safe_dump({"resources": {"sample_pairs": {"gpus": 3}}}))
    given = ["--set-resources", "sample_pairs:gpu=0", "sample_pairs:gres=gpu:3"]
    command = ["-n", "-p", "--mode", "remote", *given, *TINY, str(overlay)]
    said = snakemake(*command, cwd=tmp_path)
    assert "flowllm sample_pairs" in said
    assert set(re.findall(r"flowllm sample_pairs .*--gpus (\d+)", said)) == {"3"}


class Started:
    """A cluster, and how tests start snakemake on it."""

    def __init__(self, folder: Path, conf: Path) -> None:
        # Snakemake reads a config.yaml in its working directory as the configuration.
        self.profile, self.folder = folder / "profile", folder / "work"
        self.profile.mkdir()
        self.folder.mkdir()
        self.overlay = folder / "overlay.yaml"
        self.environment = {**environment(), "SLURM_CONF": str(conf)}
        self.overlay.write_text("{}")
        text = (ROOT / "slurm" / "config.yaml").read_text()
        text = text.replace("slurm/site.yaml", str(self.profile / "site.yaml"))
        (self.profile / "config.yaml").write_text(text)

    def describe(self, **entries: object) -> None:
        """Write the site's file."""
        text = yaml.safe_dump({"partitions": PARTITIONS} | entries)
        (self.profile / "site.yaml").write_text(text)

    def words(self, *words: str) -> list[str]:
        quick = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
        profile = ["--profile", str(self.profile), *quick, "--slurm-status-attempts", "1"]
        return [*SNAKEMAKE, *profile, *words, *TINY, str(self.overlay)]

    def snakemake(self, *after: str) -> tuple[int, str]:
        """Run snakemake, with words after its files; return its exit code and what it prints.

        A target follows `--`, since --configfile takes all words before the next option.
        """
        done = subprocess.run(
            [*self.words(), *after],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout

    def run(self, *command: str) -> str:
        """Run a command and return what it prints."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    def submitted(self) -> int:
        return len(self.run("squeue", "--noheader", "--states=all").splitlines())


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Iterator[Started]:
    if missing_programs() or os.geteuid() != 0:
        pytest.skip(f"needs root, and not installed: {missing_programs()}")
    with slurm_cluster(tmp_path_factory.mktemp("cluster")) as conf:
        yield Started(tmp_path_factory.mktemp("site with space"), conf)


WRONG = {
    "gpu_type": "h100",
    "rules": {
        "prerelax": {"constraint": "nowhere"},
        "fingerprints": {"qos": "nope"},
        "dft_inputs": {"account": "nobody"},
        "prepare": {"partition": "short"},
        "metrics": {"partition": "nowhere"},
    },
}
TOO_MUCH = {
    "resources": {
        "reference_hull": {"gpus": 5},
        "stability": {"mem_mb": 40000},
        "refine": {"gpus": 1},
        "train_rfm": {"runtime": 20000},
    }
}
REFUSED = {
    "prerelax": ("Invalid feature specification", "correct `constraint`"),
    "fingerprints": ("Invalid qos specification", "correct `qos`"),
    "dft_inputs": ("Invalid account", "correct `account`"),
    "prepare (attempt 2)": ("SLURM's partition short has a limit of 10", "prepare.runtime"),
    "metrics": ("Invalid partition name", "correct the names under `partitions`"),
    "refine": ("in partition gpu: Requested node configuration", "`gpu_type`"),
    "reference_hull": ("gpu (5 GPUs, limit 1)", "lower resources.reference_hull"),
    "stability": ("cpu (40000 MB of memory, limit 20000)", "lower resources.stability"),
    "train_rfm": ("cpu (20000 minutes, limit 10080)", "lower resources.train_rfm"),
}


def test_what_fits_nowhere_is_refused_before_anything_is_submitted(started):
    started.run("scontrol", "create", "partitionname=short", "nodes=one", "maxtime=10")
    started.describe(**WRONG)
    started.overlay.write_text(yaml.safe_dump(TOO_MUCH))
    before = started.submitted()
    code, said = started.snakemake()
    assert code == 1
    assert "the jobs do not fit this SLURM, see above; none was submitted" in said
    assert "flowllm download" not in said  # nor did a local rule run
    assert started.submitted() == before
    lines = re.findall(r"^failed +(.*?): (.*)$", said, re.M)
    assert {rule for rule, _ in lines} == REFUSED.keys()
    for rule, text in lines:
        for part in REFUSED[rule]:
            assert part in text
    estimate = [sys.executable, "-m", "flowllm", "estimate", "--profile", str(started.profile)]
    files = [f"--config={path}" for path in (*TINY[1:], started.overlay)]
    assert set(re.findall(r"^failed +(.*?): (.*)$", started.run(*estimate, *files), re.M)) == set(
        lines
    )


def test_a_sites_entries_reach_a_job_with_default_resources_on_the_command_line(started):
    """Prologue, launcher, scratch, whole node, no memory, account and QOS; the signal stays."""
    started.overlay.write_text("{}")
    started.describe(
        prologue='echo "prologue of ${SLURM_JOB_ID}" "$LAUNCHED"\n',
        launcher="env -u LAUNCHED",
        scratch=f"{started.folder}/scratch $SLURM_JOB_ID",
        all_jobs={"account": ACCOUNT, "qos": QOS, "exclusive": True, "memory": False},
    )
    started.environment["LAUNCHED"] = "exported"
    words = ["--default-resources", "foo=1", "--slurm-keep-successful-logs", "--", CRYSTALS]
    started.run("sacctmgr", "-i", "modify", "qos", QOS, "set", "MaxSubmitJobsPerUser=5")
    code, said = started.snakemake(*words)
    assert code == 0, said[-4000:]
    assert f"300 at once, but QOS {QOS} allows 5 submitted jobs" in said
    assert "ok      slurm-status-command: sacct" in said
    assert "ccount given, trying to guess" not in said
    [number] = re.findall(r"submitted with SLURM jobid (\d+)", said)
    line = started.run("sacct", "-X", "-n", "-P", "-j", number, "-o", "Account,QOS,SubmitLine")
    account, qos, submitted = line.strip().split("|", 2)
    assert (account, qos) == (ACCOUNT, QOS)
    words = shlex.split(submitted.split("--wrap")[0])
    assert {"--signal=TERM@120", "--exclusive"} <= set(words)
    assert "--mem" not in words
    [log] = (started.folder / ".snakemake" / "slurm_logs").rglob(f"{number}.log")
    assert f"prologue of {number} exported" in log.read_text()
    assert (started.folder / f"scratch {number}").is_dir()


def test_without_an_account_none_is_guessed(started):
    started.overlay.write_text("{}")
    started.describe(gpu_gres="gpu", gpu_type="a100")
    code, said = started.snakemake("--forcerun", "prepare", "--", CRYSTALS)
    assert code == 0, said[-4000:]
    assert "account" not in said.lower()


def test_a_job_that_cannot_start_is_named_and_sigterm_ends_snakemake(started):
    started.overlay.write_text("{}")
    started.describe()
    started.run("scontrol", "update", "partitionname=cpu", "state=down")
    try:
        with (started.folder / "said").open("wb") as said:
            process = subprocess.Popen(
                [*started.words("--retries", "0"), "--forcerun", "prepare", "--", CRYSTALS],
                cwd=started.folder,
                env=started.environment,
                stdout=said,
                stderr=said,
            )
        while "cannot start: PartitionDown" not in (started.folder / "said").read_text():
            assert process.poll() is None, (started.folder / "said").read_text()
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 1
    finally:
        started.run("scontrol", "update", "partitionname=cpu", "state=up")
    text = (started.folder / "said").read_text()
    assert text.count("waits and cannot start") == 1
    assert "(rule_prepare) waits and cannot start: PartitionDown, its partition is down" in text
    assert "cancelled, since they cannot start" in text
    assert not started.run("squeue", "--noheader").strip()


def test_a_job_over_its_partitions_time_limit_is_named_and_another_is_not(started, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", started.environment["SLURM_CONF"])
    started.run("scontrol", "create", "partitionname=brief", "nodes=one", "maxtime=10")
    options = ["--parsable", "--output=/dev/null", "--wrap=true", "--partition=brief"]
    long = started.run("sbatch", *options, "--time=100", "--comment=rule_x").strip()
    held = started.run("sbatch", *options, "--begin=now+1hour", "--time=5").strip()
    watch = Watch()
    deadline = time.monotonic() + 60
    while not (said := asyncio.run(watch.messages([long, held], stopping=False))):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    [message] = said
    assert re.match(rf"SLURM job {long} \(rule_x\) waits and cannot start: Partition\w+, ", message)
    assert asyncio.run(watch.messages([long, held], stopping=False)) == []
    started.run("scancel", long, held)


def test_a_limit_on_submitted_jobs_delays_and_a_limit_per_job_is_refused(started):
    """Living jobs of an earlier start may use up the limit; the next start waits for them."""
    limit = ["sacctmgr", "-i", "modify", "qos", QOS, "set"]
    started.run(*limit, "MaxSubmitJobsPerUser=1", "Flags=DenyOnLimit")
    started.describe(all_jobs={"account": ACCOUNT, "qos": QOS})
    options = [f"--account={ACCOUNT}", f"--qos={QOS}", "--begin=now+1hour", "--output=/dev/null"]
    living = started.run("sbatch", "--parsable", *options, "--wrap=true").strip()
    estimate = [sys.executable, "-m", "flowllm", "estimate", "--profile", str(started.profile)]
    estimate += [f"--config={path}" for path in TINY[1:]]
    said = started.run(*estimate)
    assert "failed " not in said
    assert f"300 at once, but QOS {QOS} allows 1 submitted jobs" in said
    started.run("scancel", living)
    started.run(*limit, "MaxTRESPerJob=cpu=1")
    said = started.run(*estimate)
    started.run(*limit, "MaxSubmitJobsPerUser=-1", "MaxTRESPerJob=cpu=-1")
    [(rules, text)] = re.findall(r"^failed +(.*?): (.*)$", said, re.M)
    assert "QOSMaxCpuPerJobLimit" in text
    assert "use another `qos`" in text
    with_two_cores = {name for name, asked in TINY_CONFIG.resources.items() if asked.cpus == 2}
    assert set(rules.split(", ")) <= with_two_cores
