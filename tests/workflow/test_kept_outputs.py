"""A finished output stays until its successor is written whole; nothing runs again for nothing.

A finished run of files, each of which contains the command that made it, is continued with another
configuration, and its jobs end in every way. Then the first configuration plans nothing.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import snakemake.api  # snakemake.dag alone is a circular import
import yaml
from snakemake.exceptions import MissingOutputException

from flowllm.config.recorded import RECORDED_CONFIG
from flowllm.io.files import atomic_folder, write_text
from flowllm.runtime.provenance import StageRun, provenance_path, recorded
from flowllm.workflow import kept_outputs
from flowllm.workflow.notes import Note, state_of
from stub_run import make_stub, stub_snakemake
from tiny_llm import write_tiny_llm
from tiny_run import ROOT, SNAKEMAKE, TINY, dry_runs, environment, planned, snakemake

INDEPENDENT = {
    "sample_pairs": {"temperature": 0.8},
    "sample_base": {"max_attempts": 3},
    "invariance": {"num_transformations": 3},
    "reference_hull": {"chunk_size": 2},
    "fingerprints": {"max_seconds": 9},
}
"""Settings of stages whose jobs do not wait for each other: shards and single files."""

FIRST_MADE = "run/pairs/train/shard-00000.parquet"

JOBS = {"sample_pairs": 3, "sample_base": 2, "invariance": 1, "reference_hull": 1}

CASES = {
    "files and shards": (
        INDEPENDENT,
        {
            "sample_pairs": "at its start",
            "sample_base": "killed",
            "invariance": "without writing",
            "reference_hull": "killed",
            "fingerprints": "at its start",
        },
    ),
    "a folder, killed": ({"train_rfm": {"learning_rate": 0.01}}, {"train_rfm": "killed"}),
    "a folder, not written": (
        {"merge_adapter": {"into": "original"}},
        {"merge_adapter": "without writing"},
    ),
    "several files": ({"prepare": {"max_rows": 20}}, {"prepare": "killed"}),
    "files and folders": ({"report": {"color": "#000000"}}, {"report": "at its start"}),
    "two files": ({"metrics": {"novelty_against": "train_val"}}, {"metrics": "killed"}),
}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, Path]:
    """A finished run, and the folder of the `python` that made it."""
    folder = tmp_path_factory.mktemp("kept")
    bin_folder = make_stub(folder / "bin")
    (folder / "work").mkdir()
    write_tiny_llm(folder / "work" / "tiny-llm")  # `flowllm check` looks for it
    stub_snakemake(bin_folder, "--cores", "2", cwd=folder / "work")
    return folder / "work", bin_folder


@pytest.fixture
def run(first, tmp_path) -> Path:
    """A copy of the finished run."""
    shutil.copytree(first[0], tmp_path / "work")
    return tmp_path / "work"


class Continued:
    """A run that is continued with another configuration.

    Attributes:
        folder: of the run.
        search: search path whose `python` makes the files of a job.
        changed: file with the other configuration.
    """

    def __init__(self, folder: Path, bin_folder: Path, config: dict) -> None:
        self.folder, self.changed = folder, folder / "changed.yaml"
        self.search = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        self.changed.write_text(yaml.safe_dump(config))

    def start(self, ends: dict[str, str]) -> subprocess.Popen[str]:
        """Start snakemake with the other configuration, as the leader of its own session."""
        words = ["--cores", "64", "--keep-going", "--rerun-incomplete", "--latency-wait", "1"]
        return subprocess.Popen(
            [*SNAKEMAKE, *words, *TINY, str(self.changed)],
            cwd=self.folder,
            env={**environment(), "PATH": self.search, "STUB_ENDS": json.dumps(ends)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def plans(self) -> list[dict[str, int]]:
        """Jobs that the first and the other configuration plan."""
        words = ["--snakefile", str(ROOT / "Snakefile"), *TINY]
        asked = [(str(self.folder), [*words, *more]) for more in ([], [str(self.changed)])]
        return [planned(said) for said in dry_runs(asked)]


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run except logs, benchmarks, and the configuration of the last start."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "run").rglob("*"))
        if path.is_file() and not {"logs", "benchmarks"} & set(path.parts)
        if not path.name.endswith(".tmp") and path != folder / "run" / RECORDED_CONFIG
    }


@pytest.mark.parametrize("case", CASES)
def test_failed_jobs_leave_the_earlier_outputs_and_nothing_is_planned_for_them(first, run, case):
    config, ends = CASES[case]
    before = contents(run)
    continued = Continued(run, first[1], config)
    planned_first = continued.plans()
    assert planned_first[0] == {}
    assert ends.keys() <= planned_first[1].keys()
    process = continued.start(ends)
    said, _ = process.communicate()
    assert process.returncode == 1, said
    assert contents(run) == before
    assert continued.plans() == planned_first
    if "without writing" in ends.values():
        assert "Not written again, the earlier files stay" in said


def test_jobs_that_fail_after_their_stage_has_finished_succeed(first, run):
    """A signal, a time limit or a crash of the interpreter at the end of the process."""
    continued = Continued(run, first[1], {"report": {"color": "#000000"}, **INDEPENDENT})
    ended = dict.fromkeys((*INDEPENDENT, "train_rfm", "report"), "after its record")
    process = continued.start(ended)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "failed after its stage had written its outputs and its record" in said
    first_plan, changed_plan = continued.plans()
    assert changed_plan == {}
    assert first_plan.keys() >= INDEPENDENT.keys()


def test_an_output_without_its_record_is_removed_when_its_job_fails(first, run):
    continued = Continued(run, first[1], {"train_rfm": {"learning_rate": 0.01}})
    process = continued.start({"train_rfm": "before its record"})
    process.communicate()
    assert process.returncode == 1
    assert not (run / "run" / "rfm" / "llm").exists()
    assert [plan["train_rfm"] for plan in continued.plans()] == [1, 1]


@pytest.fixture
def killed(first, run):
    """A run whose snakemake was killed (SIGKILL) while jobs ran, which still wait.

    One of the jobs makes its output for the first time.
    """
    snakemake("--cleanup-metadata", FIRST_MADE, *TINY, cwd=run)
    (run / FIRST_MADE).unlink()
    continued = Continued(run, first[1], INDEPENDENT)
    process = continued.start(dict.fromkeys(JOBS, "waiting"))
    waiting = run / "waiting"
    deadline = time.monotonic() + 120
    while not waiting.exists() or len(list(waiting.iterdir())) < sum(JOBS.values()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    yield continued
    (run / "go on").touch()


def test_jobs_that_die_with_snakemake_leave_the_earlier_outputs(killed):
    for one in (killed.folder / "waiting").iterdir():
        os.kill(int(one.name), signal.SIGKILL)
    first_plan, changed_plan = killed.plans()
    assert first_plan["sample_pairs"] == 1  # which had no output before
    assert not JOBS.keys() - {"sample_pairs"} & first_plan.keys()
    assert JOBS.items() <= changed_plan.items()


def test_jobs_that_outlive_snakemake_have_made_the_outputs_of_their_configuration(killed):
    """They are not made again, and the first configuration does not take them for its own."""
    processes = [int(one.name) for one in (killed.folder / "waiting").iterdir()]
    (killed.folder / "go on").touch()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first_plan, changed_plan = killed.plans()
    assert not JOBS.keys() & changed_plan.keys()
    assert JOBS.items() <= first_plan.items()
    assert "train_rfm" in changed_plan


@pytest.fixture
def finished_job(tmp_path):
    """The note of a job that has replaced its output, the output, and its input."""
    output, given = tmp_path / "model", tmp_path / "input.txt"
    given.write_text("pairs")
    output.mkdir()
    (output / "weights").write_text("old")
    records = [provenance_path(output), provenance_path(output.parent)]
    settings = {"seed": 42, "version": 3, "train_rfm": {"learning_rate": 0.001}}
    note = Note(
        outputs={str(output): state_of(output)},
        records={str(path): state_of(path) for path in records},
        settings=json.dumps(settings),
        metadata=None,
    )
    assert note.is_unchanged(str(output))
    assert not note.is_finished()
    run = StageRun("train_rfm", 3, {"train_rfm": {"learning_rate": 0.001}}, 42, {"pairs": [given]})
    with recorded(run, output), atomic_folder(output) as folder:
        (folder / "weights").write_text("new")
    return note, output, given


def test_a_record_of_the_same_settings_and_inputs_shows_that_a_job_has_finished(finished_job):
    note, output, _ = finished_job
    assert note.is_finished()
    (output / ".snakemake_timestamp").touch()
    assert note.is_finished()
    assert not note.is_unchanged(str(output))


def test_a_record_of_other_settings_or_inputs_does_not(finished_job):
    note, _, given = finished_job
    for other in ('{"seed": 42, "version": 4, "train_rfm": {"learning_rate": 0.001}}', "", None):
        assert not replace(note, settings=other).is_finished()
    given.write_text("other pairs")
    assert not note.is_finished()


@pytest.mark.parametrize("key", ["settings", "params", "input"])
def test_a_task_is_settings_parameters_and_inputs(finished_job, key):
    note = replace(finished_job[0], metadata={"params": ["--count 3"], "input": ["a"]})
    assert note.has_same_task(replace(note, metadata={**note.metadata, "starttime": 3.0}))
    changed = {"settings": "{}"} if key == "settings" else {}
    metadata = {**note.metadata, key: ["other"]}
    assert not note.has_same_task(replace(note, metadata=metadata, **changed))


def test_the_output_of_an_earlier_start_is_used_only_if_made_from_the_present_inputs(
    finished_job, monkeypatch
):
    note, output, given = finished_job
    accepted = []

    async def accept(_dag, job, **_words) -> None:
        accepted.append(job)

    def check(wait: float) -> None:
        monkeypatch.setattr(kept_outputs, "_notes", {str(output): note})
        monkeypatch.setattr(kept_outputs, "_followed", {str(output)})
        dag = SimpleNamespace(jobid=lambda _job: 1)
        job = SimpleNamespace(output=[str(output)], rule=None)
        asyncio.run(kept_outputs._check_and_touch_output(accept, dag, job, wait=wait))

    check(0)
    assert len(accepted) == 1
    record = provenance_path(output)
    content = record.read_text()
    record.unlink()
    late = threading.Timer(0.5, write_text, [record, content])  # a file system that shows it later
    late.start()
    check(10)
    assert len(accepted) == 2
    given.write_text("other pairs")
    until = time.monotonic() + 30
    with pytest.raises(MissingOutputException, match="Not made from the present inputs"):
        check(60)
    assert time.monotonic() < until, "the record is there, and will not change"
    assert len(accepted) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seed": 42, "settings": 3}'])
def test_a_record_of_another_form_does_not(finished_job, content):
    note, output, _ = finished_job
    provenance_path(output).write_text(content)
    assert not note.is_finished()


def test_snakemakes_own_file_does_not_change_a_folder(tmp_path):
    for folder in (tmp_path / "empty", tmp_path / "model"):
        folder.mkdir()
        if folder.name == "model":
            (folder / "weights").touch()
        before = state_of(folder)
        (folder / ".snakemake_timestamp").touch()
        assert state_of(folder) == before
        with atomic_folder(folder) as new:
            if folder.name == "model":
                (new / "weights").touch()
        assert state_of(folder) != before
