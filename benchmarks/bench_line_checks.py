"""Share of the CPU time of sampling that keeping atoms apart takes: reading of lines, and masks.

python benchmarks/bench_line_checks.py runs/mp_20_large --texts 256 --max-redraws 0 2 4

The model of the run folder writes structured texts with at least 0.5 angstrom between atoms, on one
thread (OMP_NUM_THREADS=1). The time of the checks is measured by the clock of the thread, around
each call. Grammars are made and compiled before.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_targets import MIN_DISTANCE, draw, requests, start_engine

from flowllm.config.load import load_config
from flowllm.llm.masks import MaskedText
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.redraws import Apart, _Reader

TIMED = {_Reader: ("__init__", "read", "near_line_of"), MaskedText: ("__init__", "banned")}
"""Methods of the checks."""


class Clock:
    """Sum of the CPU time of some functions; calls within each other count once.

    Attributes:
        seconds: the sum.
    """

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time is added."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            begun = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.thread_time() - begun

        return call


def main() -> None:
    """Print one line per way of sampling."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with a merged model")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--max-redraws", type=int, nargs="+", default=[0, 4])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    clock = Clock()
    for kind, names in TIMED.items():
        for name in names:
            setattr(kind, name, clock.timed(getattr(kind, name)))
    config = load_config([given.run / "config.yaml"])
    opened = ModelFolder(given.run / "llm" / "model", config.prompts)
    ways = requests(config, opened, given.run / "crystals" / "test.parquet", given.texts)
    engine = start_engine(config, opened, given.run / "llm" / "model", ways)
    for name, tasks in ways.items():
        for redraws in given.max_redraws:
            apart = Apart(MIN_DISTANCE, redraws)
            draw("compiles the grammars", engine, opened, tasks, apart)
            clear_caches()
            before = clock.seconds
            drafts = draw(name, engine, opened, tasks, apart)
            spent = clock.seconds - before
            tokens = sum(outcome.num_tokens for outcome in drafts.outcomes)
            print(
                f"{name}, {redraws} redraws: {len(drafts.accepted)} of {len(tasks)} accepted, "
                f"{tokens} tokens in {drafts.cpu_seconds:.2f} CPU seconds, "
                f"{128e3 * drafts.cpu_seconds / tokens:.1f} ms per 128 tokens, of which the checks "
                f"take {128e3 * spent / tokens:.2f} ms ({spent / drafts.cpu_seconds:.1%})",
                flush=True,
            )
    engine.close()


def clear_caches() -> None:
    """Forget the lines that were read, which are the same in the next run."""
    try:
        from flowllm.llm.read_lines import blocked, read_lines
    except ImportError:
        return
    blocked.cache_clear()
    read_lines.cache_clear()


if __name__ == "__main__":
    main()
