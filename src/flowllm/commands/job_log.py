"""What the log of a job tells about its last attempt."""

import re
from dataclasses import dataclass
from pathlib import Path

from flowllm.plain_text import printable
from flowllm.runtime.log import find_failure, last_records

# train_rfm first counts the shards that it prepares, and download counts bytes of each file.
_PROGRESS = re.compile(
    r"(?!.*( shards prepared|, bytes): ).+?: "
    r"(?P<done>\d+) of (?P<total>\d+) \(\d+ %\), (?P<rate>\S+)/s, "
)


@dataclass(frozen=True)
class Attempt:
    """The last attempt of a job, from its log.

    Attributes:
        finished: whether the stage finished.
        error: the cause of its failure in one line, None without one.
        last: last line of the log.
        done: items that are done, None without a line of progress.
        total: number of items, None without a line of progress.
        rate: items per second, None without a line of progress.
    """

    finished: bool
    error: str | None
    last: str
    done: int | None = None
    total: int | None = None
    rate: float | None = None


def last_attempt(path: Path, stage: str) -> Attempt | None:
    """Read a job's log; None if there is none, or its last attempt has written nothing yet."""
    records = last_records(path)
    if not records:
        return None
    done, total, rate = None, None, None
    for _, said in records:
        if found := _PROGRESS.match(said):
            done, total, rate = int(found["done"]), int(found["total"]), float(found["rate"])
    failure = find_failure(records)
    error = None if failure is None else printable(failure.message)
    finished = any(said.startswith(f"{stage}: done in ") for _, said in records)
    last = records[-1][1].strip().splitlines()[-1:]
    return Attempt(finished, error, printable("".join(last)), done, total, rate)
