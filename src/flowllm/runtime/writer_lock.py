"""Lock of an output, for one writer at a time on all nodes: `.NAME.lock` names the writer.

When `snakemake` dies, its SLURM jobs continue, and a new `snakemake` submits them again. A writer
on this host is alive if its process is. Processes of another host, or of a container with this
host's name and its own process numbers, cannot be queried. Every writer therefore touches its lock
regularly, and a lock that does not change while it is watched belongs to a dead writer. This needs
neither synchronized clocks nor the scheduler.

flufl.lock is not used: it compares the clocks of two nodes, waits for the lifetime of a lock whose
writer was killed on this host, and records neither the SLURM job nor the process namespace.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from flowllm.errors import PassingError
from flowllm.io.files import naming_full_disk
from flowllm.io.processes import HOST, PLACE, is_alive, start_time
from flowllm.runtime.log import log

PATIENCE_SECONDS = 60.0
"""Longest wait for another writer, and the time without a touch after which its lock is dead."""

BEAT_SECONDS = 10.0
"""Time between two touches of a lock by its writer."""

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Writer:
    """Identity of a writer.

    Attributes:
        host: name of the node.
        place: boot and process namespace on the node (`processes.PLACE`).
        process: number of the process.
        started: when the process started (`processes.start_time`).
        slurm_job: number of the SLURM job, None outside of SLURM.
    """

    host: str
    place: str
    process: int
    started: int | None
    slurm_job: str | None


@dataclass(frozen=True)
class _Seen:
    """A lock at one moment: its text, and the time of its last touch in ns."""

    text: str
    touched: int


@contextmanager
def only_writer(output: Path) -> Iterator[Callable[[], bool]]:
    """Hold an output's lock within the block.

    Args:
        output: path that is written; a missing folder is created.

    Yields:
        A function that returns whether the lock is still held: a process that was suspended for
        more than `PATIENCE_SECONDS` may have lost it.

    Raises:
        PassingError: another process writes the output and does not end in `PATIENCE_SECONDS`.
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
        while not ended.wait(BEAT_SECONDS):
            # An error of the file system may pass; without touches the lock would count as dead.
            with suppress(OSError):
                if not is_held():
                    return
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
    """Return the path of an output's lock."""
    return output.with_name(f".{output.name}.lock")


def is_written(output: Path) -> bool:
    """Return whether a living process holds an output's lock, without waiting.

    A process of another host or container is alive if it touched the lock within
    `PATIENCE_SECONDS`. The clocks of this host and of the file system may differ by less than that.
    """
    seen = _look(lock_path(output))
    if seen is None:
        return False
    holder = _writer(seen)
    if holder is not None and (holder.host, holder.place) == (HOST, PLACE):
        return _runs(holder)
    return time.time() - seen.touched / 1e9 < PATIENCE_SECONDS


def _take(lock: Path, text: str) -> None:
    """Create the lock as soon as no other living writer has it.

    Raises:
        PassingError: another writer keeps it for `PATIENCE_SECONDS`.
    """
    first: _Seen | None = None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _made(lock, text):
        seen = _look(lock)
        if seen is None:  # its writer has just removed it
            continue
        holder = _writer(seen)
        if first is None:
            first = seen
            log.info("%s: %s has this lock, waiting", lock, _named(holder))
        over = time.monotonic() >= deadline
        if holder is not None and (holder.host, holder.place) == (HOST, PLACE):
            dead = not _runs(holder)
        else:
            dead = over and seen == first
        if dead:
            log.info("%s: %s has ended without removing this lock", lock, _named(holder))
            lock.unlink(missing_ok=True)
        elif over:
            raise PassingError(_refusal(lock, holder))
        else:
            time.sleep(_LOOK_SECONDS)


def _made(lock: Path, text: str) -> bool:
    """Create the lock if there is none; of several processes one succeeds."""
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
    """Read a lock; None if there is none. Opening a file makes NFS ask its server."""
    try:
        with lock.open() as file:
            return _Seen(file.read(), os.fstat(file.fileno()).st_mtime_ns)
    except FileNotFoundError:
        return None


def _writer(seen: _Seen) -> Writer | None:
    """Return the writer of a lock; None if its text is incomplete or damaged."""
    try:
        return Writer(**json.loads(seen.text))
    except (ValueError, TypeError):
        return None


def _runs(writer: Writer) -> bool:
    """Return whether a writer on this host is alive, and its number was not reused."""
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
        f"{lock}: {output} is being written by {_named(holder)}, perhaps from an earlier start. "
        f"Wait until it has ended, or {end}, then run the same command again: finished parts are "
        "kept"
    )
