"""SIGTERM, which SLURM sends before SIGKILL: at the time limit, at preemption and on scancel.

A stage ends at once, removes its temporary files and keeps its finished parts. A training loop
first finishes its step and saves. In both cases the same command, run again, resumes from there.
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


def stop_at_once_on_sigterm() -> None:
    """Let SIGTERM raise `Stopped`, so that temporary files are removed."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM; run the same command again: finished parts are kept")

    signal.signal(signal.SIGTERM, stop)


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
