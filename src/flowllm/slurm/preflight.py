"""Checks against a SLURM site before anything is submitted: what would be refused or pend for ever.

Each attempt of each rule is compared with the partitions of the site's file, with the limits that
SLURM's own partitions have, and with `sbatch --test-only`, which refuses what no node can run.
"""

import getpass
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowllm.errors import FlowllmError
from flowllm.slurm.commands import ask, user_limit
from flowllm.slurm.file_systems import is_local
from flowllm.slurm.refusals import read_refusal
from flowllm.slurm.requests import (
    Request,
    SubmitSettings,
    chosen_partition,
    exceeded,
    read_partitions,
    sbatch_words,
)

MIN_JOB_AGE = 240
"""Seconds that SLURM must remember ended jobs for, so that squeue finds them: the plugin asks at
least every 180."""

_CURES = {
    "policy": "lower {lower}, or use another `qos` in {file}; `sacctmgr show qos` lists the limits",
    "feature": "correct `constraint` in {file}; `sinfo -o '%P %f'` lists the nodes' features",
    "account": "correct `account` in {file}; `sacctmgr show assoc user=$USER format=account,qos` "
    "lists yours",
    "qos": "correct `qos` in {file}; `sacctmgr show assoc user=$USER format=account,qos` lists "
    "yours",
    "gres": "correct `gpu_gres` and `gpu_type` in {file}; `sinfo -o '%P %G'` lists the GPUs",
    "partition name": "correct the names under `partitions` in {file}; `sinfo` lists them",
    "invalid partition": "correct the names under `partitions` in {file}; `sinfo` lists them",
    "configuration": "no node of that partition has so much: lower {lower}, or correct `partitions`"
    " or `gpu_type` in {file}; `sinfo -o '%P %l %m %c %G'` lists what nodes have",
    "memory": "no node of that partition has so much: lower {lower}, or correct `partitions` in "
    "{file}; `sinfo -o '%P %m'` lists what nodes have",
}
"""What to do, by a word of sbatch's message; the first that it contains."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        state: ok, failed, or warning for what need not be wrong.
        subject: what was checked.
        said: what was found, or what is wrong and what to do.
    """

    state: Literal["ok", "failed", "warning"]
    subject: str
    said: str

    def line(self) -> str:
        """Return the outcome as one line."""
        return f"{self.state:8}{self.subject}: {self.said}"


def preflight(
    requests: Sequence[Request], settings: SubmitSettings, folders: Mapping[str, Path]
) -> Iterator[Finding]:
    """Make all checks.

    Args:
        requests: what all attempts of all rules request.
        settings: settings of the profile.
        folders: folders that the nodes must see, by what they are.

    Raises:
        FlowllmError: the site's file cannot be read.
    """
    file = settings.partition_file
    partitions = read_partitions(file) if file else []
    answer = ask(["sinfo", "--noheader", "--format=%P"])
    problems = _Problems(str(file or "slurm/site.yaml"))
    limits = _partition_limits() if answer.ok else {}
    tested: dict[tuple[str, ...], str | None] = {}
    for request in requests:
        if request.name in problems.rules:
            continue
        partition = chosen_partition(request, partitions)
        if partition is None and partitions:
            problems.add_misfit(request, partitions)
            continue
        try:
            words = sbatch_words(request, partition, settings)
        except FlowllmError as error:
            problems.add(request, str(error), "correct {file}")
            continue
        if not answer.ok:
            continue
        if refused := _refused(words, tested):
            problems.add_refused(request, partition, refused)
        else:
            problems.add_time(request, partition, limits)
    yield from problems.findings(len({one.name for one in requests}), slurm=answer.ok)
    if answer.ok:
        yield from _submit_limit(requests, settings)
        yield _status_command(settings.status_command)
        yield from _folders(folders)
    else:
        yield Finding("warning", "SLURM", f"not asked: {answer.error}")


def refuse_failed(findings: Sequence[Finding]) -> None:
    """Raise an error if a check failed.

    Raises:
        FlowllmError: at least one check failed.
    """
    if any(one.state == "failed" for one in findings):
        raise FlowllmError("the jobs do not fit this SLURM, see above; none was submitted")


def _refused(words: Sequence[str], tested: dict[tuple[str, ...], str | None]) -> str | None:
    """Return sbatch's message where it refuses a job, None where it accepts it."""
    key = tuple(words)
    if key not in tested:
        answer = ask(["sbatch", "--test-only", *words, "--wrap=true"])
        passes = answer.ok or read_refusal(answer.error).passes
        tested[key] = None if passes else answer.error
    return tested[key]


def _partition_limits() -> dict[str, float]:
    """Return the time limit in minutes of each of SLURM's partitions that has one."""
    from snakemake_executor_plugin_slurm.partitions import parse_scontrol_partition_output
    from snakemake_executor_plugin_slurm.utils import parse_time_to_minutes

    text = "\n".join(ask(["scontrol", "show", "partition"]).lines)
    found = parse_scontrol_partition_output(text)
    times = {name: given.get("MaxTime", "UNLIMITED") for name, given in found.items()}
    return {
        name: parse_time_to_minutes(time) for name, time in times.items() if time != "UNLIMITED"
    }


class _Problems:
    """What fits nowhere, collected so that one cause of many rules and attempts is one message."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: dict[tuple[str, str], dict[str, int]] = {}
        self.rules: set[str] = set()

    def add(self, request: Request, problem: str, cure: str) -> None:
        """Add what is wrong with the first attempt of a rule that does not fit."""
        lower = "`mem_mb`, `cpus` or `gpus` under resources in the configuration"
        if request.attempt > 1:
            lower += ", or `retries` (a later attempt requests more memory and time)"
        said = cure.format(file=self.file, lower=lower)
        self.found.setdefault((problem, said), {})[request.name] = request.attempt
        self.rules.add(request.name)

    def add_misfit(self, request: Request, partitions: Sequence[Any]) -> None:
        """Add a request that fits no partition of the site's file."""
        reasons = []
        for partition in partitions:
            more = exceeded(request, partition) or ["the plugin excludes it"]
            reasons.append(f"{partition.name} ({'; '.join(more)})")
        key = f"resources.{request.name}"
        cure = f"lower {key} in the configuration, or correct the limits in {{file}}"
        if request.attempt > 1:
            cure = (
                f"start with --retries {request.attempt - 2}, lower {key} in the configuration "
                f"(attempt {request.attempt} requests {request.attempt} times as much), "
                "or correct the limits in {file}"
            )
        self.add(request, f"fits no partition: {', '.join(reasons)}", cure)

    def add_time(self, request: Request, partition: str | None, limits: dict[str, float]) -> None:
        """Add a request of more time than SLURM's partition has, which sbatch would accept."""
        limit, asked = limits.get(partition or ""), request.resources.get("runtime") or 0
        if limit is not None and asked > limit:
            self.add(
                request,
                f"{asked} minutes, but SLURM's partition {partition} has a limit of {limit:.0f}: "
                "the job would wait for ever",
                f"lower resources.{request.name}.runtime in the configuration to {limit:.0f}, or "
                f"correct max_runtime of {partition} in {{file}}",
            )

    def add_refused(self, request: Request, partition: str | None, said: str) -> None:
        """Add a request that sbatch refuses."""
        lowered = said.lower()
        cures = (cure for word, cure in _CURES.items() if word in lowered)
        where = f" in partition {partition}" if partition else ""
        cure = next(cures, "see docs/site.md")
        self.add(request, f"sbatch refuses the job{where}: {said}", cure)

    def findings(self, rules: int, *, slurm: bool) -> Iterator[Finding]:
        """Yield one finding per problem, or one that all requests fit."""
        for (problem, cure), by_rule in self.found.items():
            names = [
                name if attempt == 1 else f"{name} (attempt {attempt})"
                for name, attempt in by_rule.items()
            ]
            yield Finding("failed", ", ".join(names), f"{problem}. To do: {cure}")
        if not self.found:
            with_slurm = " and of SLURM" if slurm else ""
            yield Finding(
                "ok", "jobs", f"{rules} rules fit the partitions of {self.file}{with_slurm}"
            )


def _submit_limit(requests: Sequence[Request], settings: SubmitSettings) -> Iterator[Finding]:
    """Compare `jobs` with the limits on submitted jobs of accounts and QOS."""
    pairs = {(one.resources.get("qos"), one.resources.get("slurm_account")) for one in requests}
    for qos, account in sorted(pairs, key=str):
        limit = user_limit(qos, account, getpass.getuser())
        if limit is None:
            continue
        number, source = limit
        if settings.jobs is not None and settings.jobs > number:
            yield Finding(
                "warning",
                "jobs",
                f"{settings.jobs} at once, but {source} allows {number} submitted jobs. To do: "
                f"start with --jobs {number}, less your other jobs",
            )


def _status_command(command: str | None) -> Finding:
    """Check that the states of jobs can be asked for."""
    subject = "slurm-status-command"
    if command == "squeue":
        from snakemake_executor_plugin_slurm.job_status_query import get_min_job_age

        age = get_min_job_age()
        if age is not None and age < MIN_JOB_AGE:
            said = (
                f"squeue, but SLURM forgets ended jobs after {age} seconds (MinJobAge), so that "
                "snakemake would miss them. To do: use sacct, or have MinJobAge raised to "
                f"{MIN_JOB_AGE}"
            )
            return Finding("failed", subject, said)
        return Finding("ok", subject, f"squeue, with MinJobAge {age}")
    answer = ask(["sacct", "--allocations", "--noheader", "--starttime=now-1hours"])
    if answer.ok:
        return Finding("ok", subject, "sacct")
    said = f"sacct: {answer.error}. To do: set slurm-status-command: squeue in the profile"
    return Finding("failed", subject, said)


def _folders(folders: Mapping[str, Path]) -> Iterator[Finding]:
    """Warn of folders on file systems that only this machine has."""
    hosts = set(ask(["sinfo", "--noheader", "--Node", "--format=%n"]).lines)
    here = socket.gethostname().split(".")[0]
    if {host.split(".")[0].strip() for host in hosts} == {here}:
        return  # a cluster of this machine alone
    for name, path in folders.items():
        if kind := is_local(path):
            yield Finding(
                "warning",
                name,
                f"{path} is on a file system of type {kind}, which other machines see only if this "
                "one exports it. To do: if it does not, use a folder that all nodes see",
            )


def needed_folders(run_dir: Path, clone: Path) -> dict[str, Path]:
    """Return the folders that all nodes must see: of the run, the clone, and the models."""
    cache = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    return {"run_dir": run_dir, "clone": clone, "HF_HOME": Path(cache)}
