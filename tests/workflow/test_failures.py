"""Which failures are tried again on one machine, and what Snakemake says of them."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from flowllm.cli import _recurs
from flowllm.errors import FlowllmError, PassingError
from flowllm.slurm.plugin import refuse_start
from flowllm.workflow import changes
from tiny_run import SNAKEMAKE, TINY, snakemake


def test_a_damaged_input_is_tried_once_although_retries_are_left(tmp_path):
    manifest = tmp_path / "run" / "download" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{cut off")
    words = ["--cores", "1", "--retries", "2", "--allowed-rules", "prepare", *TINY]
    said = snakemake(*words, "--", "run/crystals/test.parquet", cwd=tmp_path, check=False)
    log = (tmp_path / "run" / "logs" / "prepare.log").read_text()
    assert log.count("=== attempt") == 1
    [line] = [line for line in said.splitlines() if line.startswith("prepare failed")]
    assert re.match(
        r"prepare failed \(attempt 1 of 3\): .*manifest\.json: not a manifest of download", line
    )
    assert line.endswith(" It is not tried again. Log: run/logs/prepare.log")
    assert "Trying to restart" not in said


def caused_by(cause: BaseException) -> FlowllmError:
    try:
        raise FlowllmError("FILE: cannot be read") from cause
    except FlowllmError as error:
        return error


@pytest.mark.parametrize(
    ("error", "recurs"),
    [
        (FlowllmError("FILE: a wrong value"), True),
        (caused_by(ValueError("not JSON")), True),
        (caused_by(OSError("Arrow: couldn't deserialize thrift")), True),
        (PassingError("FILE: is being written by process 4242"), False),
        (PermissionError(13, "permission denied"), False),
        (caused_by(OSError(28, "no space left on device")), False),
        (caused_by(MemoryError()), False),
        (caused_by(RuntimeError("DefaultCPUAllocator: can't allocate memory")), False),
    ],
)
def test_a_failure_of_the_system_or_of_memory_is_tried_again(error, recurs):
    assert _recurs(error) is recurs


def test_another_version_of_the_plugin_stops_runs_on_slurm_alone(monkeypatch):
    class Executor:
        def __post_init__(self) -> None:
            """Run the plugin's own start."""

    monkeypatch.setattr(changes, "version", lambda _package: "2.8.0")
    with pytest.raises(FlowllmError, match=r"2\.8\.0 is installed, .* needs 2\.5\.x") as refusal:
        changes.check_version(changes.SLURM_PLUGIN)
    refuse_start(SimpleNamespace(Executor=Executor), str(refusal.value))
    with pytest.raises(Exception, match=r"pip install 'snakemake-executor-plugin-slurm==2\.5\.\*'"):
        Executor().__post_init__()


def test_another_version_of_snakemake_is_refused_before_it_plans(tmp_path):
    """It would delete the finished outputs of failed jobs."""
    code = (
        "from flowllm.workflow import changes; changes.SERIES['snakemake'] = '9.28'; "
        "from snakemake.cli import main; main()"
    )
    words = [*SNAKEMAKE[3:], "-n", *TINY]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "is installed, but FlowLLM needs 9.28.x, of which it changes functions" in said
    assert "Job stats" not in said
