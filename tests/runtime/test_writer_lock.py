"""One writer of an output at a time: real processes here, locks as other hosts leave them."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from flowllm.errors import FlowllmError
from flowllm.io.processes import HOST, PLACE, start_time
from flowllm.runtime import writer_lock
from flowllm.runtime.writer_lock import Writer, is_written, lock_path, only_writer

HOLD = """
import sys, time
from pathlib import Path
from flowllm.runtime.writer_lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""

ELSEWHERE = Writer("another-node", "7-1", 1, 1, "4711")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(writer_lock, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(writer_lock, "BEAT_SECONDS", 0.1)


@contextmanager
def another_process(output: Path, seconds: float = 600) -> Iterator[subprocess.Popen]:
    """A process that holds an output's lock."""
    command = [sys.executable, "-c", HOLD, str(output), str(seconds)]
    environment = {**os.environ, "SLURM_JOB_ID": "815"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_writer_is_refused_while_the_first_lives(tmp_path):
    output = tmp_path / "shard.parquet"
    with another_process(output) as first:
        message = rf"\.shard\.parquet\.lock: .* process {first.pid} on {HOST}, SLURM job 815"
        with pytest.raises(FlowllmError, match=message), only_writer(output):
            pass
        assert first.poll() is None
        assert lock_path(output).exists()
        with only_writer(tmp_path / "other.parquet"):
            pass


def test_it_goes_on_when_the_first_ends_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_lock, "PATIENCE_SECONDS", 60.0)
    output = tmp_path / "shard.parquet"
    with another_process(output, 0.4), only_writer(output) as is_held:
        assert is_held()
    assert not lock_path(output).exists()


@pytest.mark.parametrize("reaped", [True, False], ids=["gone", "zombie"])
def test_a_killed_writers_lock_delays_nobody_on_its_host(tmp_path, reaped):
    output = tmp_path / "shard.parquet"
    with another_process(output) as first:
        first.send_signal(signal.SIGKILL)
        if reaped:
            first.wait()
        else:
            os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
        started = time.monotonic()
        with only_writer(output):
            assert time.monotonic() - started < 0.5


def test_a_number_that_has_come_round_is_another_process(tmp_path):
    output, parent = tmp_path / "shard.parquet", os.getppid()
    leave(output, Writer(HOST, PLACE, parent, start_time(parent) - 1, None))
    with only_writer(output):
        pass
    leave(output, Writer(HOST, PLACE, parent, start_time(parent), None))
    with pytest.raises(FlowllmError, match=f"`kill {parent}` on {HOST}"), only_writer(output):
        pass


def leave(output: Path, writer: Writer) -> None:
    lock_path(output).write_text(json.dumps(asdict(writer)))


@pytest.mark.parametrize("text", [json.dumps(asdict(ELSEWHERE)), "", "[1]", "{}"])
def test_another_hosts_untouched_lock_is_a_dead_ones(tmp_path, text):
    output = tmp_path / "shard.parquet"
    lock_path(output).write_text(text)
    started = time.monotonic()
    with only_writer(output):
        assert 1 <= time.monotonic() - started < 3


def test_another_hosts_touched_lock_is_a_living_ones(tmp_path):
    """Its clock may be wrong: only that its time changes counts."""
    output, ended = tmp_path / "shard.parquet", threading.Event()
    leave(output, ELSEWHERE)

    def beat() -> None:
        for moment in range(1000, 1100):
            os.utime(lock_path(output), (moment, moment))
            if ended.wait(0.1):
                return

    heart = threading.Thread(target=beat)
    heart.start()
    message = r"process 1 on another-node, SLURM job 4711.*\(`scancel 4711`\)"
    with pytest.raises(FlowllmError, match=message), only_writer(output):
        pass
    ended.set()
    heart.join()
    assert json.loads(lock_path(output).read_text()) == asdict(ELSEWHERE)


def wait_for_touch(output: Path) -> None:
    """Wait until a lock whose time is 1000 is touched."""
    deadline = time.monotonic() + 60
    while lock_path(output).stat().st_mtime < 2000:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_writer_touches_its_lock_and_no_others(tmp_path):
    output = tmp_path / "shard.parquet"
    with only_writer(output) as is_held:
        os.utime(lock_path(output), (1000, 1000))
        wait_for_touch(output)
        leave(output, ELSEWHERE)  # as after a long suspension
        os.utime(lock_path(output), (1000, 1000))
        time.sleep(0.5)
        assert lock_path(output).stat().st_mtime == 1000
        assert not is_held()
    assert json.loads(lock_path(output).read_text()) == asdict(ELSEWHERE)


def test_a_passing_error_of_the_file_system_does_not_end_the_touches(tmp_path, monkeypatch):
    output, touch, failed = tmp_path / "shard.parquet", os.utime, threading.Event()

    def stale_once(path, *words) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        touch(path, *words)

    with only_writer(output):
        touch(lock_path(output), (1000, 1000))
        monkeypatch.setattr(os, "utime", stale_once)
        wait_for_touch(output)
        assert failed.is_set()


def test_an_error_gives_the_lock_back(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path / "t"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("alive", [True, False], ids=["alive", "ended"])
def test_a_container_of_the_same_name_is_another_place(tmp_path, alive):
    """Its process has our own number and start: only that its lock is touched tells."""
    output, ended = tmp_path / "shard.parquet", threading.Event()
    process = os.getpid()
    leave(output, Writer(HOST, "another-1", process, start_time(process), None))

    def beat() -> None:
        while alive and not ended.wait(0.1):
            os.utime(lock_path(output))

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        if alive:
            message = f"process {process} on {HOST}, in another container"
            with pytest.raises(FlowllmError, match=message), only_writer(output):
                pass
        else:
            with only_writer(output) as is_held:
                assert is_held()
    finally:
        ended.set()
        heart.join()


def in_another_namespace(*words: str) -> list[str]:
    """A command line that starts a process whose number is 1 there, as in a container."""
    given = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0 or subprocess.run([*given, "true"], capture_output=True).returncode:
        pytest.skip("a process namespace of its own needs root")
    return [*given, sys.executable, "-c", *words]


def test_two_containers_with_equal_process_numbers_are_two_writers(tmp_path):
    """Both have the host's name, both run as process 1."""
    output = tmp_path / "shard.parquet"
    command = in_another_namespace(HOLD, str(output), "600")
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        lock = json.loads(lock_path(output).read_text())
        assert (lock["host"], lock["process"]) == (HOST, 1)
        hurry = "from flowllm.runtime import writer_lock as w; w.PATIENCE_SECONDS = 12.0"
        second = in_another_namespace(f"{hurry}\n{HOLD}", str(output), "0")
        done = subprocess.run(second, capture_output=True, text=True)
        assert done.returncode
        assert f"process 1 on {HOST}, in another container" in done.stderr
        assert json.loads(lock_path(output).read_text()) == lock
        names = names_in_two_containers()
        assert names[0].endswith(".1.tmp\n")
        assert names[0] != names[1]
    finally:
        first.kill()
        first.wait()


NAME = """
import sys
from pathlib import Path
from flowllm.io.files import atomic_path
with atomic_path(Path("/tmp/x.txt")) as temporary:
    temporary.touch()
    print(temporary.name, flush=True)
    sys.stdin.read()
"""


def names_in_two_containers() -> list[str]:
    """Temporary names of two living containers: the kernel reuses a dead one's number."""
    command = in_another_namespace(NAME)
    containers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    names = [container.stdout.readline() for container in containers]
    for container in containers:
        container.communicate()
    return names


def test_a_living_writer_is_seen_without_waiting(tmp_path):
    output = tmp_path / "shard.parquet"
    assert not is_written(output)
    with another_process(output):
        assert is_written(output)
    assert not is_written(output)  # the killed process left its lock


def test_a_lock_of_another_node_is_alive_while_it_is_touched(tmp_path):
    output = tmp_path / "shard.parquet"
    lock = lock_path(output)
    lock.write_text(json.dumps(asdict(ELSEWHERE)))
    assert is_written(output)
    long_ago = time.time() - 2 * writer_lock.PATIENCE_SECONDS
    os.utime(lock, (long_ago, long_ago))
    assert not is_written(output)
