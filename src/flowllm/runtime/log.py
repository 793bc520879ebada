"""The log of a stage, and the progress of its work."""

import logging
import sys
import time
from pathlib import Path

from flowllm.plain_text import printable, redacted

log = logging.getLogger("flowllm")

PROGRESS_SECONDS = 10.0
"""Shortest time between two lines of progress."""


class _PlainFormatter(logging.Formatter):
    """Formatter that hides secrets of addresses and escapes control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(redacted(super().format(record)), keep="\n\t")


def setup_logging(log_path: Path | None) -> None:
    """Send the package's log records to the terminal and, where given, to a job's log file."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_path is not None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
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


class Progress:
    """Progress of a long job as log lines: done of total, percentage, rate, time left.

    Lines are readable in a log file, through a pipe and with several jobs on one terminal, unlike a
    progress bar.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        """Start at `done` of `total`; the rate excludes what was done before a resume."""
        self.what, self.total, self.done = what, total, done
        self._resumed_at = done
        self._started = self._last = time.perf_counter()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count`; log a line if `PROGRESS_SECONDS` have passed or the job is complete."""
        self.done += count
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


def _clock(seconds: float) -> str:
    """Return seconds as h:mm:ss, or a question mark for infinity."""
    if seconds == float("inf"):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
