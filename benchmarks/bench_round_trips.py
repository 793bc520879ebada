"""Round trips between host and device per step, counted on the CPU, and the time of a step.

    python benchmarks/bench_round_trips.py --texts 128 --texts 512

On a GPU each read makes the program wait for the device, and each write is a transfer of its own.
Reads are the calls `item`, `tolist`, `cpu`, `numpy`, `bool`, `float` and `int` of a tensor, and the
operator `nonzero` (an index by a mask); writes are tensors made of Python values and calls of `to`.
The operators that torch executes come from its profiler.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from workloads import SMALL_SIZE, random_field

from flowllm.crystal import Crystal

READS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
WRITES = ("tensor", "as_tensor", "to")
VOCABULARY, ALLOWED, TOKENS = 49_152, 130, 400


class _Calls(TorchFunctionMode):
    """Counter of the functions of torch that are called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names[getattr(func, "__name__", str(func))] += 1
        return func(*args, **(kwargs or {}))


def count(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Return reads, writes, operators and milliseconds of a step, as means over several steps."""
    step()
    start = time.process_time()
    for _ in range(steps):
        step()
    milliseconds = 1000 * (time.process_time() - start) / steps
    with _Calls() as calls, profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    operators = {one.key: one.count for one in profiler.key_averages()}
    reads = sum(calls.names[name] for name in READS) + operators.get("aten::nonzero", 0)
    return {
        "reads": reads / steps,
        "writes": sum(calls.names[name] for name in WRITES) / steps,
        "_local_scalar_dense": operators.get("aten::_local_scalar_dense", 0) / steps,
        "copy_": operators.get("aten::copy_", 0) / steps,
        "operators": sum(n for name, n in operators.items() if name.startswith("aten::")) / steps,
        "milliseconds": milliseconds,
    }


def draws_of_vllm(texts: int, *, whole: bool) -> Callable[[], object]:
    """Return a step of `DrawProcessor` alone, with a batch that stays the same.

    Args:
        texts: texts of the batch.
        whole: whether the whole vocabulary is allowed.
    """
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from flowllm.llm.engines.vllm_hooks import CONFIG, MASKS, SEED, DrawProcessor

    sampling = {
        **{"temperature": 1.0, "top_p": 0.9, "max_tokens": TOKENS, "end_token_id": 0},
        "allowed_tokens": None if whole else tuple(range(ALLOWED)),
    }
    config = SimpleNamespace(additional_config={CONFIG: sampling, MASKS: None})
    processor = DrawProcessor(config, torch.device("cpu"), False)
    written: list[list[int]] = [[] for _ in range(texts)]
    added = [
        (row, SamplingParams(extra_args={SEED: row}), None, one) for row, one in enumerate(written)
    ]
    processor.update_state(BatchUpdate(texts, removed=(), added=added, moved=()))
    # As of a trained model: the nucleus is among the few hundred largest logits.
    logits = 8 * torch.randn(texts, VOCABULARY if whole else 4 * ALLOWED)

    def step() -> None:
        processor.apply(logits.clone())
        for one in written:
            one.append(0)

    return step


def draws_of_transformers(texts: int) -> Callable[[], object]:
    """Return a step of the two hooks of transformers' `generate`, after 100 tokens."""
    from flowllm.llm.engines.base import DraftRequest, SamplingOptions
    from flowllm.llm.engines.transformers import EndedByRequest, SampledToken

    sampling = SamplingOptions(
        temperature=1.0,
        top_p=0.9,
        max_tokens=TOKENS,
        end_token_id=0,
        allowed_tokens=tuple(range(ALLOWED)),
    )
    given = [DraftRequest((1, 2), row) for row in range(texts)], sampling, 2
    hooks = [make(*given, torch.device("cpu")) for make in (SampledToken, EndedByRequest)]
    input_ids = torch.ones(texts, 102, dtype=torch.int64)
    logits = 8 * torch.randn(texts, 4 * ALLOWED)

    def step() -> None:
        for hook in hooks:
            hook(input_ids, logits)

    return step


def refinement(texts: int) -> Callable[[], object]:
    """Return 10 steps of refine of crystals of four atoms."""
    from flowllm.config.load import load_config
    from flowllm.rfm.base_distribution import LlmBaseDistribution
    from flowllm.stages.refine import refine_batch, refinement_input

    field, rng = random_field(SMALL_SIZE).eval(), np.random.default_rng(0)
    section = load_config([Path("config.yaml")]).refine
    tasks = [
        refinement_input(_random_crystal(rng), field, LlmBaseDistribution(0.0, 0.0, 0.0), rng)
        for _ in range(texts)
    ]
    return lambda: refine_batch(tasks, field, section, 10, None)


def relaxation(texts: int) -> Callable[[], object]:
    """Return 10 steps of the relaxation of crystals in one batch."""
    from flowllm.relax import relaxer
    from flowllm.relax.models import load_potential

    potential = load_potential("chgnet", torch.device("cpu"))
    relaxer.CPU_BATCH_LOAD = float("inf")
    crystals = [_rock_salt() for _ in range(texts)]
    limits = {"max_force": 1e-9, "max_steps": 10, "max_seconds": float("inf")}
    return lambda: relaxer.relax(potential, crystals, **limits)


def _rock_salt() -> Crystal:
    """Return a primitive cell of two atoms that is not at rest."""
    return Crystal.from_arrays([11, 17], [[0, 0, 0], [0.45, 0.5, 0.5]], [3.9] * 3, [60] * 3)


def _random_crystal(rng: np.random.Generator) -> Crystal:
    return Crystal.from_arrays(rng.integers(1, 90, 4), rng.random((4, 3)), [6] * 3, [90] * 3)


PARTS: dict[str, tuple[Callable[[int], Callable[[], object]], int, tuple[int, ...]]] = {
    "vLLM, allowed tokens": (lambda texts: draws_of_vllm(texts, whole=False), 1, (128, 512)),
    "vLLM, whole vocabulary": (lambda texts: draws_of_vllm(texts, whole=True), 1, (128, 512)),
    "transformers, allowed tokens": (draws_of_transformers, 1, (128, 512)),
    "refine": (refinement, 10, (128, 512)),
    "relaxation": (relaxation, 10, (4, 16)),
}
"""Workload of each part by number of texts or crystals, the steps in a call of it, and batches."""


def main() -> None:
    """Print a table, and write the numbers as JSON if --json is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, action="append", help="or crystals, per batch")
    parser.add_argument("--part", action="append", choices=PARTS, help="by default all")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    results = []
    for name in given.part or PARTS:
        make, inner, sizes = PARTS[name]
        for texts in given.texts or sizes:
            steps = given.steps if inner == 1 else 2
            found = {what: n / inner for what, n in count(make(texts), steps).items()}
            results.append({"part": name, "texts": texts, **found})
            shown = ", ".join(f"{what} {n:.1f}" for what, n in found.items())
            print(f"{name}, {texts}: {shown}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
