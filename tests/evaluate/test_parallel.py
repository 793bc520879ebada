"""Maps over worker processes: order, limits of time and memory, processes that end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowllm.errors import FlowllmError
from flowllm.evaluate import parallel
from flowllm.evaluate.parallel import Limits, limited_map, ordered_map

MANY = Limits(seconds=60, memory=1 << 30)


def failed(item, reason, detail):
    return item, reason, detail


def run(function, items, limits=MANY, workers=2):
    return limited_map(function, items, limits=limits, failed=failed, workers=workers, what="items")


def square(item):
    return item * item


def handling(_):
    return signal.getsignal(signal.SIGTERM)


def hang_in_c(item):
    """Sum without end for negative items: no signal handler runs until it is done."""
    return sum(range(10**15)) if item < 0 else item


def allocate(item):
    return len(bytearray(item))


def end_itself(item):
    if item < 0:
        os.kill(os.getpid(), -item)
    if item > 100:
        sys.exit(3)
    return item


def process_of(_):
    time.sleep(0.01)
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_are_in_the_order_of_the_items(workers):
    assert run(square, range(7), workers=workers) == [0, 1, 4, 9, 16, 25, 36]
    assert run(square, [], workers=workers) == []


def test_nothing_is_computed_in_this_process():
    assert os.getpid() not in run(process_of, range(4))


def test_what_hangs_in_c_is_ended_and_the_others_go_on():
    started = time.monotonic()
    found = run(hang_in_c, [1, -1, 2, -2, 3], Limits(1, 1 << 30))
    assert [found[0], found[2], found[4]] == [1, 2, 3]
    assert found[1] == (-1, "timeout", "not finished after 1 s")
    assert found[3] == (-2, "timeout", "not finished after 1 s")
    assert time.monotonic() - started < 30


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
def test_memory_is_limited():
    found = run(allocate, [1 << 20, 1 << 31, 1 << 20], Limits(60, 1 << 28), workers=1)
    assert found[0] == found[2] == 1 << 20
    assert found[1][1:] == ("out_of_memory", "takes more than 256 MiB")


def test_a_process_that_ends_is_a_reason():
    found = run(end_itself, [1, -signal.SIGSEGV, -signal.SIGKILL, 101, 2], workers=1)
    assert [found[0], found[4]] == [1, 2]
    reasons = [(one[1], one[2]) for one in found[1:4]]
    assert reasons[0] == ("crashed", "its process ended with SIGSEGV")
    assert reasons[1][0] == "out_of_memory"
    assert reasons[2] == ("crashed", "its process ended with exit code 3")


class Unready:
    """A function that cannot be had in another process."""

    def __reduce__(self):
        return (sys.exit, (1,))

    __module__ = "math"

    def __call__(self, item):
        return item


def test_a_process_that_cannot_start_is_an_error():
    with pytest.raises(FlowllmError, match=r"A worker process could not start \(exit code"):
        run(Unready(), [1])


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_parallel import Limits, failed, hang_in_c
from flowllm.evaluate.parallel import limited_map
if __name__ == "__main__":
    print("started", flush=True)
    limited_map(hang_in_c, [-1], limits=Limits(4, 1 << 30), failed=failed, workers=1, what="x")
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="processes are listed by Linux's /proc")
def test_no_process_outlives_a_killed_stage(tmp_path):
    script = tmp_path / "hanging.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    mark = f"FLOWLLM_TEST={tmp_path}"
    environment = os.environ | dict([mark.split("=")])
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env=environment)
    assert process.stdout.readline() == b"started\n"
    deadline = time.monotonic() + 60
    while len(marked(mark)) < 3 and time.monotonic() < deadline:  # script, server, worker
        time.sleep(0.1)
    process.kill()
    process.wait()
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert marked(mark) == []


def marked(mark):
    """Processes that have a variable in their environment, without those that have ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_workers_can_be_ended_where_their_parent_ignores_sigterm(monkeypatch):
    """A stage that has written its output ignores SIGTERM, by which a pool ends its workers."""
    monkeypatch.setattr(parallel, "IN_PROCESS", 1)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        found = ordered_map(handling, range(4), workers=2, what="items")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [signal.SIG_DFL] * 4
