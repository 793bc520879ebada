"""The log of a stage, and the progress of its work.

Each attempt is appended to the log of the earlier ones and begins with a line that identifies it.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from flowllm.io.processes import HOST
from flowllm.plain_text import printable, redacted

log = logging.getLogger("flowllm")

PROGRESS_SECONDS = 10.0
"""Shortest time between two lines of progress."""

SAME_AGAIN = "Another attempt would fail in the same way."
"""Last line of an attempt whose error does not depend on the node, the memory or the time."""

_ATTEMPT = "=== attempt "
_BEGUN = "FLOWLLM_LOG"
_RECORD = re.compile(r"^\d\d:\d\d:\d\d ([A-Z]+) ", re.MULTILINE)
_LONGEST_MESSAGE = 500


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        message: the cause in one line.
        recurs: whether another attempt would fail in the same way.
    """

    message: str
    recurs: bool = False


class _PlainFormatter(logging.Formatter):
    """Formatter that hides secrets of addresses and escapes control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)), keep="\n\t")


def setup_logging(log_path: Path | None) -> None:
    """Send the package's log records to the terminal and, where given, to a job's log file."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_path is not None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        _begin_attempt(log_path)
        handlers.append(logging.FileHandler(log_path, mode="a"))
    formatter = _PlainFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _begin_attempt(path: Path) -> None:
    """Append the line that begins an attempt.

    The other processes of a job, which run the same command, inherit `_BEGUN` and append nothing.
    """
    if os.environ.get(_BEGUN) == str(path):
        return
    os.environ[_BEGUN] = str(path)
    job = os.environ.get("SLURM_JOB_ID")
    where = f"process {os.getpid()} on {HOST}" + (f", SLURM job {job}" if job else "")
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{_ATTEMPT}{attempts(path) + 1}, {datetime.now():%Y-%m-%d %H:%M:%S}, {where}\n")


def attempts(path: Path) -> int:
    """Return the number of attempts in a log; 0 if there is no log."""
    return len(_attempts(path))


def last_failure(path: Path, slurm_job: str | None = None) -> Failure | None:
    """Return why the last attempt in a log failed; None if it has no error.

    Args:
        path: log of a stage.
        slurm_job: number of a SLURM job, if the attempt must be of this job.
    """
    return find_failure(last_records(path, slurm_job))


def last_records(path: Path, slurm_job: str | None = None) -> list[tuple[str, str]]:
    """Return level and text of each record of the last attempt in a log.

    Args:
        path: log of a stage.
        slurm_job: number of a SLURM job, if the attempt must be of this job.
    """
    texts = _attempts(path)
    if not texts:
        return []
    begin, _, text = texts[-1].partition("\n")
    if slurm_job is not None and not begin.endswith(f", SLURM job {slurm_job}"):
        return []
    _, *parts = _RECORD.split(text)  # text before the first record, then level and text of each
    return list(zip(parts[::2], parts[1::2], strict=True))


def find_failure(records: Sequence[tuple[str, str]]) -> Failure | None:
    """Return why an attempt with these records failed; None if it has no error."""
    errors = [said for level, said in records if level == "ERROR"]
    recurs = bool(errors) and errors[-1].strip() == SAME_AGAIN
    errors = errors[:-1] if recurs else errors
    if errors:
        return Failure(_one_line(errors[-1]), recurs)
    level, said = records[-1] if records else ("", "")
    return Failure(_one_line(said)) if level == "WARNING" and "SIGTERM" in said else None


def _attempts(path: Path) -> list[str]:
    """Return the texts of the attempts in a log, each with its first line."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = re.split(rf"^{_ATTEMPT}", text, flags=re.MULTILINE)
    return found[1:]


def _one_line(said: str) -> str:
    """Return a message in one line; of a traceback the last line, which has the error."""
    text = said.strip().splitlines()[-1] if "Traceback (most recent" in said else said
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]} ..."


@contextmanager
def progress_bars() -> Iterator[None]:
    """Show progress as bars in place of log lines within the block, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    # The workflow's environment, which reads logs with this module, may lack tqdm.
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm([log]):
        Progress.as_bar = True
        try:
            yield
        finally:
            Progress.as_bar = False


class Progress:
    """Progress of a long job as log lines: done of total, percentage, rate, time left.

    Lines are readable in a log file, through a pipe and with several jobs on one terminal, unlike a
    progress bar, which `progress_bars` shows for a command at a terminal.

    Attributes:
        as_bar: whether new instances are bars.
    """

    as_bar = False

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        """Start at `done` of `total`; the rate excludes what was done before a resume."""
        self.what, self.total, self.done = what, total, done
        self._resumed_at = done
        self._bar = _bar(what, total, done) if self.as_bar else None
        self._started = self._last = time.perf_counter()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count`; log a line if `PROGRESS_SECONDS` have passed or the job is complete."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            self._bar.set_postfix_str(note)
            if self.done >= self.total:
                self._bar.close()
            return
        now = time.perf_counter()
        if now - self._last < PROGRESS_SECONDS and self.done < self.total:
            return
        self._last = now
        rate = (self.done - self._resumed_at) / max(now - self._started, 1e-9)
        left = (self.total - self.done) / rate if rate > 0 else float("inf")
        log.info(
            "%s: %d of %d (%.0f %%), %.3g/s, %s left%s",
            self.what,
            self.done,
            self.total,
            100 * self.done / max(self.total, 1),
            rate,
            _clock(left),
            f", {note}" if note else "",
        )


def _bar(what: str, total: int, done: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=what, initial=done)


def _clock(seconds: float) -> str:
    """Return seconds as h:mm:ss, or a question mark for infinity."""
    if seconds == float("inf"):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
