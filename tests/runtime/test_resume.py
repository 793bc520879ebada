"""Partial results: a real process is killed with SIGKILL, and what it had finished is used."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from flowllm.errors import FlowllmError
from flowllm.io import schemas, tables
from flowllm.runtime import provenance
from flowllm.runtime.provenance import StageRun, recorded
from flowllm.runtime.resume import partial_folder, partial_path, write_in_parts
from flowllm.runtime.signals import Stopped, stop_at_once_on_sigterm

SCHEMA = schemas.CRYSTALS
NUM_ROWS, ROWS_PER_PART = 23, 5

PROGRAM = """
import sys, time
from pathlib import Path
from flowllm.runtime.resume import write_in_parts
from flowllm.runtime.provenance import StageRun, recorded
from flowllm.runtime.signals import stop_at_once_on_sigterm
from test_resume import SCHEMA, NUM_ROWS, ROWS_PER_PART, make_row

output, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def make_rows(items):
    with log.open("a") as handle:
        handle.write(f"{items.start}\\n")
    if items.start:  # slow from the second part on
        time.sleep(seconds)
    return [make_row(i) for i in items]

stop_at_once_on_sigterm()
run = StageRun("prerelax", 1, {"max_steps": 3}, 42, {})
with recorded(run, output):
    write_in_parts(output, run, SCHEMA, NUM_ROWS, ROWS_PER_PART, make_rows)
"""


def make_row(i: int) -> dict:
    return {"id": f"row-{i}", "num_atoms": i, "band_gap": i / 7}


def a_run(work: dict | None = None, seed: int = 42, **changes) -> StageRun:
    return StageRun("prerelax", 1, {"max_steps": 3, **changes}, seed, {}, work or {})


def write(
    output: Path,
    run: StageRun,
    made: list[int] | None = None,
    num_rows: int = NUM_ROWS,
    rows_per_part: int = ROWS_PER_PART,
) -> pa.Table:
    def make_rows(items: range) -> list[dict]:
        if made is not None:
            made.append(items.start)
        return [make_row(i) for i in items]

    with recorded(run, output):
        return write_in_parts(output, run, SCHEMA, num_rows, rows_per_part, make_rows)


def partial_parts(output: Path) -> list[str]:
    return sorted(path.name for path in partial_path(output).glob("part-*.parquet"))


def test_parts_make_the_whole(tmp_path):
    output, made = tmp_path / "out.parquet", []
    table = write(output, a_run(), made)
    assert made == [0, 5, 10, 15, 20]
    assert table.column("id").to_pylist() == [f"row-{i}" for i in range(NUM_ROWS)]
    assert tables.read_table(output, SCHEMA).equals(table)
    record = "_out.parquet.provenance.json"
    assert sorted(path.name for path in tmp_path.iterdir()) == [record, "out.parquet"]


@pytest.mark.parametrize("rows_per_part", [1, 7, 23, 100])
def test_bytes_do_not_depend_on_the_parts(tmp_path, rows_per_part):
    write(tmp_path / "a.parquet", a_run())
    write(tmp_path / "b.parquet", a_run(), rows_per_part=rows_per_part)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_no_work_gives_an_empty_table(tmp_path):
    write(tmp_path / "out.parquet", a_run(), num_rows=0)
    assert tables.read_table(tmp_path / "out.parquet", SCHEMA).num_rows == 0


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_stopped_process_is_resumed_to_the_same_bytes(tmp_path, sent, code):
    output, log = tmp_path / "killed.parquet", tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", PROGRAM, str(output), str(log)]
    process = subprocess.Popen([*command, "0.4"], env=environment)
    deadline = time.monotonic() + 60
    while len(partial_parts(output)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, sent)
    assert process.wait() == code
    assert not output.exists()
    finished = len(partial_parts(output))
    assert 2 <= finished < 5
    log.unlink()
    subprocess.run([*command, "0"], env=environment, check=True)
    assert log.read_text().split() == [str(start) for start in (0, 5, 10, 15, 20)[finished:]]
    write(tmp_path / "undisturbed.parquet", a_run())
    assert output.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()
    assert not output.with_name(".killed.parquet.partial").exists()


@pytest.mark.parametrize(
    ("moment", "code"),
    [("in the work", 128 + signal.SIGTERM), ("while recording", 0), ("recorded", 0)],
)
def test_sigterm_after_the_work_does_not_discard_it(tmp_path, moment, code):
    program = f"""
import os, signal
from flowllm.runtime import provenance
from flowllm.runtime.signals import stop_at_once_on_sigterm
from test_resume import *

def stop(at):
    if at == {moment!r}:
        os.kill(os.getpid(), signal.SIGTERM)

versions = provenance._versions
provenance._versions = lambda: stop("while recording") or versions()
stop_at_once_on_sigterm()
run = a_run()
with recorded(run, Path("out.parquet")):
    stop("in the work")
    write_in_parts(Path("out.parquet"), run, SCHEMA, 2, 1, lambda rows: [make_row(i) for i in rows])
stop("recorded")
"""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    assert done.returncode == code
    assert (tmp_path / "out.parquet").exists() == (code == 0)
    assert provenance.provenance_path(tmp_path / "out.parquet").exists() == (code == 0)
    assert not partial_path(tmp_path / "out.parquet").exists()


def stop_after_two_parts(output: Path, run: StageRun) -> None:
    def make_rows(items: range) -> list[dict]:
        if items.start == 10:
            raise KeyboardInterrupt
        return [{**make_row(i), "num_atoms": -1} for i in items]

    with pytest.raises(KeyboardInterrupt), recorded(run, output):
        write_in_parts(output, run, SCHEMA, NUM_ROWS, ROWS_PER_PART, make_rows)
    assert partial_parts(output) == ["part-00000000.parquet", "part-00000005.parquet"]


def test_finished_parts_of_the_same_run_are_kept(tmp_path):
    output, made = tmp_path / "out.parquet", []
    stop_after_two_parts(output, a_run())
    table = write(output, a_run(), made)
    assert made == [10, 15, 20]
    assert table.column("num_atoms").to_pylist() == [-1] * 10 + list(range(10, NUM_ROWS))


SECONDS_PER_PART = 1000


def record_of_slow_parts(output: Path, run: StageRun, stop_at: int | None = None) -> dict:
    """The record of a run whose parts seem to take `SECONDS_PER_PART` each."""

    def make_rows(items: range) -> list[dict]:
        run.begun -= SECONDS_PER_PART
        if items.start == stop_at:
            raise KeyboardInterrupt
        return [make_row(i) for i in items]

    with suppress(KeyboardInterrupt), recorded(run, output):
        write_in_parts(output, run, SCHEMA, NUM_ROWS, ROWS_PER_PART, make_rows)
    return provenance.read_provenance(output)


def test_the_record_has_the_time_of_all_saved_parts(tmp_path):
    """Two parts, a kill in the third, one part, a kill in the fourth, and the last two."""
    output = tmp_path / "out.parquet"
    assert record_of_slow_parts(output, a_run(), stop_at=10) == {}
    assert record_of_slow_parts(output, a_run(), stop_at=15) == {}
    record = record_of_slow_parts(output, a_run())
    undisturbed = record_of_slow_parts(tmp_path / "undisturbed.parquet", a_run())
    for seconds in (record["seconds"], undisturbed["seconds"]):
        assert 5 * SECONDS_PER_PART < seconds < 6 * SECONDS_PER_PART
    assert record.keys() == undisturbed.keys()


def test_the_time_of_parts_that_are_dropped_is_not_counted(tmp_path):
    output = tmp_path / "out.parquet"
    record_of_slow_parts(output, a_run(seed=43), stop_at=10)
    record = record_of_slow_parts(output, a_run())
    assert 5 * SECONDS_PER_PART < record["seconds"] < 6 * SECONDS_PER_PART


@pytest.mark.parametrize("content", ["", '{"seconds": "long"}', "[]"])
def test_a_damaged_time_is_named_and_costs_no_part(tmp_path, content):
    output, made = tmp_path / "out.parquet", []
    stop_after_two_parts(output, a_run())
    path = partial_path(output) / "seconds.json"
    path.write_text(content)
    with pytest.raises(FlowllmError, match=r"seconds\.json: .* delete it and run"):
        write(output, a_run())
    path.unlink()
    write(output, a_run(), made)
    assert made == [10, 15, 20]


def test_a_damaged_part_is_named_and_the_others_are_kept(tmp_path):
    output, made = tmp_path / "out.parquet", []
    stop_after_two_parts(output, a_run())
    part = output.with_name(".out.parquet.partial") / "part-00000005.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(FlowllmError, match=r"part-00000005\.parquet: not a readable .* delete it"):
        write(output, a_run())
    part.unlink()
    write(output, a_run(), made)
    assert made == [5]


@pytest.mark.parametrize(
    "other",
    [
        a_run(max_steps=4),
        a_run(seed=43),
        a_run(work={"start": 64, "count": 32}),
        StageRun("prerelax", 2, {"max_steps": 3}, 42, {}),
        StageRun("refine", 1, {"max_steps": 3}, 42, {}),
    ],
    ids=["settings", "seed", "work", "version", "stage"],
)
def test_parts_of_another_run_are_dropped(tmp_path, other):
    output, made = tmp_path / "out.parquet", []
    stop_after_two_parts(output, other)
    table = write(output, a_run(), made)
    assert made == [0, 5, 10, 15, 20]
    assert table.column("num_atoms").to_pylist() == list(range(NUM_ROWS))


def test_parts_made_from_other_inputs_are_dropped(tmp_path):
    output, source = tmp_path / "out.parquet", tmp_path / "input"
    source.write_text("one")
    for text, found in (("one", False), ("one", True), ("two", False)):
        source.write_text(text)
        run = StageRun("prerelax", 1, {}, 42, {"generated": source})
        with suppress(KeyboardInterrupt), recorded(run, output):
            state = partial_folder(output, run) / "state"
            assert state.exists() == found
            state.touch()
            raise KeyboardInterrupt


def test_folder_without_its_key_is_dropped(tmp_path):
    """As a kill between making the folder and writing the key leaves it."""
    output = tmp_path / "out.parquet"
    folder = partial_path(output)
    folder.mkdir()
    (folder / "part-00000000.parquet").write_text("of whom?")
    run = a_run()
    with recorded(run, output):
        assert list(partial_folder(output, run).glob("part-*")) == []
    assert not folder.exists()


@pytest.fixture
def stopping() -> Iterator[None]:
    """SIGTERM as it is to a stage."""
    before = signal.getsignal(signal.SIGTERM)
    stop_at_once_on_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("stopping")
def test_parts_stay_until_the_record_is_written(tmp_path, monkeypatch):
    """A job that fails after its last part loses its output, not what it was made of."""

    def fail() -> None:
        raise OSError("no versions")

    output, made = tmp_path / "out.parquet", []
    with monkeypatch.context() as failing:
        failing.setattr(provenance, "_versions", fail)
        with pytest.raises(OSError, match="no versions"):
            write(output, a_run())
    with pytest.raises(Stopped):  # SIGTERM is effective again
        os.kill(os.getpid(), signal.SIGTERM)
    assert len(partial_parts(output)) == 5
    output.unlink()
    write(output, a_run(), made)
    assert made == []
    assert output.exists()
    assert not partial_path(output).exists()


@pytest.mark.usefixtures("stopping")
def test_sigterm_while_the_parts_are_dropped_changes_nothing(tmp_path, monkeypatch):
    def remove(*given, **options) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        drop(*given, **options)

    output, drop = tmp_path / "out.parquet", shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", remove)
    write(output, a_run())
    assert output.exists()
    assert not partial_path(output).exists()
