"""Threads: the least of Snakemake's number, the affinity and the quotas; how OpenMP waits."""

import os
import subprocess
import sys

import pytest

from flowllm.runtime import threads
from flowllm.runtime.threads import limit_threads, quotas, usable_cores

V1 = "31 23 0:29 {root} {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "31 23 0:29 {root} {point} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHER = "30 23 0:30 / {point} rw - cgroup cgroup rw,cpuset\n20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"


def process_in(folder, groups: str, mounts: str):
    process = folder / "proc"
    process.mkdir()
    (process / "cgroup").write_text(groups)
    (process / "mountinfo").write_text(mounts)
    return process


def limit_v2(group, text: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "cpu.max").write_text(text + "\n")


def limit_v1(group, quota: int, period: int = 100000) -> None:
    group.mkdir(parents=True, exist_ok=True)
    (group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (group / "cpu.cfs_period_us").write_text(f"{period}\n")


def test_the_quotas_of_all_groups_of_version_2_are_read(tmp_path):
    point = tmp_path / "mount"
    limit_v2(point / "user.slice", "300000 100000")
    limit_v2(point / "user.slice" / "job", "max 100000")
    process = process_in(
        tmp_path,
        "0::/user.slice/job\n",
        V2.format(root="/", point=point) + OTHER.format(point=point),
    )
    assert list(quotas(process)) == [3.0]


def test_the_quotas_of_all_groups_of_version_1_are_read(tmp_path):
    point = tmp_path / "mount"
    limit_v1(point, -1)
    limit_v1(point / "outer", 400000)
    limit_v1(point / "outer" / "job", 75000, 50000)
    groups = "9:cpuset:/elsewhere\n4:cpu,cpuacct:/outer/job\n0::/\n"
    process = process_in(
        tmp_path, groups, OTHER.format(point=point) + V1.format(root="/", point=point)
    )
    assert list(quotas(process)) == [1.5, 4.0]


@pytest.mark.parametrize("root", ["/docker/1f2e", "/"])
def test_a_container_reads_its_own_group_at_the_mount(tmp_path, root):
    point = tmp_path / "mount"
    limit_v1(point, 200000)
    process = process_in(tmp_path, "4:cpu:/docker/1f2e\n", V1.format(root=root, point=point))
    assert list(quotas(process)) == [2.0]


def test_a_group_outside_of_the_mount_counts_as_the_mounted_one(tmp_path):
    point = tmp_path / "mount"
    limit_v2(point, "50000 100000")
    process = process_in(tmp_path, "0::/../..\n", V2.format(root="/kubepods/pod", point=point))
    assert list(quotas(process)) == [0.5]


def test_systems_without_control_groups_have_no_quota(tmp_path):
    assert list(quotas(tmp_path)) == []


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("250000", 2), ("max", 6)])
def test_the_quota_is_rounded_down_and_at_least_one_core(tmp_path, monkeypatch, quota, cores):
    limit_v2(tmp_path / "mount", f"{quota} 100000")
    mounts = V2.format(root="/", point=tmp_path / "mount")
    monkeypatch.setattr(threads, "_PROCESS", process_in(tmp_path, "0::/\n", mounts))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("asked", "cores", "expected"),
    [("4", 2, "2"), ("1", 8, "1"), (None, 3, "3"), ("4,2", 8, "4"), ("many", 2, "2")],
)
def test_the_least_number_of_threads_is_taken(monkeypatch, asked, cores, expected):
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    environment = {} if asked is None else {"OMP_NUM_THREADS": asked}
    limit_threads(environment)
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == expected


def test_a_smaller_number_for_one_library_stays(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    environment = {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "1"}
    limit_threads(environment)
    assert environment["OMP_NUM_THREADS"] == "4"
    assert environment["MKL_NUM_THREADS"] == "1"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_a_wait_policy_of_the_user_stays(name):
    environment = {name: "7"}
    limit_threads(environment)
    assert {one for one in environment if not one.endswith("THREADS")} == {name}


SHOWN = """
import atexit, os, sys
import flowllm.cli
assert not {"torch", "numpy"} & set(sys.modules)
flowllm.cli.main(["--version"])
import torch
print(torch.get_num_threads(), torch.__config__.parallel_info().count("OMP_NUM_THREADS : 1"))
"""


def test_a_command_sets_the_threads_before_torch_is_imported():
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_THREADS")}
    core = min(os.sched_getaffinity(0))
    words = [sys.executable, "-c", SHOWN]
    done = subprocess.run(
        words,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    assert done.stdout.split()[-2:] == ["1", "1"]
