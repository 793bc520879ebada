"""Processes on this machine: which host it is, and whether a process of a number still runs."""

import os
import re
import socket
from pathlib import Path

HOST = socket.gethostname()


def _place() -> str:
    """Return what tells the numbers of processes here from those of a container of this name.

    It is the machine's start (its boot id) and the process namespace; empty where there is no
    Linux to ask.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}-{re.sub('[^0-9]', '', str(Path('/proc/self/ns/pid').readlink()))}"
    except OSError:
        return ""


PLACE = _place()
"""Processes of one host name and one place have different numbers, and can be asked for."""


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
