"""Jobs that SLURM keeps in the queue although they cannot start as they are."""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence

from flowllm.slurm.commands import ask

_REASONS = {
    "PartitionConfig": "no node of its partition has what it requests",
    "PartitionNodeLimit": "it requests more nodes than its partition has",
    "PartitionTimeLimit": "it requests more time than its partition allows",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "BadConstraints": "no node has the features that it requests",
    "InvalidAccount": "its account is not valid",
    "AccountNotAllowed": "its account may not use the partition",
    "InvalidQOS": "its quality of service is not valid",
    "QOSNotAllowed": "its quality of service may not use the partition",
    "ReservationDeleted": "its reservation is gone",
    "JobHeldUser": "it is held (scontrol release starts it)",
    "JobHeldAdmin": "it is held by an administrator",
    "JobHoldMaxRequeue": "it was queued again too often and is held (scontrol release starts it)",
}
"""Reasons that do not pass by waiting for other jobs, and what they mean (squeue's manual)."""


def meaning(reason: str) -> str | None:
    """Return what a reason of squeue means if the job cannot start as it is, else None."""
    if "requeued held" in reason:
        return "its start failed on a node, and it is held (scontrol release starts it)"
    word = reason.strip().split(",")[0].split(" ")[0]
    if word in _REASONS:
        return _REASONS[word]
    # QOSMaxCpuPerJobLimit, AssocMaxWallDurationPerJobLimit, QOSMaxGRESPerNode ...
    if word.startswith(("QOS", "Assoc")) and ("PerJob" in word or "PerNode" in word):
        return "it requests more than a limit of its account or quality of service per job"
    return None


class Watch:
    """Says once of each job of a run that it cannot start."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    async def messages(self, jobs: Collection[str], *, stopping: bool) -> list[str]:
        """Ask squeue for the reasons of waiting jobs, and return messages for new ones.

        Args:
            jobs: numbers of the run's jobs.
            stopping: whether snakemake waits for its jobs before it ends; those that cannot start
                are then cancelled, since it would wait for ever.
        """
        words = ["squeue", "--me", "--noheader", "--states=PENDING", "--format=%i|%r|%k"]
        answer = await asyncio.to_thread(ask, words)
        waiting = [line.split("|", 2) for line in answer.lines]
        stuck = [one for one in waiting if one[0] in jobs and meaning(one[1]) is not None]
        messages = list(self._new(stuck))
        if stopping and stuck:
            numbers = [number for number, _, _ in stuck]
            await asyncio.to_thread(ask, ["scancel", *numbers])
            messages.append(f"cancelled, since they cannot start: {', '.join(numbers)}")
        return messages

    def _new(self, stuck: Iterable[Sequence[str]]) -> Iterator[str]:
        for number, reason, comment in stuck:
            if number in self.said:
                continue
            self.said.add(number)
            yield (
                f"SLURM job {number} ({comment}) waits and cannot start: {reason}, "
                f"{meaning(reason)}. To do: press Ctrl-C, which cancels the jobs of this run, "
                "correct slurm/site.yaml or the resources of the rule, and start again; finished "
                "outputs are kept"
            )
