"""The log of a stage has all its attempts, and says why the last one failed."""

import os
import subprocess
import sys

from flowllm.runtime.log import SAME_AGAIN, Failure, attempts, last_failure

BEGIN = "=== attempt {}, 2026-11-29 00:04:11, process 7 on node7, SLURM job {}\n"


def stage(*code: str, log, job: str | None = None) -> None:
    """Run a command line of FlowLLM whose work is some code, in a process of its own."""
    lines = ["import logging", "from flowllm.runtime.log import log, setup_logging"]
    lines += ["import pathlib", f"setup_logging(pathlib.Path({str(log)!r}))", *code]
    environment = {**os.environ, **({"SLURM_JOB_ID": job} if job else {})}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, check=True)


def test_each_attempt_is_appended_and_begins_with_its_number_and_job(tmp_path):
    log = tmp_path / "logs" / "stage.log"
    stage("log.info('first')", log=log, job="815")
    stage("log.info('second')", log=log, job="816")
    lines = log.read_text().splitlines()
    assert [line.split(",")[0] for line in lines[::2]] == ["=== attempt 1", "=== attempt 2"]
    assert [line.rpartition(", ")[2] for line in lines[::2]] == ["SLURM job 815", "SLURM job 816"]
    assert [line.split()[-1] for line in lines[1::2]] == ["first", "second"]
    assert attempts(log) == 2


def test_the_processes_of_one_job_begin_one_attempt(tmp_path):
    log = tmp_path / "stage.log"
    again = f"from flowllm.runtime.log import *; setup_logging(Path({str(log)!r}))"
    stage(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {again!r}])", log=log)
    assert attempts(log) == 1


def test_the_cause_is_the_last_error_of_the_last_attempt(tmp_path):
    log = tmp_path / "stage.log"
    log.write_text(BEGIN.format(1, 815) + "00:00:01 ERROR old\n")
    assert last_failure(log) == Failure("old")
    with log.open("a") as file:
        file.write(BEGIN.format(2, 816) + "00:00:02 INFO begins\n")
    assert last_failure(log) is None
    with log.open("a") as file:
        file.write("00:00:03 ERROR rows.csv:\n  row 7 is damaged\n")
    assert last_failure(log) == Failure("rows.csv: row 7 is damaged")
    with log.open("a") as file:
        file.write(f"00:00:03 ERROR {SAME_AGAIN}\n")
    assert last_failure(log) == Failure("rows.csv: row 7 is damaged", recurs=True)
    assert last_failure(log, slurm_job="816") == last_failure(log)
    assert last_failure(log, slurm_job="81") is None


def test_an_attempt_without_records_and_a_missing_log_have_no_cause(tmp_path):
    log = tmp_path / "stage.log"
    assert last_failure(log) is None
    log.write_text(BEGIN.format(1, 815))
    assert last_failure(log) is None
    log.write_text("text of another program\n")
    assert last_failure(log) is None


def test_the_cause_of_a_traceback_is_its_last_line(tmp_path):
    log = tmp_path / "stage.log"
    stage(
        "try:", "    1 / 0", "except ZeroDivisionError:", "    log.exception('a defect')", log=log
    )
    assert last_failure(log) == Failure("ZeroDivisionError: division by zero")


def test_sigterm_is_a_cause_only_as_the_last_line(tmp_path):
    log = tmp_path / "stage.log"
    stopped = "00:00:01 WARNING stopped by SIGTERM, saved after step 3 of 9\n"
    log.write_text(BEGIN.format(1, 815) + stopped)
    assert last_failure(log) == Failure("stopped by SIGTERM, saved after step 3 of 9")
    log.write_text(BEGIN.format(1, 815) + stopped + "00:00:02 INFO resumed\n")
    assert last_failure(log) is None
