"""Identity of this host, and whether a process with a given number is alive."""

import os
import re
import socket
from pathlib import Path

HOST = socket.gethostname()


def _place() -> str:
    """Return the boot id and the process namespace; empty on systems other than Linux.

    Containers may have equal host names and process numbers. This text differs between them.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
        return f"{boot}-{re.sub('[^0-9]', '', str(Path('/proc/self/ns/pid').readlink()))}"
    except OSError:
        return ""


PLACE = _place()
"""Processes with equal `HOST` and `PLACE` have different numbers, and can be queried."""


def start_time(process: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None where this is unknown.

    The system reuses process numbers; number and start together are unique.
    """
    status = _status(process)
    return None if status is None else int(status[19])


def is_alive(process: int) -> bool:
    """Return whether a process with this number is alive on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, of another user
        return True
    status = _status(process)
    return status is None or status[0] != "Z"  # a zombie has ended


def _status(process: int) -> list[str] | None:
    """Return the fields of Linux's /proc/PID/stat from the state on (names may have spaces)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
