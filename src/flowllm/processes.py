"""Processes on this machine: which host it is, and whether a process of a number still runs."""

import os
import socket
from pathlib import Path

HOST = socket.gethostname()


def start_time(process: int) -> int | None:
    """When a process started, in ticks since the machine did; None where that is not to be had.

    Numbers come round again; a number with its start does not.
    """
    status = _status(process)
    return None if status is None else int(status[19])


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, and another user's
        return True
    status = _status(process)
    return status is None or status[0] != "Z"  # a zombie has ended, and nobody has asked how


def _status(process: int) -> list[str] | None:
    """Linux' /proc/PID/stat from the state on; the name before it may hold spaces."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
