"""The record beside every output, digests, and the lines that people read."""

import hashlib
import json
import logging
import math
import subprocess
import sys
import time

import pytest

from flowllm.config.stage_settings import StageSettings
from flowllm.runtime.identity import identity_path
from flowllm.runtime.log import Progress, log, setup_logging
from flowllm.runtime.provenance import (
    StageRun,
    digest,
    provenance_path,
    read_provenance,
    stage_run,
)

PREPARE = {
    "cell": "primitive",
    "max_atoms": 20,
    "max_rows": 5,
    "split_shares": [0.6, 0.2, 0.2],
    "properties": {},
}


def opened(output, inputs, **work):
    settings = StageSettings("prepare", {"version": 3, "seed": 42, "prepare": PREPARE})
    return stage_run(settings, inputs=inputs, output=output, work=work)


@pytest.fixture
def lines(caplog, monkeypatch):
    """What the package logs, whichever logger set-up ran before."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, logger="flowllm")
    return lambda: [record.getMessage() for record in caplog.records]


def test_record_holds_what_a_reader_asks(tmp_path):
    source = tmp_path / "manifest.json"
    source.write_text("{}")
    output = tmp_path / "crystals"
    with opened(output, {"manifest": source}, start=5, count=7) as run:
        run.count(rows_in=10, rows_out=9)
        run.count(rows_failed=1)
        time.sleep(0.05)
    record = json.loads((tmp_path / "_crystals.provenance.json").read_text())
    assert record == read_provenance(output)
    assert record["stage"] == "prepare"
    assert record["stage_version"] == 3
    assert record["settings"] == {"prepare": PREPARE}
    assert record["seed"] == 42
    assert record["work"] == {"start": 5, "count": 7}
    assert record["counts"] == {"rows_in": 10, "rows_out": 9, "rows_failed": 1}
    assert record["inputs"] == {"manifest": hashlib.sha256(b"{}").hexdigest()}
    assert record["input_paths"] == {"manifest": str(source)}
    assert 0.05 <= record["seconds"] < 5
    assert record["peak_memory_mb"] > 10
    assert record["hardware"]["cpus"] >= 1
    assert record["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    said = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if said.returncode == 0:
        assert said.stdout.startswith(record["commit"].split("-")[0])


def test_peak_memory_is_not_that_of_the_process_that_started_the_job():
    job = "from flowllm.runtime import provenance; print(provenance._peak_memory_mb())"
    start = f"subprocess.run([sys.executable, '-c', {job!r}], check=True)"
    alone, started = (
        subprocess.run(
            [sys.executable, "-c", f"import subprocess, sys; held = b'1' * {size}; {start}"],
            capture_output=True,
            check=True,
        ).stdout
        for size in (1, 600_000_000)
    )
    assert abs(int(started) - int(alone)) < 100


def test_failed_stage_leaves_no_record(tmp_path):
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "out", {}):
        raise ZeroDivisionError
    assert not provenance_path(tmp_path / "out").exists()
    assert read_provenance(tmp_path / "out") == {}


def test_metadata_repeats_and_knows_no_path(tmp_path):
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in").write_text("same")
        runs.append(StageRun("refine", 1, {"x": 1}, 42, {"base": tmp_path / name / "in"}))
        time.sleep(0.01)
    assert runs[0].metadata() == runs[1].metadata()
    assert runs[0].fingerprint() == runs[1].fingerprint()
    assert str(tmp_path) not in json.dumps(runs[0].metadata())


def test_fingerprint_depends_on_everything_that_results_do(tmp_path):
    (tmp_path / "in").write_text("one")
    (tmp_path / "other").write_text("two")
    given = {
        "stage": "refine",
        "version": 1,
        "settings": {"x": 1},
        "seed": 42,
        "inputs": {"base": tmp_path / "in"},
        "work": {"start": 0},
    }
    changes = [
        {},
        {"stage": "prerelax"},
        {"version": 2},
        {"settings": {"x": 2}},
        {"seed": 43},
        {"inputs": {"base": tmp_path / "other"}},
        {"inputs": {"base": [tmp_path / "in", tmp_path / "other"]}},
        {"inputs": {"base": [tmp_path / "other", tmp_path / "in"]}},
        {"work": {"start": 1}},
    ]
    prints = [StageRun(**{**given, **change}).fingerprint() for change in changes]
    assert len(set(prints)) == len(changes)


def test_digest_of_a_file_is_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 3_000_000)
    assert digest(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_digest_of_a_folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "weights").write_bytes(b"12345")
    first = digest(folder)
    assert digest(folder) == first
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert digest(moved) == first
    (moved / "deep" / "weights").write_bytes(b"123456")
    larger = digest(moved)
    assert larger != first
    # The same sizes, made from other settings.
    provenance_path(moved).write_text(json.dumps({"settings": {"epochs": 1}, "seconds": 1.0}))
    made = digest(moved)
    assert made != larger
    provenance_path(moved).write_text(json.dumps({"settings": {"epochs": 1}, "seconds": 2.0}))
    assert digest(moved) == made
    provenance_path(moved).write_text(json.dumps({"settings": {"epochs": 2}, "seconds": 1.0}))
    assert digest(moved) != made
    # The same settings, made from other files.
    made = digest(moved)
    identity_path(moved).write_text("one")
    first = digest(moved)
    identity_path(moved).write_text("two")
    assert len({made, first, digest(moved)}) == 3


def test_log_goes_to_the_terminal_and_is_appended_to_the_file(tmp_path, capsys):
    path = tmp_path / "logs" / "prepare.log"
    for text in ("first", "second"):
        setup_logging(path)
        log.info(text)
    begin, *lines = path.read_text().splitlines()
    assert begin.startswith("=== attempt 1, ")
    assert [line.split()[1:] for line in lines] == [["INFO", "first"], ["INFO", "second"]]
    assert capsys.readouterr().err.splitlines() == lines
    setup_logging(None)
    assert len(log.handlers) == 1


def test_progress_counts_and_estimates(lines, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    progress = Progress("texts", 100, done=20)
    clock[0] += 5
    progress.advance(10)  # too soon for a line
    assert lines() == []
    clock[0] += 15
    progress.advance(10, note="acceptance 0.9")
    assert lines() == ["texts: 40 of 100 (40 %), 1/s, 0:01:00 left, acceptance 0.9"]
    progress.advance(60)  # complete: always a line
    assert lines()[1] == "texts: 100 of 100 (100 %), 4/s, 0:00:00 left"


def test_progress_before_any_speed_is_known(lines, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    progress = Progress("texts", 10)
    clock[0] = math.inf
    progress.advance(0)
    assert lines() == ["texts: 0 of 10 (0 %), 0/s, ? left"]
