"""An ordered map over worker processes."""

import multiprocessing
from collections.abc import Callable, Sequence
from typing import TypeVar

from flowllm.runlog import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

IN_PROCESS = 64
"""With no more items than this, starting worker processes costs more than it saves."""


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
