"""What goes wrong on a cluster: a full disk, a second run, what killed processes leave behind.

docs/faults.md lists all faults with their tests, here and elsewhere.
"""

import errno
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

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_folder, atomic_path, check_file, check_folder, write_text
from flowllm.io.processes import HOST, PLACE, is_alive
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import read_table, write_table
from flowllm.runtime.provenance import StageRun, recorded
from flowllm.runtime.resume import write_in_parts
from tiny_run import ROOT, SNAKEMAKE, TINY, environment, snakemake

PARTS, ROWS_PER_PART = 10, 2
HERE = f"{HOST}.{PLACE}"


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
    left = tmp_path / f".t.txt.{HERE}.{ended.pid}.tmp"
    left.write_text("half a fi")
    folder = tmp_path / f".model.{HERE}.{ended.pid}.tmp"
    folder.mkdir()
    (folder / "weights").write_text("half")
    alive = tmp_path / f".t.txt.{HERE}.{os.getppid()}.tmp"
    other = tmp_path / f".t.txt.old.{HERE}.{ended.pid}.tmp"  # of the file t.txt.old
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
    # The input files are locked first, and a second run is refused for the outputs.
    while not any(path.stat().st_size for path in locks.glob("*.output.lock")):
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
from flowllm.runtime import writer_lock
from flowllm.runtime.resume import write_in_parts
from flowllm.runtime.provenance import StageRun, recorded
from flowllm.io.schemas import CRYSTALS

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
    wait_for(lock, exists=False)
    assert read_table(tmp_path / "out.parquet", CRYSTALS).num_rows == 4
    code, said = again()
    assert code == 0, said


def wait_for(path: Path, *, exists: bool = True) -> None:
    deadline = time.monotonic() + 60
    while path.exists() != exists:
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
        tests = re.findall(r"`((?:\w+/)?test_\w+\.py)::(test_\w+)`", row)
        assert tests, row
        for file, name in tests:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"


@pytest.fixture
def without_rights(root_only: Path) -> Iterator[None]:
    """Run the test as a user without rights to root's files."""
    assert root_only.exists()  # it is made before
    if os.geteuid() != 0:
        pytest.skip("taking another user's place needs root")
    yield os.seteuid(65534)
    os.seteuid(0)


@pytest.fixture
def root_only(tmp_path) -> Path:
    """A table that root may read, in a folder that root may write to."""
    path = tmp_path / "t.parquet"
    write_table(path, [{"id": "a"}], CRYSTALS, {})
    path.chmod(0o600)
    for one in (tmp_path, *tmp_path.parents[:2]):
        one.chmod(0o755)
    return path


@pytest.mark.usefixtures("without_rights")
def test_a_file_that_may_not_be_read_is_not_called_damaged(root_only):
    with pytest.raises(FlowllmError, match=r"t\.parquet: permission denied") as caught:
        read_table(root_only, CRYSTALS)
    assert "delete it" not in str(caught.value)


@pytest.mark.usefixtures("without_rights")
def test_a_folder_that_may_not_be_written_to_is_named_before_the_work(root_only):
    for check in (check_file, check_folder):
        with pytest.raises(FlowllmError, match=f"{root_only.parent}.*: permission denied"):
            check(root_only.parent / "new" / "model")
    with pytest.raises(FlowllmError, match="permission denied"):
        write_text(root_only.parent / "x.txt", "x")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
def test_no_file_is_to_be_deleted_for_an_error_of_the_system(tmp_path, monkeypatch, number):
    path = tmp_path / "t.parquet"
    write_table(path, [{"id": "a"}], CRYSTALS, {})

    def fail(*_given, **_words):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(FlowllmError, match=r"t\.parquet: ") as caught:
        read_table(path, CRYSTALS)
    assert "delete it" not in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "missing", "in a file", "circle", "long"])
def test_a_path_that_is_no_file_is_named(tmp_path, kind):
    path = tmp_path / "t.parquet"
    if kind == "folder":
        path.mkdir()
    elif kind == "in a file":
        path.touch()
        path = path / "t.parquet"
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "long":
        path = tmp_path / ("x" * 300)
    with pytest.raises(FlowllmError, match=rf"{re.escape(str(path))}: ") as caught:
        read_table(path, CRYSTALS)
    assert "delete it" not in str(caught.value)
    done = subprocess.run(
        [sys.executable, "-m", "flowllm", "inspect", str(path)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert str(path) in done.stderr
    assert "defect" not in done.stderr


def prepare(out: Path, log: Path, manifest: Path) -> subprocess.CompletedProcess:
    """Run a stage that needs only a manifest."""
    values = yaml.safe_load((ROOT / "config.yaml").read_text())
    given = json.dumps({"seed": 1, "version": 1, "prepare": values["prepare"]})
    words = ["prepare", "--manifest", manifest, "--out", out, "--log", log, "--settings", given]
    return subprocess.run(
        [sys.executable, "-m", "flowllm", *map(str, words)],
        env=environment(),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("what", ["out", "log"])
@pytest.mark.parametrize("kind", ["read-only", "in a file", "long", "a folder"])
def test_a_place_that_cannot_be_written_to_is_said_in_one_sentence(
    small_disk, tmp_path, what, kind
):
    place = small_disk / "place"
    if kind == "in a file":
        place.touch()
    elif kind == "a folder":
        (place / "x").mkdir(parents=True)
    elif kind == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    name = "x" * 300 if kind == "long" else "x"
    paths = {"out": tmp_path / "crystals", "log": tmp_path / "log"} | {what: place / name}
    done = prepare(paths["out"], paths["log"], tmp_path / "manifest.json")
    assert done.returncode == 1, done.stderr
    assert "defect" not in done.stderr
    assert "Traceback" not in done.stderr
    if (what, kind) != ("out", "a folder"):  # the crystals' folder may exist
        assert str(small_disk) in done.stderr


def test_a_folder_in_the_place_of_an_output_is_refused_before_the_work(tmp_path):
    output = tmp_path / "shard.parquet"
    output.mkdir()
    with pytest.raises(FlowllmError, match=r"shard\.parquet: a folder, but a file is expected"):
        check_file(output)
    with pytest.raises(FlowllmError, match="it is a folder"), atomic_path(output) as temporary:
        temporary.touch()
    assert list(tmp_path.iterdir()) == [output]
    (tmp_path / "model").touch()
    with pytest.raises(FlowllmError, match="model: a file, but a folder is expected"):
        check_folder(tmp_path / "model")


def write_model(folder: Path, text: str = "new") -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "weights").write_text(text)


@pytest.mark.parametrize("there", [False, True], ids=["dangling", "empty"])
def test_a_model_folder_that_is_a_link_is_written_where_it_leads(tmp_path, small_disk, there):
    """To another file system, as scratch is."""
    scratch = small_disk / "deep" / "model"
    scratch.mkdir(parents=True) if there else None
    link = tmp_path / "model"
    link.symlink_to(scratch)
    assert check_folder(link) == scratch
    write_model(link)
    assert link.is_symlink()
    assert (scratch / "deep" / "weights").read_text() == "new"
    assert [path.name for path in scratch.parent.iterdir()] == ["model"]
    assert [path.name for path in tmp_path.iterdir() if path != small_disk] == ["model"]


def test_a_link_to_a_folder_with_content_is_replaced_and_its_target_kept(tmp_path):
    theirs = tmp_path / "another run"
    write_model(theirs, "theirs")
    link = tmp_path / "model"
    link.symlink_to(theirs)
    assert check_folder(link) == link
    with pytest.raises(KeyError), atomic_folder(link):
        raise KeyError  # the link stays where the new folder is not finished
    assert link.is_symlink()
    write_model(link)
    assert not link.is_symlink()
    assert (link / "deep" / "weights").read_text() == "new"
    assert (theirs / "deep" / "weights").read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another run", "model"]


def test_a_mount_point_is_refused_before_the_work(small_disk):
    with pytest.raises(FlowllmError, match="a mount point, which cannot be replaced"):
        check_folder(small_disk)


def test_the_folder_above_may_be_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "llm").symlink_to(tmp_path / "scratch")
    for text in ("old", "new"):
        write_model(tmp_path / "llm" / "model", text)
    assert (tmp_path / "scratch" / "model" / "deep" / "weights").read_text() == "new"
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["model"]


def test_a_file_that_is_a_link_is_replaced_and_its_target_kept(tmp_path):
    theirs = tmp_path / "theirs.txt"
    theirs.write_text("theirs")
    for name, target in (("link", theirs), ("dangling", tmp_path / "nowhere")):
        link = tmp_path / name
        link.symlink_to(target)
        write_text(link, "ours")
        assert not link.is_symlink()
        assert link.read_text() == "ours"
    assert theirs.read_text() == "theirs"
    assert not (tmp_path / "nowhere").exists()


def test_a_kill_between_two_renames_loses_no_model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    write_model(folder, "old")
    rename = Path.rename

    def fail(self, target):
        if Path(target) == folder and ".old." not in self.name:
            raise OSError(errno.EIO, "no", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(FlowllmError, match="input/output error"):
        write_model(folder)
    assert (folder / "deep" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """The order of the system's calls: contents, then the name, then the folder that has it."""
    calls = []
    sync = os.fsync

    def note(number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").readlink()
        calls.append((path.name.endswith(".tmp") or ".tmp" in path.parts[-2], path.name))
        sync(number)

    monkeypatch.setattr(os, "fsync", note)
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda s, t: (calls.append("named"), replace(s, t))[1])
    write_text(tmp_path / "_x.provenance.json", "{}")
    assert [call if call == "named" else call[0] for call in calls] == [True, "named", False]
    assert calls[-1][1] == tmp_path.name
    calls.clear()
    write_model(tmp_path / "model")
    assert {name for _, name in calls} >= {"weights", "deep", tmp_path.name}
    assert calls[-1][1] == tmp_path.name
