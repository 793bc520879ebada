"""Jobs in SLURM: their names, those of an earlier start that still live, and why one failed."""

import getpass
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowllm.errors import FlowllmError
from flowllm.runtime.failures import log_paths
from flowllm.runtime.log import Failure, last_failure
from flowllm.slurm.commands import ask

_LIVING = "PENDING,CONFIGURING,RUNNING,SUSPENDED,COMPLETING"
"""With COMPLETING: such a job may be queued again, under its number."""

REQUEUED = ("PREEMPTED", "NODE_FAIL")
"""States after which SLURM may queue a job again, under its number."""

_LONGEST_WILDCARDS = 60

_STATES = {
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "it was cancelled (scancel)",
    "DEADLINE": "its deadline has passed",
    "PREEMPTED": "it was preempted",
}


def job_name(job: Any) -> str:
    """Return a name that says rule and wildcards, and belongs to the outputs of a job alone.

    A later start of the same run gives the same name, and other runs and clones give another one.
    """
    paths = sorted(str(Path.cwd() / str(path)) for path in job.output)
    key = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:8]
    wildcards = "_".join(getattr(job, "wildcards", None) or ())
    words = [str(job.name), re.sub(r"[^\w.+-]", "_", wildcards)[:_LONGEST_WILDCARDS], key]
    return ".".join(filter(None, words))


def living_jobs() -> dict[str, str]:
    """Return the numbers of the user's jobs that wait or run, by their names.

    Raises:
        FlowllmError: squeue does not answer.
    """
    words = [f"--user={getpass.getuser()}", "--noheader", f"--states={_LIVING}", "--format=%i %j"]
    answer = ask(["squeue", *words])
    if not answer.ok:
        raise FlowllmError(
            f"squeue does not answer ({answer.error}), so that jobs of an earlier start cannot be "
            "found; start again when it does"
        )
    lines = [line.split(maxsplit=1) for line in answer.lines]
    return {line[1].strip(): line[0] for line in lines if len(line) == 2}


def not_queued_again(states: Mapping[str, str], clusters: Sequence[str] = ()) -> dict[str, str]:
    """Return those jobs that SLURM does not queue again (`PreemptMode=CANCEL`, `JobRequeue=0`).

    Args:
        states: states of `REQUEUED` that sacct gives, until a job that is queued again starts.
        clusters: option with the clusters of the jobs, if there are several.
    """
    if not states:
        return {}
    words = [f"--jobs={','.join(states)}", "--states=all", "--noheader", "--format=%i|%T"]
    answer = ask(["squeue", *clusters, *words])
    if not answer.ok and "Invalid job id" not in answer.error:
        return {}
    queue = dict(line.strip().split("|", 1) for line in answer.lines if "|" in line)
    return {job: state for job, state in states.items() if queue.get(job, state) == state}


def failure_of(job: Any, number: str, said: str, slurm_log: Path | None) -> Failure:
    """Return why a SLURM job failed: its state, and the last error of its stage.

    Args:
        job: Snakemake's job.
        number: of the SLURM job.
        said: message of the plugin, with the state.
        slurm_log: what the SLURM job printed.
    """
    found = re.search(r"status is: '(\w+)'", said)
    state = found[1] if found else ""
    logs = [last_failure(path, number) for path in log_paths(job)]
    stage = next((one for one in logs if one is not None), None)
    if state == "TIMEOUT":
        text = f"the time limit of {job.resources.get('runtime')} minutes"
    elif state == "OUT_OF_MEMORY":
        text = f"more memory than the {job.resources.get('mem_mb')} MB that it requests"
    elif state in _STATES:
        text = _STATES[state]
    elif stage is not None and "stopped by SIGTERM" in stage.message:
        # By `signal_seconds` of site.yaml; the state is then FAILED, not TIMEOUT.
        minutes = job.resources.get("runtime")
        text = f"SIGTERM, which SLURM sends before the time limit of {minutes} minutes"
    elif stage is not None:
        return Failure(f"SLURM job {number}: {stage.message}", stage.recurs)
    else:
        text = _last_line(slurm_log) or f"the state {state or 'unknown'} without a message"
    more = f"; {stage.message}" if stage else ""
    return Failure(f"SLURM job {number}: {text}{more}")


def _last_line(slurm_log: Path | None) -> str:
    """Return the last line of what a SLURM job printed that is an error, or its last line."""
    try:
        text = slurm_log.read_text(errors="replace") if slurm_log else ""
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror\b|Error", line)]
    return (errors or lines or [""])[-1]
