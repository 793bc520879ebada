"""SIGTERM: what SLURM sends before it kills, at the time limit, at preemption and on scancel.

A stage ends at once, with its temporary files removed and its finished parts kept. A training loop
first finishes its step and saves. Either way the same command, run again, goes on from there.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(SystemExit):
    """The stage was told to stop; the exit code is a shell's for SIGTERM."""

    def __init__(self, said: str) -> None:
        super().__init__(128 + signal.SIGTERM)
        self.said = said


def stop_at_once_on_sigterm() -> None:
    """From here on SIGTERM raises `Stopped`, so that what is being written is cleaned up."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Stopped("stopped by SIGTERM; run the same again: finished parts are kept")

    signal.signal(signal.SIGTERM, stop)


@contextmanager
def noting_sigterm() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM stops nothing; give a function that says whether it came."""
    came = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)
