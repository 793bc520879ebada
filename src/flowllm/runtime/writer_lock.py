"""One writer of an output at a time, on whichever node: `.NAME.lock` beside it says who it is.

When `snakemake` dies its SLURM jobs run on, and a new `snakemake` submits them again. A writer on
the same host is alive if its process is. Of another host's, or of a container's with the same host
name and process numbers of its own, nothing can be asked, so every writer
touches its lock again and again, and a lock that stays untouched while it is watched is a dead
one's: no clocks are compared, and no scheduler is needed.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from flowllm.errors import FlowllmError
from flowllm.io.files import naming_full_disk
from flowllm.io.processes import HOST, PLACE, is_alive, start_time
from flowllm.runtime.log import log

PATIENCE_SECONDS = 60.0
"""Longest wait for another writer to end; as long must its lock be untouched to be a dead one's."""

BEAT_SECONDS = 10.0
"""A writer touches its lock this often."""

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Writer:
    """Who writes.

    Attributes:
        host: name of its node.
        place: boot and process namespace on it (`processes.PLACE`).
        process: its number there.
        started: when that process started (`processes.start_time`).
        slurm_job: number of its SLURM job, None outside of one.
    """

    host: str
    place: str
    process: int
    started: int | None
    slurm_job: str | None


@dataclass(frozen=True)
class _Seen:
    """A lock at one moment: what it says, and when it was last touched."""

    text: str
    touched: int


@contextmanager
def only_writer(output: Path) -> Iterator[Callable[[], bool]]:
    """Hold an output's lock within the block.

    Args:
        output: what is written; its folder is made where missing.

    Yields:
        A function that says whether the lock is still held: a process that was suspended for
        longer than `PATIENCE_SECONDS` may have lost it.

    Raises:
        FlowllmError: another process writes the output, and has not ended in `PATIENCE_SECONDS`.
    """
    lock = lock_path(output)
    lock.parent.mkdir(parents=True, exist_ok=True)
    process = os.getpid()
    mine = Writer(HOST, PLACE, process, start_time(process), os.environ.get("SLURM_JOB_ID"))
    text = json.dumps(asdict(mine))
    _take(lock, text)

    def is_held() -> bool:
        seen = _look(lock)
        return seen is not None and seen.text == text

    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS) and is_held():
            os.utime(lock)

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield is_held
    finally:
        ended.set()
        heart.join()
        if is_held():
            lock.unlink()


def lock_path(output: Path) -> Path:
    """Where the lock of an output lies."""
    return output.with_name(f".{output.name}.lock")


def _take(lock: Path, text: str) -> None:
    """Make the lock, as soon as no living writer has it.

    Raises:
        FlowllmError: one has it for too long.
    """
    first: _Seen | None = None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _made(lock, text):
        seen = _look(lock)
        if seen is None:  # its writer has just ended
            continue
        holder = _writer(seen)
        if first is None:
            first = seen
            log.info("%s: %s has it, waiting", lock, _named(holder))
        over = time.monotonic() >= deadline
        here = holder is not None and (holder.host, holder.place) == (HOST, PLACE)
        dead = not _runs(holder) if here else over and seen == first
        if dead:
            log.info("%s: %s has ended without giving it back", lock, _named(holder))
            lock.unlink(missing_ok=True)
        elif over:
            raise FlowllmError(_refusal(lock, holder))
        else:
            time.sleep(_LOOK_SECONDS)


def _made(lock: Path, text: str) -> bool:
    """Make the lock where there is none; of several processes one succeeds."""
    with naming_full_disk(lock):
        try:
            file = lock.open("x")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(text)
        except OSError:
            lock.unlink()
            raise
    return True


def _look(lock: Path) -> _Seen | None:
    """Read a lock; None where there is none. A network file system asks its server at opening."""
    try:
        with lock.open() as file:
            return _Seen(file.read(), os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None


def _writer(seen: _Seen) -> Writer | None:
    """Whose lock it is; None while that is being written, or where it never was."""
    try:
        return Writer(**json.loads(seen.text))
    except (ValueError, TypeError):
        return None


def _runs(writer: Writer) -> bool:
    """Whether a writer on this host is alive, and its number not another process's by now."""
    return is_alive(writer.process) and start_time(writer.process) == writer.started


def _named(writer: Writer | None) -> str:
    if writer is None:
        return "an unknown process"
    job = f", SLURM job {writer.slurm_job}" if writer.slurm_job else ""
    elsewhere = writer.host == HOST and writer.place != PLACE
    where = f"{writer.host}, in another container" if elsewhere else writer.host
    return f"process {writer.process} on {where}{job}"


def _refusal(lock: Path, holder: Writer | None) -> str:
    output = lock.name.removeprefix(".").removesuffix(".lock")
    end = "end it"
    if holder is not None:
        kill = f"`kill {holder.process}` on {holder.host}"
        end += f" (`scancel {holder.slurm_job}`)" if holder.slurm_job else f" ({kill})"
    return (
        f"{lock}: {output} is being written by {_named(holder)}, of an earlier start that runs on? "
        f"Wait until it has ended, or {end}, then run the same again: finished parts are kept"
    )
