"""The state of each job, from real outputs, records, logs, locks and processes; rates by hand."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from flowllm.cli import app
from flowllm.commands.job_states import Activity, JobState, find_activity, state_of, states_of
from flowllm.commands.jobs import Job, jobs_of
from flowllm.commands.status import describe, summarize
from flowllm.config.load import load_config
from flowllm.config.model import Config
from flowllm.config.recorded import load_recorded, recorded_text
from flowllm.config.stage_settings import stage_values
from flowllm.errors import FlowllmError
from flowllm.io.files import write_text
from flowllm.runtime.archive import bring_back, move_away
from flowllm.runtime.log import SAME_AGAIN, Progress, log, setup_logging
from flowllm.runtime.provenance import StageRun, recorded
from tiny_run import TINY

PAIRS = Job("sample_pairs", ("train", "00000"), Path("pairs/train/shard-00000.parquet"), items=8)
MERGE = Job("merge_adapter", (), Path("llm/model"))
NONE = Activity()

HOLD = """
import sys, time
from pathlib import Path
from flowllm.runtime.writer_lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(600)
"""
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


@contextmanager
def process(code: str, *words: str, cwd: Path):
    """A live process with these words in its command line."""
    command = [sys.executable, "-c", code, *words]
    started = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, text=True)
    try:
        assert started.stdout.readline() == "ready\n"
        yield started
    finally:
        started.kill()
        started.wait()


@contextmanager
def logged(path: Path):
    """The block's log records go to a job's log."""
    setup_logging(path)
    try:
        yield
    finally:
        setup_logging(None)


def tiny() -> Config:
    return load_config([Path(one) for one in TINY[1:]])


def start(run_dir: Path, job: Job) -> None:
    log.info("%s: started, output %s", job.stage, run_dir / job.output)


def test_a_job_that_never_started_waits(tmp_path):
    assert state_of(PAIRS, tmp_path, NONE) == JobState(PAIRS, "waiting", total=8)


def test_a_finished_job_has_the_rate_of_its_record(tmp_path):
    output = tmp_path / PAIRS.output
    with recorded(StageRun("sample_pairs", 1, {}, 42, {}), output) as run:
        write_text(output, "pairs")
        run.count(rows_in=8)
    found = state_of(PAIRS, tmp_path, NONE)
    assert (found.state, found.total) == ("done", 8)
    assert found.rate is None or found.rate > 0  # None if it took under a millisecond


def test_an_output_without_a_record_is_done(tmp_path):
    write_text(tmp_path / PAIRS.output, "pairs")
    assert state_of(PAIRS, tmp_path, NONE) == JobState(PAIRS, "done", total=8)


def test_an_archived_output_counts_as_present(tmp_path):
    run_dir = tmp_path / "run"
    write_text(run_dir / PAIRS.output, "pairs")
    move_away(run_dir, run_dir / PAIRS.output, tmp_path / "archive")
    assert [one.state for one in states_of([PAIRS], run_dir, NONE, tiny())] == ["done"]
    bring_back(run_dir, str(PAIRS.output))
    (run_dir / PAIRS.output).unlink()
    assert [one.state for one in states_of([PAIRS], run_dir, NONE, tiny())] == ["waiting"]


def test_an_earlier_output_that_stays_is_not_done(tmp_path):
    """It is done for the settings that it was made with alone."""
    config = tiny()
    [job, *_] = [one for one in jobs_of(config, "all") if one.stage == "sample_pairs"]
    values = stage_values(config, job.stage, job.row)
    sections = {key: values[key] for key in values.keys() - {"seed", "version"}}
    output = tmp_path / job.output
    with recorded(StageRun(job.stage, values["version"], sections, values["seed"], {}), output):
        write_text(output, "pairs")
    assert states_of([job], tmp_path, NONE, config)[0].state == "done"
    sampled = config.sample_pairs.model_copy(update={"temperature": 0.123})
    changed = config.model_copy(update={"sample_pairs": sampled})
    assert states_of([job], tmp_path, NONE, changed)[0].state == "waiting"
    with logged(tmp_path / job.log):
        start(tmp_path, job)
        log.error("out of memory")
    [failed] = states_of([job], tmp_path, NONE, changed)
    assert (failed.state, failed.error) == ("failed", "out of memory")
    assert states_of([job], tmp_path, NONE, config)[0].state == "done"


def test_prepare_is_done_when_all_its_tables_exist(tmp_path):
    job = Job("prepare", (), Path("crystals"))
    for name in ("train", "val", "test", "rejected"):
        assert state_of(job, tmp_path, NONE).state == "waiting"
        write_text(tmp_path / "crystals" / f"{name}.parquet", "")
    assert state_of(job, tmp_path, NONE).state == "done"


def test_the_last_error_of_the_last_attempt_is_shown(tmp_path, monkeypatch):
    for error in ("first attempt", "bad shard.\nDelete it"):
        monkeypatch.delenv("FLOWLLM_LOG", raising=False)  # another process
        with logged(tmp_path / PAIRS.log):
            start(tmp_path, PAIRS)
            log.error(error)
            log.error(SAME_AGAIN)
    found = state_of(PAIRS, tmp_path, NONE)
    assert (found.state, found.error) == ("failed", "bad shard. Delete it")


def test_of_a_traceback_the_exception_is_shown(tmp_path):
    with logged(tmp_path / PAIRS.log):
        start(tmp_path, PAIRS)
        try:
            raise ValueError("no such key")
        except ValueError:
            log.exception("This is a defect of FlowLLM")
    assert state_of(PAIRS, tmp_path, NONE).error == "ValueError: no such key"


def test_an_error_before_the_stage_starts_is_shown(tmp_path):
    with logged(tmp_path / PAIRS.log):
        log.error("settings of sample_pairs: bad")
    assert state_of(PAIRS, tmp_path, NONE).error == "settings of sample_pairs: bad"


def test_a_killed_job_is_failed_with_the_last_line_of_its_log(tmp_path):
    with logged(tmp_path / PAIRS.log):
        start(tmp_path, PAIRS)
        log.info("vllm started in 5.5 s")
    found = state_of(PAIRS, tmp_path, NONE)
    assert found.state == "failed"
    assert found.error.endswith(
        "without an error message; its log ends with: vllm started in 5.5 s"
    )


def test_a_removed_output_of_a_finished_job_waits(tmp_path):
    with logged(tmp_path / PAIRS.log):
        output = tmp_path / PAIRS.output
        with recorded(StageRun("sample_pairs", 1, {}, 42, {}), output):
            write_text(output, "pairs")
    output.unlink()
    assert state_of(PAIRS, tmp_path, NONE).state == "waiting"


def test_a_job_whose_lock_is_held_runs_with_the_progress_of_its_log(tmp_path):
    with logged(tmp_path / PAIRS.log):
        start(tmp_path, PAIRS)
        progress = Progress("sample_pairs: train pairs", 8)
        progress._last -= 60  # a line is due
        progress.advance(6)
    output = str(tmp_path / PAIRS.output)
    with process(HOLD, output, cwd=tmp_path):
        found = state_of(PAIRS, tmp_path, NONE)
        assert (found.state, found.done, found.total) == ("running", 6, 8)
        assert found.rate > 0
    assert state_of(PAIRS, tmp_path, NONE).state == "failed"


def test_prepared_shards_are_not_steps(tmp_path):
    job = Job("train_rfm", ("llm",), Path("rfm/llm"), "llm")
    with logged(tmp_path / job.log):
        start(tmp_path, job)
        Progress("train_rfm: train shards prepared", 3).advance(3)
    with process(HOLD, str(tmp_path / job.output), cwd=tmp_path):
        assert state_of(job, tmp_path, NONE) == JobState(job, "running")


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_stage_without_a_lock_runs_while_its_process_does(tmp_path):
    (tmp_path / "runs").mkdir()
    run_dir = tmp_path / "runs"
    with logged(run_dir / MERGE.log):
        start(run_dir, MERGE)
    words = ("flowllm", "merge_adapter", "--log", f"runs/{MERGE.log}")
    with process(SLEEP, *words, cwd=tmp_path):
        activity = find_activity(run_dir, Path("runs"))
        assert state_of(MERGE, run_dir, activity).state == "running"
    activity = find_activity(run_dir, Path("runs"))
    assert state_of(MERGE, run_dir, activity).state == "failed"


def test_a_queued_retry_waits_although_an_older_output_exists(tmp_path):
    write_text(tmp_path / PAIRS.output, "pairs")
    activity = Activity(pending={"rule_sample_pairs_wildcards_train_00000": "Priority"})
    states = states_of([PAIRS, MERGE], tmp_path, activity, tiny())
    assert [state.state for state in states] == ["waiting", "waiting"]
    lines = list(describe(states, tmp_path, activity))
    assert lines[-1] == "Jobs that wait in SLURM's queue, by SLURM's reason: 1 Priority"


def test_rate_and_time_left_by_hand():
    states = [
        JobState(PAIRS, "done", total=100, rate=2.0),
        JobState(PAIRS, "running", done=40, total=100, rate=0.5),
        JobState(PAIRS, "running", total=100),  # no progress yet: as fast as the other
        JobState(PAIRS, "failed", "bad", total=100),
        JobState(PAIRS, "waiting"),  # as many items as the others
    ]
    (found,) = summarize(states)
    assert (found.jobs, found.done, found.running, found.failed, found.waiting) == (5, 1, 2, 1, 1)
    assert found.rate == pytest.approx(3600)
    assert found.seconds_left == pytest.approx(60 + 100 + 100 + 100)


def test_without_a_running_job_there_is_no_rate():
    states = [JobState(PAIRS, "done", total=8, rate=2.0), JobState(PAIRS, "waiting", total=8)]
    (found,) = summarize(states)
    assert (found.rate, found.seconds_left) == (None, None)


def test_the_table():
    states = [
        JobState(PAIRS, "running", done=40_000, total=400_000, rate=5.0),
        JobState(PAIRS, "failed", "no memory", total=400_000),
        JobState(MERGE, "waiting"),
    ]
    text = "\n".join(describe(states, Path("runs/x"), NONE))
    assert "sample_pairs             0/2       1      1       -    18,000 pairs" in text
    assert "1 d 18 h" in text  # 760,000 pairs at 18,000 per hour
    expected = (
        "sample_pairs train-00000 failed: no memory (runs/x/logs/sample_pairs/train-00000.log)"
    )
    assert expected in text


def test_the_recorded_configuration_is_the_runs(tmp_path):
    config = tiny()
    write_text(tmp_path / "config.yaml", recorded_text(config))
    assert load_recorded(tmp_path) == config


def test_the_command_counts_every_job_and_loads_no_torch(tmp_path):
    config = tiny()
    write_text(tmp_path / "config.yaml", recorded_text(config))
    code = (
        "import sys; from flowllm.cli import main; main(sys.argv[1:]); "
        "assert not {'torch', 'pyarrow', 'pymatgen'} & {*sys.modules}"
    )
    command = [sys.executable, "-c", code, "status", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    waiting = sum(int(line.split()[-1]) for line in said.splitlines()[1:])
    assert waiting == len(jobs_of(config, "all"))
    assert max(map(len, said.splitlines())) <= 80


def test_a_folder_without_a_configuration_says_what_to_do(tmp_path):
    with pytest.raises(FlowllmError, match="snakemake writes it when it starts jobs"):
        app(["status", str(tmp_path)], exit_on_error=False)
    with pytest.raises(FlowllmError, match="no such folder"):
        app(["status", str(tmp_path / "absent")], exit_on_error=False)
