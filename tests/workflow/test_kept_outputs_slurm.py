"""A finished output stays on a real SLURM: refused, cancelled, and finished without snakemake.

The tests share a cluster (tests/helpers/slurm_cluster.py) and are skipped, with the reason, where
it cannot start. Jobs only make files (tests/helpers/stub_run.py).
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from slurm_cluster import make_refusing_sbatch, missing_programs, slurm_cluster
from stub_run import make_stub, stub_snakemake
from tiny_llm import write_tiny_llm
from tiny_run import ROOT, SNAKEMAKE, TINY, dry_runs, environment, planned

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]

CHANGED = {"merge_adapter": {"into": "original"}, "reference_hull": {"chunk_size": 2}}
OUTPUTS = ("run/llm/model/weights", "run/hull/potential.parquet")


class Site:
    """A finished run that is continued on a cluster with another configuration.

    Attributes:
        folder: of the run.
        variables: environment of the cluster's commands.
    """

    def __init__(self, folder: Path, conf: Path) -> None:
        self.folder = folder
        search = f"{make_stub(folder.parent / 'bin')}{os.pathsep}{environment()['PATH']}"
        self.variables = {**environment(), "SLURM_CONF": str(conf), "PATH": search}
        (folder / "changed.yaml").write_text(yaml.safe_dump(CHANGED))

    def start(
        self,
        end: str,
        *words: str,
        overlays: tuple[str, ...] = ("changed.yaml",),
        search: Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start snakemake; the jobs of the changed stages end as `stub_run` describes."""
        profile = ["--profile", str(ROOT / "workflow" / "profiles" / "slurm")]
        partitions = ["--slurm-partition-config", str(ROOT / "slurm" / "site.yaml")]
        path = {"PATH": f"{search}{os.pathsep}{self.variables['PATH']}"} if search else {}
        quick = ["--retries", "0", "--latency-wait", "5"]
        quick += ["--slurm-init-seconds-before-status-checks", "1"]
        return subprocess.Popen(
            [*SNAKEMAKE, *profile, *partitions, *quick, *words, *TINY, *overlays],
            cwd=self.folder,
            env={**self.variables, **path, "STUB_ENDS": json.dumps(dict.fromkeys(CHANGED, end))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_jobs(self, process: subprocess.Popen[str], number: int = len(CHANGED)) -> None:
        """Wait until the jobs of the changed stages run."""
        waiting = self.folder / "waiting"
        while not waiting.exists() or len(list(waiting.iterdir())) < number:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        shutil.rmtree(waiting)

    def slurm(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.variables, capture_output=True, text=True, check=True
        )
        return done.stdout

    def plans(self) -> list[dict[str, int]]:
        """Jobs that the first and the changed configuration plan."""
        words = ["--snakefile", str(ROOT / "Snakefile"), *TINY]
        asked = [(str(self.folder), [*words, *more]) for more in ([], ["changed.yaml"])]
        return [planned(said) for said in dry_runs(asked)]

    def contents(self) -> list[bytes]:
        return [(self.folder / path).read_bytes() for path in OUTPUTS]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("kept on slurm") / "work"
    folder.mkdir()
    write_tiny_llm(folder / "tiny-llm")  # `flowllm check` looks for it
    stub_snakemake(make_stub(folder.parent / "local"), "--cores", "2", cwd=folder)
    with slurm_cluster(tmp_path_factory.mktemp("cluster")) as conf:
        yield Site(folder, conf)


def test_refused_and_cancelled_jobs_leave_the_earlier_outputs(site):
    before = site.contents()
    sbatch = make_refusing_sbatch(site.folder.parent / "sbatch", "--constraint=nosuch")
    refused = site.start("at its start", search=sbatch)
    said, _ = refused.communicate()
    assert refused.returncode == 1
    assert said.count("Invalid feature specification") >= len(CHANGED), said
    assert site.contents() == before
    assert site.plans()[0] == {}
    cancelled = site.start("waiting")
    site.wait_for_jobs(cancelled)
    site.slurm("scancel", "--user=root")
    said, _ = cancelled.communicate()
    assert cancelled.returncode == 1, said
    assert site.contents() == before
    first_plan, changed_plan = site.plans()
    assert first_plan == {}
    assert CHANGED.keys() <= changed_plan.keys()


def test_jobs_that_outlive_snakemake_are_not_made_again(site):
    before = site.contents()
    process = site.start("waiting")
    site.wait_for_jobs(process)
    process.kill()
    process.wait()
    assert site.plans()[0] == {}
    (site.folder / "go on").touch()
    deadline = time.monotonic() + 60
    while site.slurm("squeue", "--noheader", "--format=%i").strip():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert all(new != old for new, old in zip(site.contents(), before, strict=True))
    first_plan, changed_plan = site.plans()
    assert not CHANGED.keys() & changed_plan.keys()
    assert CHANGED.keys() <= first_plan.keys()


def test_sigterm_at_the_end_of_a_job_does_not_discard_its_outputs(site):
    """Snakemake inside of the job receives it too, and ends with an error."""
    site.start("", "--unlock").communicate()  # after the test before
    first_is_done = not site.plans()[0]
    overlays = ("changed.yaml",) if first_is_done else ()
    until = ["--until", *CHANGED]
    process = site.start("told to stop at its end", *until, overlays=overlays)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert not CHANGED.keys() & site.plans()[first_is_done].keys()
    assert CHANGED.keys() <= site.plans()[not first_is_done].keys()


def test_a_living_job_of_another_configuration_is_neither_used_nor_disturbed(site):
    """The configuration that it is of waits for it later."""
    (site.folder / "go on").unlink(missing_ok=True)
    for name, size in (("third", 3), ("fourth", 4)):
        overlay = {"reference_hull": {"chunk_size": size}}
        (site.folder / f"{name}.yaml").write_text(yaml.safe_dump(overlay))
    only = ["--until", "reference_hull"]
    process = site.start("waiting", *only, overlays=("third.yaml",))
    site.wait_for_jobs(process, 1)
    process.kill()
    process.wait()
    site.start("", "--unlock").communicate()
    before = site.contents()
    [number] = site.slurm("squeue", "--noheader", "--format=%i").split()
    other = site.start("", *only, overlays=("fourth.yaml",))
    said, _ = other.communicate()
    assert other.returncode == 1, said
    assert f"SLURM job {number} of an earlier start makes its outputs with other settings" in said
    assert site.slurm("squeue", "--noheader", "--format=%i").split() == [number]
    assert site.contents() == before
    same = site.start("", *only, overlays=("third.yaml",))
    assert any(f"is SLURM job {number} of an earlier start" in line for line in same.stdout)
    (site.folder / "go on").touch()
    assert same.wait() == 0
    assert site.contents() != before
    words = ["--snakefile", str(ROOT / "Snakefile"), *TINY]
    asked = [(str(site.folder), [*words, f"{name}.yaml"]) for name in ("third", "fourth")]
    assert ["reference_hull" in planned(said) for said in dry_runs(asked)] == [False, True]
