"""Ordered maps over worker processes, with and without limits of time and memory."""

import multiprocessing
import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from flowllm.errors import FlowllmError
from flowllm.runtime.log import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_PROCESS = 64
"""With no more items than this, starting worker processes costs more than it saves."""

START_SECONDS = 300.0
"""Time in which a worker process must have imported what it needs; slow disks take a minute."""

OVERTIME_SECONDS = 2.0
"""Time after its limit in which a worker process is still left to the process that started it."""


def ordered_map(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, what: str
) -> list[Result]:
    """Return `[function(item) for item in items]`, computed by worker processes.

    Args:
        function: a function at the top of its module, or a `functools.partial` of one; its result
            depends on the item only, so that the number of workers does not matter.
        items: what it is called with.
        workers: number of processes; 1 computes in this one.
        what: what the items are, for the progress lines.
    """
    progress = Progress(what, len(items))
    results = []
    if workers == 1 or len(items) <= IN_PROCESS:
        for item in items:
            results.append(function(item))
            progress.advance()
        return results
    # Spawned, not forked: Arrow and BLAS have threads running in this process.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for result in pool.imap(function, items, chunksize=max(1, min(16, len(items) // workers))):
            results.append(result)
            progress.advance()
    return results


@dataclass(frozen=True)
class Limits:
    """What one item may take before the process that computes it is ended.

    Attributes:
        seconds: wall time.
        memory: bytes beyond what a worker process has when it starts its first item.
    """

    seconds: float
    memory: int


def limited_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    limits: Limits,
    failed: Callable[[Item, str, str], Result],
    workers: int,
    what: str,
) -> list[Result]:
    """Return the function's result for each item, or what `failed` makes of an item over a limit.

    Every item is computed in a worker process, which is killed at the limit of time: C code does
    not return to Python, so that a signal handler in the process itself would wait for it.

    Args:
        function: as in `ordered_map`.
        items: what it is called with.
        limits: of time and memory per item.
        failed: from an item, a reason (`timeout`, `out_of_memory` or `crashed`) and the reason in
            full to the item's result.
        workers: number of processes, at least 1.
        what: what the items are, for the progress lines.

    Raises:
        FlowllmError: a worker process cannot be started.
    """
    progress = Progress(what, len(items))
    results: dict[int, Result] = {}
    waiting = deque(range(len(items)))
    running: list[_Worker] = []
    try:
        while len(results) < len(items):
            while len(running) < min(workers, len(items) - len(results)):
                running.append(_Worker(function, limits))
            for worker in _woken(running):
                place = worker.place
                outcome = worker.outcome()
                if place is not None:
                    results[place] = (
                        failed(items[place], *outcome.reason) if outcome.reason else outcome.result
                    )
                    progress.advance()
                if outcome.ended or not waiting:
                    worker.kill()
                    running.remove(worker)
                else:
                    place = waiting.popleft()
                    worker.give(place, items[place])
    finally:
        for worker in running:
            worker.kill()
    return [results[place] for place in range(len(items))]


@dataclass(frozen=True)
class _Outcome(Generic[Result]):
    """What a worker process said, or how it ended.

    Attributes:
        result: of its item; None where there is a reason, or before its first item.
        reason: short name and full text of why there is no result.
        ended: whether the process can take no more items.
    """

    result: Any = None
    reason: tuple[str, str] | None = None
    ended: bool = False


class _Worker:
    """A process that computes one item after another.

    Attributes:
        place: number of the item that it computes; None while it starts.
        deadline: when it is killed, by `time.monotonic`.
    """

    def __init__(self, function: Callable[[Any], Any], limits: Limits) -> None:
        """Start the process; it is ready when it says so."""
        context = _context(function)
        self.limits = limits
        self.connection, theirs = context.Pipe()
        arguments = (theirs, function, limits)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.place: int | None = None
        self.deadline = time.monotonic() + START_SECONDS

    def give(self, place: int, item: object) -> None:
        """Let the process compute an item."""
        self.place = place
        self.deadline = time.monotonic() + self.limits.seconds
        # A process that has just died is found by `outcome`.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(item)

    def outcome(self) -> _Outcome:
        """Return what the process said; of one that is late or dead, why there is no result.

        Raises:
            FlowllmError: it ended before it was ready.
        """
        if self.connection.poll():
            try:
                reason, result = self.connection.recv()
                # What was left of an item's memory would count for the next.
                return _Outcome(result, reason, ended=reason is not None)
            except (EOFError, ConnectionResetError):
                self.process.join(timeout=5)
        elif self.place is not None:
            said = f"not finished after {self.limits.seconds:g} s"
            return _Outcome(reason=("timeout", said), ended=True)
        self.kill()
        if self.place is None:
            raise FlowllmError(
                "a worker process could not start (exit code "
                f"{self.process.exitcode}); see the lines above, and check the memory of the job"
            )
        return _Outcome(reason=_cause(self.process.exitcode), ended=True)

    def kill(self) -> None:
        """End the process, whatever it does."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def _cause(exit_code: int | None) -> tuple[str, str]:
    """Return why a process ended that this one has not killed."""
    if exit_code == -signal.SIGALRM:
        return "timeout", "its own timer ended its process"
    if exit_code == -signal.SIGKILL:
        return "out_of_memory", "the system ended its process, most likely for its memory"
    if exit_code is not None and exit_code < 0:
        return "crashed", f"its process ended with {signal.Signals(-exit_code).name}"
    return "crashed", f"its process ended with exit code {exit_code}"


def _woken(running: Sequence[_Worker]) -> list[_Worker]:
    """Wait until a process has said something, has ended or is late; return all such."""
    left = min(worker.deadline for worker in running) - time.monotonic()
    ready = wait([worker.connection for worker in running], timeout=max(left, 0))
    now = time.monotonic()
    return [one for one in running if one.connection in ready or one.deadline <= now]


def _context(function: Callable[[Any], Any]) -> Any:
    """Return how processes are started: from a server that has the function's module imported.

    A new process costs some milliseconds so, where a spawned one imports pymatgen again. The server
    has no threads, unlike this process (Arrow, BLAS).
    """
    context = multiprocessing.get_context("forkserver")
    inner = function.func if isinstance(function, partial) else function
    context.set_forkserver_preload([inner.__module__])
    return context


def _serve(connection: Connection, function: Callable[[Any], Any], limits: Limits) -> None:
    """Answer each item with its result, or with the reason why there is none."""
    _limit_memory(limits.memory)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection.send((None, None))
    while True:
        try:
            item = connection.recv()
        except EOFError:  # the other side has all that it wants, or has ended
            return
        # The system ends this process then, also where the other one was killed meanwhile.
        signal.setitimer(signal.ITIMER_REAL, limits.seconds + OVERTIME_SECONDS)
        try:
            answer = (None, function(item))
        except MemoryError as error:
            limit = f"takes more than {limits.memory >> 20} MiB"
            answer = (("out_of_memory", f"{limit} ({error})" if str(error) else limit), None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)


def _limit_memory(memory: int) -> None:
    """Let this process take so many bytes more than it has; on systems that can limit it."""
    if not sys.platform.startswith("linux"):
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
