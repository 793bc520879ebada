"""SIGTERM, which SLURM sends before SIGKILL: at the time limit, at preemption and on scancel.

A stage ends at once, removes its temporary files and keeps its finished parts. A training loop
first finishes its step and saves. In both cases the same command, run again, resumes from there.
A stage that has written its output writes its record too, and ends with exit code 0.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(SystemExit):
    """Exception of a stage that SIGTERM stops; its exit code is that of a shell for SIGTERM."""

    def __init__(self, said: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.said = said


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Stopped("stopped by SIGTERM; run the same command again: finished parts are kept")


def stop_at_once_on_sigterm() -> None:
    """Let SIGTERM raise `Stopped`, so that temporary files are removed."""
    signal.signal(signal.SIGTERM, _stop)


@contextmanager
def finishing() -> Iterator[None]:
    """Ignore SIGTERM within the block, which ends a stage whose output is complete.

    Where SIGTERM raises `Stopped`, it is ignored after the block too, until the process ends. If
    the block fails, SIGTERM does what it did before.
    """
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    done = False
    try:
        yield
        done = True
    finally:
        if not done or before is not _stop:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def noting_sigterm() -> Iterator[Callable[[], bool]]:
    """Give a function that returns whether SIGTERM came; in the block it stops nothing."""
    came = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)
