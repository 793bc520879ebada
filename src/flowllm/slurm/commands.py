"""Calls of SLURM's commands."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_PREFIX = re.compile(r"^(\w+: )?(error|fatal|allocation failure): ")
"""Words before SLURM's messages: `sbatch: error: ...`, `allocation failure: ...`."""

MAX_SECONDS = 60
"""Longest wait for an answer; a controller that is restarting answers late."""


@dataclass(frozen=True)
class Answer:
    """The answer of a command.

    Attributes:
        ok: whether its exit code is 0.
        lines: lines of its standard output.
        error: its standard error in one line, or why it gave no answer.
    """

    ok: bool
    lines: tuple[str, ...]
    error: str


def ask(words: Sequence[str]) -> Answer:
    """Run a command of SLURM."""
    if shutil.which(words[0]) is None:
        return Answer(False, (), f"no command {words[0]} on this machine")
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=MAX_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Answer(False, (), f"{words[0]} gave no answer in {MAX_SECONDS} seconds")
    errors = [_PREFIX.sub("", line).strip() for line in done.stderr.splitlines() if line.strip()]
    return Answer(
        done.returncode == 0,
        tuple(line for line in done.stdout.splitlines() if line.strip()),
        "; ".join(errors) or f"{words[0]} ended with exit code {done.returncode}",
    )


def user_limit(qos: str | None, account: str | None, user: str) -> tuple[int, str] | None:
    """Return the least number of jobs that a user may have submitted, and what limits it.

    None where the accounting database sets no limit, or is not available.
    """
    found: list[tuple[int, str]] = []
    words = ["format=Account,Partition,DefaultQOS,MaxSubmitJobs,GrpSubmitJobs"]
    for line in ask(["sacctmgr", "-nP", "show", "assoc", f"user={user}", *words]).lines:
        name, _, default, *limits = line.split("|")
        if account in (None, name):
            found += [(int(one), f"account {name}") for one in limits if one.isdigit()]
            qos = qos or default or None
    if qos:
        words = ["format=MaxSubmitJobsPerUser,MaxSubmitJobsPerAccount,GrpSubmitJobs"]
        for line in ask(["sacctmgr", "-nP", "show", "qos", f"name={qos}", *words]).lines:
            found += [(int(one), f"QOS {qos}") for one in line.split("|") if one.isdigit()]
    return min(found, default=None)
