"""Round trips between host and device per step, counted on the CPU, and whose code makes them.

    python benchmarks/bench_round_trips.py
    python benchmarks/bench_round_trips.py --part relaxation --size 4 --size 16

On a GPU the program waits for the device where it reads a tensor's value (`item`, `tolist`, `cpu`,
`bool`, ...), where the size of a result depends on values (`nonzero`, an index by a mask, `unique`,
`bincount`, `matrix_exp`, which sorts matrices by size) and where an error code is read
(`linalg.inv`, `linalg.solve`). Tensors made of Python values, and copies to a device, are writes.
Both are assigned to the package whose code calls them. The operators that torch executes come from
its profiler. Counts and times per step are the differences between two numbers of steps, so that
the start and the end of a call are left out.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from workloads import BOUNDS, SMALL_SIZE, random_field

from flowllm.crystal import Crystal

Steps = Callable[[int], object]
"""A workload that takes the given number of steps."""

CONFIG = Path(__file__).parents[1] / "config.yaml"

VALUES = ("tolist", "cpu")
"""Methods that read a tensor without an operator of torch on the CPU."""

WAITING = (
    *("_local_scalar_dense", "nonzero", "_unique2", "unique_consecutive", "unique_dim"),
    *("bincount", "masked_select", "repeat_interleave", "linalg_matrix_exp"),
    *("_linalg_check_errors", "equal"),
)
"""Operators at which a GPU is waited for."""

PACKAGES = ("flowllm", "torch_sim", "chgnet", "lightning", "transformers", "vllm")
"""Packages to which calls are assigned."""

VOCABULARY, ALLOWED, TOKENS = 49_152, 130, 400


def caller() -> str:
    """Return the package of the innermost frame that belongs to one of `PACKAGES`."""
    frame = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in PACKAGES:
            return package
        frame = frame.f_back
    return "other"


class _Calls(TorchFunctionMode):
    """Counter of calls in Python that read values or transfer them, by package."""

    def __init__(self, waits: Counter[str], writes: Counter[str]) -> None:
        super().__init__()
        self.waits, self.writes = waits, writes

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        given = kwargs or {}
        if name in VALUES:
            self.waits[caller()] += 1
        moved = [one for one in (*args[1:], *given.values()) if isinstance(one, torch.device)]
        if name in ("tensor", "as_tensor") or (name == "to" and moved):
            self.writes[caller()] += 1
        return func(*args, **given)


class _Operators(TorchDispatchMode):
    """Counter of the operators at which a GPU is waited for, by package."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masked = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if masked or name in WAITING:
            self.waits[caller()] += 1
        return func(*args, **(kwargs or {}))


def count(work: Steps, steps: int) -> dict[str, float]:
    """Return waits, writes, operators and milliseconds per step."""
    few, many = (_counted(work, number) for number in (2, 2 + steps))
    return {what: (many[what] - few.get(what, 0)) / steps for what in many}


def _counted(work: Steps, steps: int) -> Counter[str]:
    """Return the counts of a whole call."""
    work(steps)
    start = time.process_time()
    work(steps)
    milliseconds = 1000 * (time.process_time() - start)
    for number in (1, steps):  # the first call in these modes loads parts of torch
        waits: Counter[str] = Counter()
        writes: Counter[str] = Counter()
        with _Calls(waits, writes), _Operators(waits):
            work(number)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work(steps)
    operators = sum(one.count for one in profiler.key_averages() if one.key.startswith("aten::"))
    found = {f"waits of {name}": n for name, n in sorted(waits.items())}
    found |= {f"writes of {name}": n for name, n in sorted(writes.items())}
    return Counter(found | {"operators": operators, "milliseconds": milliseconds})


def draws_of_vllm(texts: int, *, whole: bool) -> Steps:
    """Return steps of `DrawProcessor` alone, with a batch that stays the same.

    Args:
        texts: texts of the batch.
        whole: whether the whole vocabulary is allowed.
    """
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from flowllm.llm.engines.vllm_hooks import CONFIG as SAMPLING
    from flowllm.llm.engines.vllm_hooks import MASKS, SEED, DrawProcessor

    sampling = {
        **{"temperature": 1.0, "top_p": 0.9, "max_tokens": TOKENS, "end_token_id": 0},
        "allowed_tokens": None if whole else tuple(range(ALLOWED)),
    }
    config = SimpleNamespace(additional_config={SAMPLING: sampling, MASKS: None})
    processor = DrawProcessor(config, torch.device("cpu"), False)
    written: list[list[int]] = [[] for _ in range(texts)]
    added = [
        (row, SamplingParams(extra_args={SEED: row}), None, one) for row, one in enumerate(written)
    ]
    processor.update_state(BatchUpdate(texts, removed=(), added=added, moved=()))
    # As of a trained model: the nucleus is among the few hundred largest logits.
    logits = 8 * torch.randn(texts, VOCABULARY if whole else 4 * ALLOWED)

    def work(steps: int) -> None:
        for _ in range(steps):
            processor.apply(logits.clone())
            for one in written:
                one.append(0)

    return work


def draws_of_transformers(texts: int) -> Steps:
    """Return steps of the two hooks of transformers' `generate`, after 100 tokens."""
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

    def work(steps: int) -> None:
        for _ in range(steps):
            for hook in hooks:
                hook(input_ids, logits)

    return work


def refinement(crystals: int) -> Steps:
    """Return steps of refine of crystals of four atoms."""
    from flowllm.config.load import load_config
    from flowllm.rfm.base_distribution import LlmBaseDistribution
    from flowllm.stages.refine import refine_batch, refinement_input

    field, rng = random_field(SMALL_SIZE).eval(), np.random.default_rng(0)
    section = load_config([CONFIG]).refine
    tasks = [
        refinement_input(_random_crystal(rng), field, LlmBaseDistribution(0.0, 0.0, 0.0), rng)
        for _ in range(crystals)
    ]
    return lambda steps: refine_batch(tasks, field, section, steps, None)


def flow_training(pairs: int) -> Steps:
    """Return steps of train_rfm with its loader, in batches of `pairs`."""
    training, loaded = _training(pairs)
    shares = loaded()

    def work(steps: int) -> None:
        for _ in range(steps):
            _, share = next(shares)
            training._step(share, False)

    return work


def flow_loader(pairs: int) -> Steps:
    """Return the loader's part of these steps alone."""
    _, loaded = _training(pairs)
    shares = loaded()
    return lambda steps: [next(shares) for _ in range(steps)]


def _training(pairs: int) -> tuple[Any, Callable[[], Iterator[Any]]]:
    """Return a training of a small network, and a function that starts its loader."""
    from bench_loader import write_shard
    from lightning.fabric import Fabric

    from flowllm.config.load import load_config
    from flowllm.rfm.base_distribution import LlmBaseDistribution
    from flowllm.rfm.loader import PreparedPairs
    from flowllm.rfm.loss import standardization_of
    from flowllm.rfm.shared_steps import planned_batches, shares_of_batches
    from flowllm.rfm.train import FlowTraining

    small = {"hidden_dim": 32, "num_layers": 2, "time_dim": 8, "num_frequencies": 4}
    changes = {"batch_size": pairs, "max_steps": 10_000, "epochs": 1000, **small}
    settings = load_config([CONFIG]).train_rfm.model_copy(update=changes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.arrow"
        write_shard(path, 20_000, np.random.default_rng(0))
        prepared = PreparedPairs([path], LlmBaseDistribution(0.0, 0.0, 0.0), BOUNDS)
    fabric = Fabric(accelerator="cpu", devices=1)
    scales = standardization_of(prepared, np.random.default_rng(0))
    training = FlowTraining(settings, 0, prepared, prepared, scales, fabric, None)

    def loaded() -> Iterator[Any]:
        plan = planned_batches(prepared, settings, 0, 0, training.num_steps)
        return shares_of_batches(prepared, plan, 0, fabric)

    return training, loaded


class _SameTexts(list[Any]):
    """Texts that are the same in every epoch."""

    def epoch(self, _epoch: int) -> "_SameTexts":
        """Return the texts."""
        return self


def fine_tuning(texts: int) -> Steps:
    """Return optimizer steps of finetune_llm (LoRA), each of `texts` texts in two micro-batches."""
    from lightning.fabric import Fabric
    from transformers import LlamaConfig, LlamaForCausalLM

    from flowllm.config.load import load_config
    from flowllm.llm.adapter import add_lora
    from flowllm.llm.finetuning import Finetuning
    from flowllm.llm.prompts import Example

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "vocab_size": 200}
    changes = {"quantization": "none", "batch_size": texts, "micro_batch_size": texts // 2}
    section = load_config([CONFIG]).finetune_llm.model_copy(update=changes)
    model = add_lora(LlamaForCausalLM(LlamaConfig(**shape)), section, 0)
    given = _SameTexts(Example(tuple(range(1, 60)), 10) for _ in range(texts))
    fabric = Fabric(accelerator="cpu", devices=1)
    tuning: Any = Finetuning(model, given, given, section, 0, 0, fabric)
    # On a GPU, AdamW keeps its numbers of steps in main memory. The implementation for the CPU
    # that is not fused reads them, which would be counted.
    tuning._optimizer = torch.optim.AdamW(tuning._parameters, fused=True)

    def work(steps: int) -> None:
        for _ in range(steps):
            tuning._step(0, given)
            tuning._any_process(False)

    return work


def relaxation(crystals: int) -> Steps:
    """Return steps of the relaxation by CHGNet of crystals of two atoms in one batch."""
    from flowllm.relax import relaxer
    from flowllm.relax.models import load_potential

    potential = load_potential("chgnet", torch.device("cpu"))
    relaxer.CPU_BATCH_LOAD = float("inf")
    given = [_rock_salt(0.45 + 0.02 * index / crystals) for index in range(crystals)]
    limits = {"max_force": 1e-9, "max_seconds": float("inf")}
    return lambda steps: relaxer.relax(potential, given, max_steps=steps, **limits)


def _rock_salt(position: float) -> Crystal:
    """Return a primitive cell of two atoms that is not at rest."""
    return Crystal.from_arrays([11, 17], [[0, 0, 0], [position, 0.5, 0.5]], [3.9] * 3, [60] * 3)


def _random_crystal(rng: np.random.Generator) -> Crystal:
    return Crystal.from_arrays(rng.integers(1, 90, 4), rng.random((4, 3)), [6] * 3, [90] * 3)


PARTS: dict[str, tuple[Callable[[int], Steps], tuple[int, ...]]] = {
    "vLLM, allowed tokens": (lambda texts: draws_of_vllm(texts, whole=False), (128, 512)),
    "vLLM, whole vocabulary": (lambda texts: draws_of_vllm(texts, whole=True), (128, 512)),
    "transformers, allowed tokens": (draws_of_transformers, (128, 512)),
    "refine": (refinement, (128, 512)),
    "train_rfm": (flow_training, (32, 128)),
    "loader of train_rfm": (flow_loader, (32, 128)),
    "finetune_llm": (fine_tuning, (8, 32)),
    "relaxation": (relaxation, (4, 16)),
}
"""Workload of each part by number of texts, crystals or pairs, and the numbers to measure."""


def main() -> None:
    """Print a table, and write the numbers as JSON if --json is given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, action="append", help="texts, crystals or pairs")
    parser.add_argument("--part", action="append", choices=PARTS, help="by default all")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    results = []
    for name in given.part or PARTS:
        make, sizes = PARTS[name]
        for size in given.size or sizes:
            found = count(make(size), given.steps)
            results.append({"part": name, "size": size, **found})
            shown = ", ".join(f"{what} {n:.1f}" for what, n in found.items())
            print(f"{name}, {size}: {shown}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
