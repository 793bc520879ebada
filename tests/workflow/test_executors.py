"""Other executors than SLURM's: the profile for LSF, with stand-ins of bsub and bjobs.

The stand-ins run each job's script; plugin, profile, rules and the profile's scripts are real.
"""

import os
import re
import stat
from pathlib import Path

import pytest
import yaml

from stub_run import make_stub, stub_snakemake
from tiny_run import ROOT

pytest.importorskip("snakemake_executor_plugin_cluster_generic", reason="the plugin is absent")

PROFILE = ROOT / "workflow" / "profiles" / "lsf"

BSUB = """#!/usr/bin/env bash
# Write the options, run the script at once, answer as LSF does.
echo "$@" >> bsub.log
number=$(wc -l < bsub.log)
env -u SLURM_JOB_ID bash "${@: -1}" > "bsub-$number.out" 2>&1 && state=DONE || state=EXIT
echo $state > "bsub-$number.state"
echo "Job <$number> is submitted to default queue <normal>."
"""

BJOBS = """#!/usr/bin/env bash
cat "bsub-${@: -1}.state"
"""


@pytest.fixture(scope="module")
def lsf_run(tmp_path_factory) -> Path:
    """A working directory in which the jobs up to the reference hull have run."""
    folder = tmp_path_factory.mktemp("lsf")
    programs = make_stub(folder / "bin")
    for name, text in (("bsub", BSUB), ("bjobs", BJOBS)):
        path = programs / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    # The profile names its scripts from the clone's root; here it is used from elsewhere.
    profile = yaml.safe_load((PROFILE / "config.yaml").read_text()) | {"latency-wait": 5}
    text = yaml.safe_dump(profile).replace("workflow/profiles/lsf/", f"{PROFILE}/")
    (folder / "profile").mkdir()
    (folder / "profile" / "config.yaml").write_text(text)
    words = ["--profile", str(folder / "profile"), "run/hull/potential.parquet"]
    stub_snakemake(programs, *words, "--seconds-between-status-checks", "1", cwd=folder)
    return folder


def test_jobs_run_by_way_of_the_batch_system(lsf_run):
    run = lsf_run / "run"
    assert (run / "hull" / "potential.parquet").exists()
    submitted = (lsf_run / "bsub.log").read_text().splitlines()
    assert [re.search(r"-J (\w+)", line)[1] for line in submitted] == ["prepare", "reference_hull"]


def test_resources_are_those_of_the_configuration(lsf_run):
    resources = yaml.safe_load((ROOT / "config.yaml").read_text())["resources"]
    resources |= yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text()).get("resources", {})
    for line in (lsf_run / "bsub.log").read_text().splitlines():
        asked = resources[re.search(r"-J (\w+)", line)[1]]
        assert f"-n {asked['cpus']} -W {asked['runtime']} " in line
        assert f"rusage[mem={asked['mem_mb']}MB]" in line
        assert (f"-gpu num={asked['gpus']}" in line) == (asked["gpus"] > 0)


def test_nothing_of_slurm_is_in_the_rules():
    """The resources of SLURM's plugin come from its site file alone."""
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        if path.name != "common.smk":
            assert not re.search(r"slurm|srun|sbatch", path.read_text(), re.IGNORECASE), path
    assert os.access(PROFILE / "submit", os.X_OK)
    assert os.access(PROFILE / "status", os.X_OK)
