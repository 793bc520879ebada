"""Ordered maps over worker processes, with and without limits on time and memory."""

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
from typing import Any, TypeVar

from flowllm.errors import FlowllmError
from flowllm.runtime.log import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_PROCESS = 64
"""Up to this many items are computed in this process: starting workers would cost more."""

START_SECONDS = 300.0
"""Time limit for a worker process to import its modules; a slow disk takes a minute."""

OVERTIME_SECONDS = 2.0
"""A worker process ends itself this long after its limit, if its parent has not ended it."""


def ordered_map(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, what: str
) -> list[Result]:
    """Return `[function(item) for item in items]`, computed by worker processes.

    Args:
        function: a module-level function, or a `functools.partial` of one. Its result depends on
            the item only, so that the number of workers does not matter.
        items: the arguments, one per call.
        workers: number of processes; with 1, this process computes.
        what: name of the items in the progress lines.
    """
    progress = Progress(what, len(items))
    results: list[Result] = []
    if workers == 1 or len(items) <= IN_PROCESS:
        for item in items:
            results.append(function(item))
            progress.advance()
        return results
    # Spawned, not forked: Arrow and BLAS run threads in this process.
    # They inherit an ignored SIGTERM, by which the pool ends them, and would stay for ever.
    heed = (signal.SIGTERM, signal.SIG_DFL)
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, heed) as pool:
        for result in pool.imap(function, items, chunksize=max(1, min(16, len(items) // workers))):
            results.append(result)
            progress.advance()
    return results


@dataclass(frozen=True)
class Limits:
    """Limits per item; a process that exceeds one is ended.

    Attributes:
        seconds: wall time.
        memory: bytes in addition to those of a worker process before its first item.
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
    """Return the function's result for each item, and that of `failed` for an item over a limit.

    Every item is computed in a worker process, which is killed at the time limit. A signal handler
    in the worker would not suffice: it waits for C code to return to Python.

    Args:
        function: as in `ordered_map`.
        items: the arguments, one per call.
        limits: limits on time and memory per item.
        failed: returns the result of an item from the item, a short reason (`timeout`,
            `out_of_memory` or `crashed`) and the full reason.
        workers: number of processes, at least 1.
        what: name of the items in the progress lines.

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
                    if outcome.reason is None:
                        results[place] = outcome.result
                    else:
                        results[place] = failed(items[place], *outcome.reason)
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


Reason = tuple[str, str]
"""Short name and full text of why an item has no result."""


@dataclass(frozen=True)
class _Outcome:
    """The answer of a worker process, or how it ended.

    Attributes:
        result: result of its item; None where there is a reason, and before its first item.
        reason: why there is no result.
        ended: whether the process can take no more items.
    """

    result: Any = None
    reason: Reason | None = None
    ended: bool = False


class _Worker:
    """A process that computes one item after another.

    Attributes:
        place: index of the item that it computes; None while it starts.
        deadline: time of `time.monotonic` at which it is killed.
    """

    def __init__(self, function: Callable[[Any], Any], limits: Limits) -> None:
        """Start the process; it sends a message when it is ready."""
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
        """Send the process an item to compute."""
        self.place = place
        self.deadline = time.monotonic() + self.limits.seconds
        # `outcome` finds a process that has just died.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(item)

    def outcome(self) -> _Outcome:
        """Return the answer of the process, or why there is none where it is late or dead.

        Raises:
            FlowllmError: it ended before it was ready.
        """
        if self.connection.poll():
            try:
                reason, result = self.connection.recv()
                # After a failure the process is replaced: memory it kept would count for the next.
                return _Outcome(result, reason, ended=reason is not None)
            except (EOFError, ConnectionResetError):
                self.process.join(timeout=5)
        elif self.place is not None:
            text = f"not finished after {self.limits.seconds:g} s"
            return _Outcome(reason=("timeout", text), ended=True)
        self.kill()
        if self.place is None:
            raise FlowllmError(
                f"A worker process could not start (exit code {self.process.exitcode}). See the "
                "lines above, and check the memory of the job."
            )
        return _Outcome(reason=_cause(self.process.exitcode), ended=True)

    def kill(self) -> None:
        """End the process immediately."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def _cause(exit_code: int | None) -> Reason:
    """Return why a process ended that this process has not killed."""
    if exit_code == -signal.SIGALRM:
        return "timeout", "its own timer ended its process"
    if exit_code == -signal.SIGKILL:
        return "out_of_memory", "the system ended its process, most likely for its memory"
    if exit_code is not None and exit_code < 0:
        return "crashed", f"its process ended with {signal.Signals(-exit_code).name}"
    return "crashed", f"its process ended with exit code {exit_code}"


def _woken(running: Sequence[_Worker]) -> list[_Worker]:
    """Wait until a process has answered, has ended or is late; return all such processes."""
    left = min(worker.deadline for worker in running) - time.monotonic()
    ready = wait([worker.connection for worker in running], timeout=max(left, 0))
    now = time.monotonic()
    return [one for one in running if one.connection in ready or one.deadline <= now]


def _context(function: Callable[[Any], Any]) -> Any:
    """Return a context that forks processes from a server which has imported the function's module.

    A new process then takes milliseconds, whereas a spawned one imports pymatgen again. The server
    has no threads, unlike this process (Arrow, BLAS), so that it can be forked.
    """
    context = multiprocessing.get_context("forkserver")
    inner = function.func if isinstance(function, partial) else function
    context.set_forkserver_preload([inner.__module__])
    return context


def _serve(connection: Connection, function: Callable[[Any], Any], limits: Limits) -> None:
    """Answer each item with its result, or with the reason why it has none."""
    _limit_memory(limits.memory)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    connection.send((None, None))
    while True:
        try:
            item = connection.recv()
        except EOFError:  # the parent has closed the connection, or has ended
            return
        # The timer ends this process even where its parent was killed in the meantime.
        signal.setitimer(signal.ITIMER_REAL, limits.seconds + OVERTIME_SECONDS)
        answer: tuple[Reason | None, Any]
        try:
            answer = (None, function(item))
        except MemoryError as error:
            limit = f"takes more than {limits.memory >> 20} MiB"
            answer = (("out_of_memory", f"{limit} ({error})" if str(error) else limit), None)
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(answer)


def _limit_memory(memory: int) -> None:
    """Limit this process to its present memory plus `memory` bytes; only Linux can do so."""
    if not sys.platform.startswith("linux"):
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
