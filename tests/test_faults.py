"""What goes wrong on a cluster: a full disk, a second run, what killed processes leave behind.

docs/faults.md lists all faults with their tests, here and elsewhere.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from flowllm.errors import FlowllmError
from flowllm.processes import HOST, is_alive
from flowllm.resume import write_in_parts
from flowllm.runlog import StageRun, recorded
from flowllm.tables import CRYSTALS, atomic_folder, atomic_path, read_table, write_text
from tiny_run import ROOT, SNAKEMAKE, TINY, environment, snakemake

PARTS, ROWS_PER_PART = 10, 2


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def write(output: Path, *given) -> None:
    run = StageRun("prepare", 1, {}, 42, {})
    with recorded(run, output):
        write_in_parts(output, run, *given)


def large_rows(items: range) -> list[dict]:
    """Rows of 100 kB each that do not compress."""
    return [{"id": random.Random(i).randbytes(50_000).hex(), "num_atoms": i} for i in items]


def test_a_full_disk_is_named_and_what_was_finished_is_kept(small_disk, tmp_path):
    output, made = small_disk / "out.parquet", []

    def make_rows(items: range) -> list[dict]:
        made.append(items.start)
        return large_rows(items)

    given = CRYSTALS, PARTS * ROWS_PER_PART, ROWS_PER_PART, make_rows
    with pytest.raises(FlowllmError, match=r"part-\d+\.parquet: no space left .* run the same"):
        write(output, *given)
    assert not output.exists()
    assert not list(small_disk.rglob("*.tmp"))
    finished = len(list(small_disk.rglob("part-*.parquet")))
    assert 0 < finished < PARTS
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    made.clear()
    write(output, *given)
    assert made == [ROWS_PER_PART * part for part in range(finished, PARTS)]
    write(tmp_path / "undisturbed.parquet", *given)
    assert output.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()


@pytest.mark.parametrize("write", [torch.save, save_file], ids=["torch", "safetensors"])
def test_a_model_that_does_not_fit_leaves_nothing(small_disk, write):
    weights = {"weights": torch.rand(1_000_000)}
    with (
        pytest.raises(FlowllmError, match=r"model: no space left on the device \(\d+ MiB free\)"),
        atomic_folder(small_disk / "model") as folder,
    ):
        write(weights, folder / "weights")
    assert not list(small_disk.iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "t.txt"):
        raise ZeroDivisionError


def test_what_killed_writers_left_is_removed_by_the_next(tmp_path):
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    left = tmp_path / f".t.txt.{HOST}.{ended.pid}.tmp"
    left.write_text("half a fi")
    folder = tmp_path / f".model.{HOST}.{ended.pid}.tmp"
    folder.mkdir()
    (folder / "weights").write_text("half")
    alive = tmp_path / f".t.txt.{HOST}.{os.getppid()}.tmp"
    other = tmp_path / f".t.txt.old.{HOST}.{ended.pid}.tmp"  # of the file t.txt.old
    elsewhere = tmp_path / f".t.txt.another.node.{ended.pid}.tmp"
    lost = tmp_path / f".t.txt.lost.node.{ended.pid}.tmp"
    for path in (alive, other, elsewhere, lost):
        path.touch()
    two_days_ago = time.time() - 2 * 86400
    os.utime(lost, (two_days_ago, two_days_ago))
    write_text(tmp_path / "t.txt", "whole")
    with atomic_folder(tmp_path / "model") as fresh:
        (fresh / "weights").write_text("whole")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"t.txt", "model", alive.name, other.name, elsewhere.name}


def test_a_second_run_in_a_folder_is_refused_and_a_killed_ones_lock_is_lifted(tmp_path):
    command = ["--cores", "1", "--until", "download", *TINY]
    first = subprocess.Popen(
        [*SNAKEMAKE, *command],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    locks = tmp_path / ".snakemake" / "locks"
    while not list(locks.glob("*.lock")):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = snakemake(*command, cwd=tmp_path, check=False)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert "Directory cannot be locked" in second
    assert "--unlock" in second
    snakemake("--unlock", *TINY, cwd=tmp_path)
    assert not list(locks.glob("*.lock"))


SLOW_STAGE = """
import sys, time
from pathlib import Path
from flowllm import writer_lock
from flowllm.resume import write_in_parts
from flowllm.runlog import StageRun, recorded
from flowllm.tables import CRYSTALS

def make_rows(items):
    Path("started").touch()
    while not Path("go on").exists():
        time.sleep(0.05)
    return [{"id": str(i), "num_atoms": i} for i in items]

writer_lock.PATIENCE_SECONDS = 1
output, run = Path("out.parquet"), StageRun("prepare", 1, {}, 42, {})
with recorded(run, output):
    write_in_parts(output, run, CRYSTALS, 4, 2, make_rows)
"""
SLOW_WORKFLOW = """
rule slow:
    output: "out.parquet"
    shell: "exec python slow.py"
"""


def test_a_job_that_outlives_its_snakemake_is_the_only_writer(tmp_path):
    (tmp_path / "Snakefile").write_text(SLOW_WORKFLOW)
    (tmp_path / "slow.py").write_text(SLOW_STAGE)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--rerun-incomplete"]

    def again(*options: str) -> tuple[int, str]:
        given = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
        done = subprocess.run([*command, *options], **given)
        return done.returncode, done.stdout + done.stderr

    first = subprocess.Popen(command, cwd=tmp_path, env=environment())
    wait_for(tmp_path / "started")
    first.kill()
    first.wait()
    lock = tmp_path / ".out.parquet.lock"
    process = json.loads(lock.read_text())["process"]
    again("--unlock")
    code, said = again()
    assert code
    assert f"out.parquet is being written by process {process} on {HOST}" in said
    assert is_alive(process)
    (tmp_path / "go on").touch()
    while lock.exists():
        time.sleep(0.05)
    assert read_table(tmp_path / "out.parquet", CRYSTALS).num_rows == 4
    code, said = again()
    assert code == 0, said


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


SMALL_WORKFLOW = """
rule copy:
    input: "original"
    output: "copy"
    shell: "cp {input} {output}"
rule write:
    output: "original"
    shell: "head --bytes 3000000 /dev/zero > {output}"
"""


def test_a_wrong_clock_reruns_nothing_with_the_profile(tmp_path):
    profile = ROOT / "workflow" / "profiles" / "slurm" / "config.yaml"
    size = str(yaml.safe_load(profile.read_text())["max-checksum-file-size"])
    (tmp_path / "Snakefile").write_text(SMALL_WORKFLOW)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--max-checksum-file-size", size]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    copied = (tmp_path / "copy").stat().st_mtime
    os.utime(tmp_path / "original", (copied + 3600, copied + 3600))
    done = subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    assert b"Nothing to be done" in done.stderr
    assert (tmp_path / "copy").stat().st_mtime == copied


def test_every_fault_of_the_documentation_names_a_test_that_exists():
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert len(rows) >= 12
    for row in rows:
        tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert tests, row
        for file, name in tests:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"
