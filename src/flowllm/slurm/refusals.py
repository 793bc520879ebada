"""What sbatch says when it does not accept a job: for now, for ever, or unclear."""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["limit", "controller", "final", "unclear"]


@dataclass(frozen=True)
class Refusal:
    """A refusal of SLURM.

    Attributes:
        kind: `limit`: as many jobs as are allowed are queued or running; `controller`: SLURM does
            not answer, or did not answer in time, and may have accepted the job; `final`: this job
            is never accepted; `unclear`: none of these.
        reason: SLURM's own words, in one line.
    """

    kind: Kind
    reason: str

    @property
    def passes(self) -> bool:
        """Whether the same job may be accepted later."""
        return self.kind in ("limit", "controller")


_PATTERNS: tuple[tuple[Kind, str], ...] = (
    # The names of submit limits of QOS and associations (SLURM: src/slurmctld/acct_policy.c).
    ("limit", r"(Assoc|QOS)(Max|Grp)Submit\w*"),
    ("limit", r"maximum number of jobs|MaxJobCount|temporarily unable to accept job"),
    (
        "controller",
        r"Socket timed out|Unable to contact|Connection (refused|reset|timed out)|Zero Bytes|"
        r"backup controller|Transport endpoint|communication connection failure|"
        r"Message (receive|send) failure|Unexpected message received|"
        r"Resource temporarily unavailable|error writing script|Failed to connect to (any|socket)|"
        r"not responding|gave no answer",
    ),
    (
        "final",
        r"[Ii]nvalid (account|partition|feature|qos|generic resource|gres|user|reservation|wckey|"
        r"license|job name|node|constraint|option)|Invalid .*specification|(Assoc|QOS)(Max|Grp)\w+|"
        r"configuration is not available|processors requested than permitted|"
        r"count specification invalid|time limit is invalid|Memory (required|specification)|"
        r"not permitted to use|permission denied|unrecognized option|unrecognized argument|"
        r"appears to be invalid|Requested reservation",
    ),
)

_SBATCH = re.compile(r"The error message was '(.*?)'\.?\n\s+sbatch call:", re.DOTALL)


def read_refusal(said: str) -> Refusal:
    """Return what a refusal means.

    Args:
        said: message of the plugin, with the words of sbatch or sacctmgr.
    """
    found = _SBATCH.search(said)
    reason = " ".join((found[1] if found else said).split())
    for kind, pattern in _PATTERNS:
        if re.search(pattern, reason):
            return Refusal(kind, reason)
    return Refusal("unclear", reason)
