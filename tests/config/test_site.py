"""A site's particulars: layers of options, refused values, the lines before a job's command."""

import subprocess
from pathlib import Path

import pytest
import yaml

from flowllm.config.load import load_config
from flowllm.config.site import JobOptions, Site, job_prefix, read_site, slurm_resources
from flowllm.errors import FlowllmError
from tiny_run import ROOT

CONFIG = load_config([ROOT / "config.yaml"])


def asked(site: Site, stage: str, nodes: int = 1):
    return slurm_resources(site, stage, CONFIG.resources[stage], nodes)


def test_the_sites_file_of_the_profile_is_read_and_changes_no_request():
    site = read_site(ROOT / "slurm" / "site.yaml")
    assert site.partitions.keys() == {"cpu", "gpu"}
    given = {key: value for key, value in asked(site, "sample_pairs").items() if value is not None}
    assert given == {"gpu": 4, "tasks_per_gpu": 0, "slurm_extra": "--signal=TERM@120"}


def test_a_rule_takes_precedence_over_gpu_jobs_and_these_over_all_jobs():
    site = Site(
        all_jobs=JobOptions(account="a", qos="all", constraint="all", memory=False),
        gpu_jobs=JobOptions(qos="gpu", constraint="gpu"),
        rules={"train_rfm": JobOptions(constraint="rule", memory=True)},
    )
    assert site.options("prerelax", gpus=False) == site.all_jobs
    of_rule = JobOptions(account="a", qos="gpu", constraint="rule", memory=True)
    assert site.options("train_rfm", gpus=True) == of_rule


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gpu_typ": "a100"}, "gpu_typ: Extra inputs are not permitted"),
        ({"gpu_type": "a100-sxm"}, "gpu_type: String should match pattern"),
        ({"rules": {"train": {"qos": "long"}}}, "rules: no rule train; there are download"),
        ({"gpu_gres": "accelerator"}, "name their partition in gpu_jobs.partition"),
        ({"all_jobs": {"mem": False}}, "all_jobs.mem: Extra inputs are not permitted"),
        ([1], "expected keys such as partitions"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, values, said):
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(FlowllmError) as error:
        read_site(path)
    assert str(path) in str(error.value)
    assert said in str(error.value)


def test_gpus_of_several_nodes_are_requested_per_node_with_their_type():
    site = Site(gpu_type="h100")
    assert asked(site, "train_rfm", nodes=2)["gres"] == "gpu:h100:1"
    assert "gpu" not in asked(site, "train_rfm", nodes=2)
    assert asked(site, "train_rfm")["gpu_model"] == "h100"


def run_prefix(site: Site, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", job_prefix(site, folder / "the source") + command]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(("prologue", "others"), [("", "/other"), ("unset PYTHONPATH", "")])
def test_the_package_is_found_whatever_modules_and_conda_do_to_the_search_path(
    tmp_path, monkeypatch, prologue, others
):
    monkeypatch.setenv("PYTHONPATH", "/other")
    done = run_prefix(Site(prologue=prologue), "printenv PYTHONPATH", tmp_path)
    found = done.stdout.strip().split(":")
    assert found == [f"{tmp_path}/the source", *filter(None, [others])]


def test_prologue_and_scratch_precede_the_command_which_replaces_the_shell(tmp_path):
    site = Site(
        prologue='PLACE="${UNSET_BY_ALL:-one}/$$"\nexport PLACE\n',
        scratch=f"{tmp_path}/with space/$PLACE",
        launcher="env LAUNCHED=1",
    )
    done = run_prefix(site, "bash -c 'echo $$; echo $PLACE $LAUNCHED; echo $TMPDIR'", tmp_path)
    number, place, temporary = done.stdout.splitlines()
    assert place == f"one/{number} 1"
    assert temporary == f"{tmp_path}/with space/one/{number}"
    assert Path(temporary).is_dir()


def test_a_failing_line_of_the_prologue_fails_the_job(tmp_path):
    done = run_prefix(Site(prologue="false"), "touch made", tmp_path)
    assert done.returncode == 1
    assert not (tmp_path / "made").exists()
