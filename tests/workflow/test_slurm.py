"""`snakemake --profile slurm` on a real SLURM of this one machine, whose two slurmd play two nodes.

The whole tiny run is made there from nothing, with the profile's entries for a site filled in.
Meanwhile one of its jobs is preempted, one is cancelled between two of its parts, and a
configuration file is edited. Beside it both trainings run again on two nodes each, in a copy of the
finished local run, with job states from squeue. Skipped, with the reason, where Debian's packages
munge, slurmctld, slurmd, slurm-client, slurmdbd, mariadb-server-core and mariadb-client-core are
missing or the daemons may not run (they need root).
"""

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from slurm_cluster import ACCOUNT, QOS, missing_programs, slurm_cluster
from tiny_run import ROOT, SNAKEMAKE, TINY, environment, planned, snakemake

CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
PROFILE = ROOT / "workflow" / "profiles" / "slurm"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]

# What a user edits in the profile; few groups make the test quicker, since each job starts
# Snakemake twice.
ENTRIES = {
    "slurm-partition-config: slurm/": "slurm-partition-config: {folder}/",
    "#   groups: [": "groups: [fingerprints=prints, stability=judge, dft_inputs=judge, "
    "metrics=judge, ",
    "#   group-components: [relaxations=4]": "group-components: [relaxations=2, prints=2]",
}
SITE_ENTRIES = {
    "all_jobs: {} ": f"all_jobs: {{account: {ACCOUNT}, qos: {QOS}, constraint: a100}} ",
    "# scratch: /local/$USER/$SLURM_JOB_ID": "scratch: {folder}/local",
}

LOCAL = {"download", "fetch_model", "report"}
ON_GPU = {rule for rule, asked in CONFIG["resources"].items() if asked["gpus"]}
# One core each, since a group asks for the cores of all its jobs and a node has two.
GROUPED = ("fingerprints", "metrics")
SITE = {
    "resources": {
        **{rule: {"gpus": 1} for rule in ON_GPU},
        **{rule: {"cpus": 1} for rule in GROUPED},
    }
}
SITES_COLUMNS = ("Account", "QOS", "Feature", "Requeue")
COLUMNS = ("JobID", "Comment", "State", "NodeList", *SITES_COLUMNS, "RestartCnt")
WIDTH = 80
EDITED = {**SITE, "stability": {"metastable_below": 0.5}}
TWO_NODES = {**SITE, "nodes": {"finetune_llm": 2, "train_rfm": 2}}
TRAINED = {
    "finetune_llm": "run/llm/adapter/adapter_model.safetensors",
    "train_rfm": "run/rfm/llm/weights.safetensors",
}


@dataclass(frozen=True)
class Run:
    """The whole run on SLURM, and the trainings on two nodes.

    Attributes:
        folder: its working directory.
        overlay: the configuration file that was edited meanwhile.
        jobs: all jobs of the cluster, with what SLURM says of them (`COLUMNS`).
        accounted: number and state of all jobs, as the accounting database has them; a job that
            was queued again is there twice.
        said: what snakemake printed.
        temporary_folders: what the processes of the stage in a job took for TMPDIR.
        parts: parts of the reference hull that the cancelled job had saved.
        two_nodes: working directory of the trainings.
    """

    folder: Path
    overlay: Path
    jobs: list[dict[str, str]]
    accounted: list[list[str]]
    said: str
    temporary_folders: set[str | None]
    parts: int
    two_nodes: Path


@pytest.fixture(scope="module")
def slurm_run(finished_run, tmp_path_factory) -> Run:
    scratch = tmp_path_factory.mktemp("slurm with space")
    folder, overlay = scratch / "work", scratch / "overlay.yaml"
    folder.mkdir()
    shutil.copytree(finished_run / "tiny-llm", folder / "tiny-llm")
    overlay.write_text(yaml.safe_dump(SITE))
    profile = site_profile(scratch)
    with slurm_cluster(tmp_path_factory.mktemp("cluster")) as conf:
        cluster = Cluster({**environment(), "SLURM_CONF": str(conf)}, profile)
        # It says which command it asks for job states only when it is verbose.
        whole = cluster.start(folder, overlay, "--verbose")
        two_nodes = on_two_nodes(finished_run, scratch / "two", cluster)
        hull = folder / "run" / "hull"
        job = running_between_parts(hull, cluster, whole)
        temporary = temporary_folders(job)
        parts = cancel(job, hull, cluster, whole)
        overlay.write_text(yaml.safe_dump(EDITED))
        cluster.preempt("rule_merge_adapter", whole)
        for process, where in ((two_nodes, scratch / "two"), (whole, folder)):
            code = process.wait()
            said = (where / "said").read_text()
            assert code == 0, said[-8000:]
        jobs, accounted = cluster.jobs(), cluster.accounted()
        return Run(folder, overlay, jobs, accounted, said, temporary, parts, scratch / "two")


def site_profile(scratch: Path) -> Path:
    """Copy the profile and fill in its entries for a site."""
    for name, entries in (("config.yaml", ENTRIES), ("site.yaml", SITE_ENTRIES)):
        text = (PROFILE / name).read_text()
        for given, filled in entries.items():
            assert given in text, given
            text = text.replace(given, filled.replace("{folder}", str(scratch)))
        (scratch / name).write_text(text)
    return scratch


@dataclass(frozen=True)
class Cluster:
    """How tests speak to the SLURM that runs.

    Attributes:
        environment: of its commands.
        profile: folder of the profile.
    """

    environment: dict[str, str]
    profile: Path

    def start(self, folder: Path, overlay: Path, *words: str) -> subprocess.Popen[bytes]:
        """Start snakemake in a folder; what it prints goes into `said` there."""
        quick = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5"]
        command = [*SNAKEMAKE, "--profile", str(self.profile), *quick, *words, *TINY, str(overlay)]
        streams = subprocess.STDOUT
        with (folder / "said").open("wb") as said:
            return subprocess.Popen(
                command, cwd=folder, env=self.environment, stdout=said, stderr=streams
            )

    def run(self, *command: str) -> str:
        """Run a SLURM command and return what it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    def jobs(self) -> list[dict[str, str]]:
        """All jobs, also those that have ended."""
        shown = "--Format=" + ",".join(f"{column}:{WIDTH}" for column in COLUMNS)
        lines = self.run("squeue", "--noheader", "--states=all", shown).splitlines()
        starts = {column: WIDTH * i for i, column in enumerate(COLUMNS)}
        return [{c: line[i : i + WIDTH].strip() for c, i in starts.items()} for line in lines]

    def accounted(self) -> list[list[str]]:
        """Number and state of all jobs, as sacct says, from the oldest to the latest."""
        shown = ["--duplicates", "--parsable2", "--noheader", "--format=JobIDRaw,State"]
        lines = self.run("sacct", "--allocations", "--starttime=now-1days", *shown).splitlines()
        return [line.split("|") for line in lines]

    def wait_for(self, comment: str, state: str, process: subprocess.Popen[bytes]) -> dict:
        """Wait until a job is in a state, and return it."""
        while True:
            for job in self.jobs():
                if job["Comment"].startswith(comment) and job["State"] == state:
                    return job
            assert process.poll() is None, f"snakemake ended before {comment} was {state}"
            time.sleep(0.1)

    def preempt(self, comment: str, process: subprocess.Popen[bytes]) -> None:
        """Have a more important job take the place of a running one for a moment."""
        job = self.wait_for(comment, "RUNNING", process)
        place = [f"--nodelist={job['NodeList']}", f"--cpus-per-task={os.cpu_count()}"]
        words = ["--partition=urgent", "--comment=urgent", "--wrap=true", "--output=/dev/null"]
        self.run("sbatch", *place, *words)
        # It needs the whole node, so that nothing of the preempted job is left when it has run.
        self.wait_for("urgent", "COMPLETED", process)
        self.wait_for(comment, "PENDING", process)
        # SLURM would wait for two minutes.
        self.run("scontrol", "update", f"JobId={job['JobID']}", "StartTime=now")


def on_two_nodes(finished_run: Path, folder: Path, cluster: Cluster) -> subprocess.Popen[bytes]:
    """Start both trainings again, each on two nodes, in a copy of the local run."""
    shutil.copytree(finished_run, folder)
    overlay = folder / "two.yaml"
    overlay.write_text(yaml.safe_dump(TWO_NODES))
    targets = [str(Path(path).parent) for path in TRAINED.values()]
    for target in targets:
        shutil.rmtree(folder / target)
    states = ["--slurm-status-command", "squeue"]
    return cluster.start(folder, overlay, *targets, *states, "--allowed-rules", *TRAINED)


def hull_parts(hull: Path) -> list[Path]:
    """What the reference hull's job has saved."""
    return list((hull / ".potential.parquet.partial").glob("part-*.parquet"))


def running_between_parts(hull: Path, cluster: Cluster, process: subprocess.Popen[bytes]) -> dict:
    """Wait until the job of the reference hull has saved a part, and return it."""
    while not hull_parts(hull):
        assert process.poll() is None, "snakemake ended before the reference hull had a part"
        time.sleep(0.02)
    return cluster.wait_for("rule_reference_hull", "RUNNING", process)


def temporary_folders(job: dict[str, str]) -> set[str | None]:
    """TMPDIR of the processes of the stage that run in a job."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            lines = (folder / "environ").read_text(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        given = dict(line.split("=", 1) for line in lines if "=" in line)
        if given.get("SLURM_JOB_ID") == job["JobID"] and words[1:3] == [b"-m", b"flowllm"]:
            found.add(given.get("TMPDIR"))
    return found


def cancel(
    job: dict[str, str], hull: Path, cluster: Cluster, process: subprocess.Popen[bytes]
) -> int:
    """Cancel the job of the reference hull, wait for its end, and count what it had saved."""
    cluster.run("scancel", job["JobID"])
    cluster.wait_for("rule_reference_hull", "CANCELLED", process)
    return len(hull_parts(hull))


def records(folder: Path) -> dict[str, list[dict]]:
    """The records of a run, by stage."""
    found: dict[str, list[dict]] = {}
    for path in folder.rglob("_*.provenance.json"):
        record = json.loads(path.read_text())
        found.setdefault(record["stage"], []).append(record)
    return found


def test_jobs_land_in_their_partition_with_their_gpu(slurm_run):
    made = records(slurm_run.folder / "run")
    assert ON_GPU - made.keys() == {"sample_csp", "second_energies"}  # not part of the target
    for stage, found in made.items():
        jobs = [record["slurm"] for record in found]
        if stage in LOCAL:
            assert jobs == [None], stage
            continue
        partition, gpus = ("gpu", "0") if stage in ON_GPU else ("cpu", None)
        assert {job["SLURM_JOB_PARTITION"] for job in jobs} == {partition}, stage
        assert {job["CUDA_VISIBLE_DEVICES"] for job in jobs} == {gpus}, stage
    shards = [record["slurm"]["SLURM_JOB_ID"] for record in made["prerelax"]]
    assert len(shards) == 4
    assert len(set(shards)) == 2  # two shards a job, by the group


def test_artefacts_equal_the_local_runs(slurm_run, finished_run):
    compared = 0
    for pattern in ("[!_.]*.parquet", "*.safetensors", "metrics/*/[!_]*.json", "POSCAR"):
        paths = list((finished_run / "run").rglob(pattern))
        assert paths, pattern
        for path in paths:
            other = slurm_run.folder / path.relative_to(finished_run)
            assert other.read_bytes() == path.read_bytes(), path
            compared += 1
    assert compared >= 38


def test_the_sites_entries_reach_every_job(slurm_run):
    jobs = [job for job in slurm_run.jobs if job["Comment"].startswith("rule_")]
    assert len(jobs) > 15
    for job in jobs:
        assert [job[column] for column in SITES_COLUMNS] == [ACCOUNT, QOS, "a100", "1"]
    assert slurm_run.temporary_folders == {str(slurm_run.folder.parent / "local")}


def test_a_preempted_job_is_queued_again_by_slurm(slurm_run):
    """A job that fails after that is submitted once more by Snakemake, under another number."""
    jobs = [job for job in slurm_run.jobs if job["Comment"] == "rule_merge_adapter"]
    preempted = [
        [state for number, state in slurm_run.accounted if number == job["JobID"]]
        for job in jobs
        if int(job["RestartCnt"])
    ]
    assert [states[0] for states in preempted] == ["PREEMPTED"], (jobs, slurm_run.accounted)
    assert max(jobs, key=lambda job: int(job["JobID"]))["State"] == "COMPLETED", jobs


def test_a_cancelled_job_is_tried_again_and_goes_on(slurm_run):
    logs = slurm_run.folder / ".snakemake" / "slurm_logs" / "rule_reference_hull"
    assert any("stopped by SIGTERM" in path.read_text() for path in logs.rglob("*.log"))
    second = (slurm_run.folder / "run" / "logs" / "reference_hull.log").read_text()
    assert "reference_hull: resuming from" in second
    assert slurm_run.parts >= 1
    assert "Trying to restart job" in slurm_run.said


def test_sacct_is_asked_and_says_who_cancelled_a_job(slurm_run):
    """The plugin alone would wait for ever for a `CANCELLED by 0`."""
    assert "command=sacct, " in slurm_run.said
    [number] = [job["JobID"] for job in slurm_run.jobs if job["State"] == "CANCELLED"]
    assert [number, "CANCELLED by 0"] in slurm_run.accounted


def test_an_edited_configuration_counts_from_the_next_start(slurm_run):
    """Stability ran after the edit and equals the local run; the next plan makes it again."""
    command = ["-n", "--until", "stability", *TINY, str(slurm_run.overlay)]
    assert planned(snakemake(*command, cwd=slurm_run.folder)) == {"stability": 2}


def test_two_nodes_train_what_one_does(slurm_run, finished_run):
    made = records(slurm_run.two_nodes / "run")
    for stage, file in TRAINED.items():
        [record] = made[stage]
        assert record["slurm"]["SLURM_JOB_PARTITION"] == "gpu"
        assert record["hardware"]["nodes"] == 2
        one, two = load_file(finished_run / file), load_file(slurm_run.two_nodes / file)
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
