"""Say which jobs would run, and why, for `flowllm why`.

Snakemake plans the jobs; its own reasons show two whole JSON objects for one changed key, and only
one of several reasons. Here the settings that it recorded are compared with those of the
configuration, key by key.
"""

import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowllm.commands.jobs import Job, jobs_of
from flowllm.commands.options import DEFAULT_CONFIG, ConfigFiles
from flowllm.config.load import load_config
from flowllm.config.model import Config
from flowllm.config.settings_diff import changed_keys
from flowllm.config.stage_settings import stage_values
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError

_HEADER = "output_file\tdate\trule\tlog-file(s)\tinput-file(s)\tshellcmd\tstatus\tplan"
"""First line of `snakemake --detailed-summary`."""

_PENDING = "update pending"

_CAUSES = {
    "updated input files": "an input file is newer than the output and has other content",
    "set of input files changed": "it has other input files than before",
    "rule implementation changed": "the command of its rule changed",
}
"""Reasons by Snakemake's status of an output."""

_UNSEEN = "its last attempt did not finish, or its software environment changed"
"""Reason of a job for which Snakemake's summary shows none."""


@dataclass(frozen=True)
class Output:
    """One line of Snakemake's summary: an output of a job of the target.

    Attributes:
        path: the output.
        inputs: inputs of the job that made it, empty if it was not made.
        command: words of the shell command that made it, empty if it was not made.
        status: Snakemake's status of the output.
        pending: whether its job would run.
    """

    path: Path
    inputs: tuple[Path, ...]
    command: tuple[str, ...]
    status: str
    pending: bool


@dataclass(frozen=True)
class Planned:
    """A job that would run, and why.

    Attributes:
        job: the job.
        reasons: its own reasons.
        remade: stages of its inputs that would be made again.
    """

    job: Job
    reasons: tuple[str, ...]
    remade: frozenset[str]


def run(target: str = "all", /, *, config: ConfigFiles = None) -> None:
    """Say which jobs `snakemake` would run, and why: changed keys, versions, missing outputs.

    Call it where `snakemake` is called. It starts no job and changes no file.

    Args:
        target: Target of the workflow: `all`, `all_dft`, or an output file.
        config: See `options.ConfigFiles`.

    Raises:
        FlowllmError: the configuration cannot be read, or Snakemake cannot plan the target.
    """
    files = config or DEFAULT_CONFIG
    loaded = load_config(files)
    outputs = read_summary(_summary(target, files))
    planned, jobs = plan(loaded, outputs)
    print("\n".join(describe(planned, jobs)))


def _summary(target: str, files: Sequence[Path]) -> str:
    """Return Snakemake's summary of the outputs of a target.

    Raises:
        FlowllmError: Snakemake ended with an error, whose message is repeated.
    """
    options = ["--detailed-summary", "--rerun-incomplete", "--nolock", "--configfile"]
    command = [sys.executable, "-m", "snakemake", *options, *map(str, files), "--", target]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or _HEADER not in done.stdout:
        raise FlowllmError(f"snakemake cannot plan {target}:\n{done.stderr.strip()}")
    return done.stdout


def read_summary(text: str) -> list[Output]:
    """Parse the output of `snakemake --detailed-summary`."""
    _, _, table = text.partition(f"{_HEADER}\n")
    outputs = []
    for line in table.splitlines():
        path, _, _, _, inputs, command, status, plan_of_job = line.split("\t")
        outputs.append(
            Output(
                Path(path),
                tuple(map(Path, inputs.split(","))) if inputs != "-" else (),
                tuple(shlex.split(command)) if command != "-" else (),
                status,
                plan_of_job == _PENDING,
            )
        )
    return outputs


def plan(config: Config, outputs: Sequence[Output]) -> tuple[list[Planned], int]:
    """Return the jobs that would run with their reasons, and the number of jobs of the target."""
    run_dir = Path(config.run_dir)
    listed = {*jobs_of(config, "all"), *jobs_of(config, "all_dft")}
    job_of = {run_dir / file: job for job in listed for file in job.files}
    found: dict[Job, list[Output]] = {}
    for output in outputs:
        if (job := job_of.get(output.path)) is not None:
            found.setdefault(job, []).append(output)
    stage_of = {
        output.path: job.stage
        for job, members in found.items()
        for output in members
        if output.pending
    }
    planned = []
    for job, members in found.items():
        if any(output.pending for output in members):
            remade = {stage_of[path] for path in members[0].inputs if path in stage_of}
            reasons = tuple(_reasons(config, job, members))
            if not reasons and not remade:
                reasons = (_UNSEEN,)
            planned.append(Planned(job, reasons, frozenset(remade)))
    order = list(STAGES)
    return sorted(planned, key=lambda one: (order.index(one.job.stage), one.job.names)), len(found)


def _reasons(config: Config, job: Job, outputs: Sequence[Output]) -> Iterator[str]:
    """Yield the reasons of a job for which its inputs need not be made again."""
    if any(output.status == "missing" for output in outputs):
        yield "its output does not exist"
        return
    output = outputs[0]
    own = [*_changed_settings(config, job, output), *_changed_draws(job, output)]
    if output.status == "params changed" and not own:
        yield "another option of its command changed"
    yield from own
    if cause := _CAUSES.get(output.status):
        yield cause


def _changed_settings(config: Config, job: Job, output: Output) -> Iterator[str]:
    """Yield each key whose value differs from that of the recorded command."""
    text = _option(output.command, "--settings")
    if text is None:
        return
    was: dict[str, Any] = json.loads(text)
    now = stage_values(config, job.stage, job.row)
    for change in changed_keys(was, now):
        line = change.line()
        yield f"{job.stage}'s {line}" if change.key == "version" else line


def _changed_draws(job: Job, output: Output) -> Iterator[str]:
    """Yield the change of a shard's draws, where the recorded command has others."""
    first, count = (_option(output.command, name) for name in ("--first-draw", "--count"))
    if first is None or count is None or job.first is None or job.count is None:
        return
    was, now = (int(first), int(count)), (job.first, job.count)
    if was != now:
        yield f"sizes: draws {_span(*was)} → {_span(*now)}"


def _span(first: int, count: int) -> str:
    return f"{first:,} to {first + count - 1:,}"


def _option(words: Sequence[str], name: str) -> str | None:
    """Return the value of an option of a command, None without the option."""
    return words[words.index(name) + 1] if name in words[:-1] else None


def describe(planned: Sequence[Planned], jobs: int) -> Iterator[str]:
    """Yield the lines: each stage with its number of jobs, its reasons below it, the total."""
    stages: dict[str, list[Planned]] = {}
    for one in planned:
        stages.setdefault(one.job.stage, []).append(one)
    for stage, members in stages.items():
        yield f"{stage}: {_jobs(len(members))}"
        counts = Counter(reason for one in members for reason in one.reasons)
        for reason, count in counts.items():
            some = f" ({_jobs(count)})" if count < len(members) else ""
            yield f"    {reason}{some}"
        remade = set().union(*(one.remade for one in members))
        if remade:
            names = ", ".join(name for name in STAGES if name in remade)
            count = sum(bool(one.remade) for one in members)
            some = f" ({_jobs(count)})" if count < len(members) else ""
            yield f"    inputs that are made again: {names}{some}"
    yield f"{len(planned)} of {_jobs(jobs)} would run" if planned else "nothing would run"


def _jobs(count: int) -> str:
    return f"{count} job" if count == 1 else f"{count} jobs"
