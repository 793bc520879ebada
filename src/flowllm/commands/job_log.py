"""What the log of a job tells about its last attempt."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowllm.plain_text import printable

_TAIL_BYTES = 1 << 16
"""Bytes read from the end of a log."""

_RECORD = re.compile(r"\d\d:\d\d:\d\d (?P<level>[A-Z]+) (?P<text>.*)")

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
        error: last line of the last error, None without one.
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
    """Read the end of a job's log; None if there is none, or it is empty."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    records = _records(text, stage)
    if not records:
        return None
    error, done, total, rate = None, None, None, None
    for level, lines in records:
        if level in ("ERROR", "CRITICAL"):
            error = _cause(lines)
        elif found := _PROGRESS.match(lines[0]):
            done, total, rate = int(found["done"]), int(found["total"]), float(found["rate"])
    last = records[-1][1][-1]
    finished = any(lines[0].startswith(f"{stage}: done in ") for _, lines in records)
    return Attempt(finished, error, printable(last), done, total, rate)


def _records(text: str, stage: str) -> list[tuple[str, list[str]]]:
    """Return level and lines of each record since the stage last started."""
    records: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        found = _RECORD.fullmatch(line)
        if found is None:
            if records and line.strip():
                records[-1][1].append(line)
            continue
        if found["text"].startswith(f"{stage}: started, "):
            records.clear()
        records.append((found["level"], [found["text"]]))
    return records


def _cause(lines: Sequence[str]) -> str:
    """Return the line of an error that names its cause: a traceback's last, else the first."""
    traceback = any(line.startswith("Traceback ") for line in lines)
    return printable(lines[-1] if traceback else " ".join(line.strip() for line in lines))
