"""Which failures are tried again on one machine, and what Snakemake says of them."""

import re

import pytest

from flowllm.cli import _recurs
from flowllm.errors import FlowllmError, PassingError
from flowllm.workflow import slurm_plugin
from tiny_run import TINY, snakemake


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

    monkeypatch.setattr(slurm_plugin, "version", lambda _package: "2.8.0")
    slurm_plugin._refuse_version(Executor)
    with pytest.raises(Exception, match=r"2\.8\.0 is installed, but FlowLLM needs 2\.5\.x: pip"):
        Executor().__post_init__()
