"""The sections of bench_gpu.py: what is measured on a GPU, and how."""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_loader import write_shard
from torch.utils.flop_counter import FlopCounterMode
from workloads import BOUNDS, FULL_SIZE, SMALL_SIZE, random_field, random_pairs

from flowllm.rfm.base_distribution import LlmBaseDistribution
from flowllm.rfm.loader import PreparedPairs, plan_epoch
from flowllm.rfm.loss import FlowLoss
from flowllm.rfm.network import VelocityField

Case = tuple[str, dict[str, float]]
"""Name of a case, and its numbers by what they are."""


@dataclass(frozen=True)
class Given:
    """What the sections are given: the device, and whether only tiny sizes are measured."""

    device: torch.device
    smoke: bool

    def rate(self, step: Callable[[], object], seconds: float = 3.0) -> float:
        """Return the steps/s, after a warm-up."""
        step()
        self.wait()
        start, steps = time.perf_counter(), 0
        while steps == 0 or (not self.smoke and time.perf_counter() - start < seconds):
            step()
            steps += 1
            self.wait()
        return steps / (time.perf_counter() - start)

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def free(self) -> None:
        """Release the memory of objects that are no longer used."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def peak(self, dtype: torch.dtype) -> float:
        """Return the measured rate of a large matrix product, FLOP/s."""
        size = 128 if self.smoke else 8192
        a, b = torch.rand(2, size, size, device=self.device).to(dtype)
        return 2 * size**3 * self.rate(lambda: a @ b, seconds=1.0)

    def case(self, name: str, measured: Callable[[], dict[str, float]]) -> Case:
        """Return the numbers of a case; out of memory is a number, too."""
        try:
            return name, measured()
        except torch.OutOfMemoryError:
            return name, {"out of memory": 1.0}
        finally:
            self.free()

    def autocast(self, precision: str) -> torch.autocast:
        """Return the autocast of a precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")


def flow_training(given: Given) -> Iterator[Case]:
    """Yield the rates of training steps of the flow on crystals of 10 atoms."""
    sizes = [4] if given.smoke else [64, 256, 1024, 4096]
    for precision, compiled in (("fp32", False), ("bf16", False), ("bf16", True)):
        if compiled and given.smoke:
            continue
        peak = given.peak(torch.bfloat16 if precision == "bf16" else torch.float32)
        field = random_field(SMALL_SIZE if given.smoke else FULL_SIZE).to(given.device)
        if compiled:
            field.network.compile_layers()
        for size in sizes:
            name = f"{precision}{', compiled' if compiled else ''}, batch {size}"
            counted = None if compiled else peak
            yield given.case(name, partial(_training_rate, given, field, size, precision, counted))


def _training_rate(
    given: Given, field: VelocityField, size: int, precision: str, peak: float | None
) -> dict[str, float]:
    """Return the rate of training steps, and the share of the peak if there is one."""
    step = _training_step(given, field, size, precision)
    flops = _flops(step) if peak else 0
    rate = given.rate(step)
    return _rates("crystals/s", size * rate, flops * rate / peak if peak else 0.0)


def _training_step(
    given: Given, field: VelocityField, size: int, precision: str
) -> Callable[[], object]:
    """Return a training step on random crystals of 10 atoms."""
    loss = FlowLoss(field)
    optimizer = torch.optim.AdamW(field.parameters(), fused=True)
    batch = random_pairs(size, 10, given.device)
    times = torch.rand(size, device=given.device)

    def step() -> None:
        with given.autocast(precision):
            errors = loss([batch], [times])
        errors.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def flow_sampling(given: Given) -> Iterator[Case]:
    """Yield the rates of evaluations of the velocity of crystals of 10 atoms."""
    sizes = [4] if given.smoke else [64, 512, 4096]
    field = random_field(SMALL_SIZE if given.smoke else FULL_SIZE).to(given.device).eval()
    peak = given.peak(torch.float32)
    for size in sizes:
        yield given.case(f"fp32, batch {size}", partial(_sampling_rate, given, field, size, peak))


def _sampling_rate(given: Given, field: VelocityField, size: int, peak: float) -> dict[str, float]:
    """Return the rate of evaluations of the velocity, and the share of the peak."""
    batch = random_pairs(size, 10, given.device)
    times = torch.rand(size, device=given.device)
    inputs = batch.elements, batch.start_coords, batch.start_lattice, times
    with torch.inference_mode():
        flops = _flops(lambda: field(*inputs))
        rate = given.rate(lambda: field(*inputs))
    return _rates("crystal-steps/s", size * rate, flops * rate / peak)


def _flops(step: Callable[[], object]) -> int:
    """Return the FLOPs of the matrix products of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _rates(what: str, rate: float, share: float) -> dict[str, float]:
    """Return a rate, and the share of the peak if it was counted."""
    return {what: rate} | ({"share of peak": share} if share else {})


def loader(given: Given) -> Iterator[Case]:
    """Yield the rate at which pairs are read and copied to the device."""
    count = 500 if given.smoke else 50_000
    for name, noise in (("without noise", 0.0), ("with noise", 0.02)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.arrow"
            write_shard(path, count, np.random.default_rng(0))
            base = LlmBaseDistribution(noise, noise, noise)
            pairs = PreparedPairs([path], base, BOUNDS)
            rng = np.random.default_rng(1)
            plan = list(plan_epoch(pairs.num_atoms, 256, rng))
            start = time.perf_counter()
            read = 0
            for batch in plan:
                for group in batch:
                    read += len(pairs.draw(group, rng).to(given.device))
            given.wait()
            yield name, {"pairs/s": read / (time.perf_counter() - start)}


def relaxation(given: Given) -> Iterator[Case]:
    """Yield the rates of evaluations and steps by CHGNet, and the size of a batch that fits."""
    from torch_sim.optimizers import frechet_cell_fire

    from flowllm.crystal import Crystal
    from flowllm.relax import relaxer
    from flowllm.relax.checked_model import CheckedModel
    from flowllm.relax.fire import take_step
    from flowllm.relax.models import load_potential

    coords = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    coords += [[(x + 0.48) % 1, y, z] for x, y, z in coords]
    crystal = Crystal.from_arrays([11] * 4 + [17] * 4, coords, [5.64] * 3, [90] * 3)
    model = CheckedModel(load_potential("chgnet", given.device).model)
    limit = relaxer._batch_limit(model, crystal) / relaxer._load(crystal)
    yield "batch that fits", {"crystals": limit}
    for size in [2] if given.smoke else [16, 64, 256, 1024]:
        if size <= limit:
            init, _ = frechet_cell_fire(model)
            state = relaxer._at_rest(init(relaxer._state_of([crystal] * size, model)))
            steps = {
                "evaluations": partial(model, state),
                "steps of FIRE": partial(take_step, state, model),
            }
            for name, step in steps.items():
                yield f"{name}, batch {size}", {"crystal-steps/s": size * given.rate(step)}


def fine_tuning(given: Given) -> Iterator[Case]:
    """Yield the rates of LoRA steps: 135 million and 7 billion random weights."""
    small = (4, 32) if given.smoke else (16, 256)
    large = (2, 32) if given.smoke else (8, 256)
    for name, size, quantization, shape in (
        ("135 million, bf16", "135m", "none", small),
        ("7 billion, nf4", "7b", "nf4", large),
        ("7 billion, bf16", "7b", "none", large),
    ):
        yield given.case(name, partial(_tuning_rate, given, size, quantization, *shape))


def _tuning_rate(
    given: Given, size: str, quantization: str, texts: int, length: int
) -> dict[str, float]:
    """Return the rate of LoRA steps on random tokens."""
    from flowllm.config.load import load_config
    from flowllm.llm.adapter import add_lora
    from flowllm.llm.token_loss import summed_loss
    from flowllm.llm.training_texts import MicroBatch

    section = load_config([Path(__file__).parents[1] / "config.yaml"]).finetune_llm
    section = section.model_copy(update={"quantization": quantization})
    model = _random_llm(size, given)
    if quantization == "nf4":
        _quantize(model)
    tuned = add_lora(model, section, 0)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad])
    tokens = torch.randint(0, 1000, (texts, length))
    batch = MicroBatch(tokens, tokens)

    def step() -> None:
        with given.autocast("bf16"):
            loss = summed_loss(tuned, batch, given.device)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"tokens/s": texts * length * given.rate(step, seconds=8.0)}


_SHAPES = {
    "135m": {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
        "tie_word_embeddings": True,
    },
    "7b": {
        **{"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
    },
    "smoke": {
        **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 1000},
    },
}
"""Shapes of SmolLM2-135M, of Llama 2 with 7 billion weights, and of the smoke test."""


def _random_llm(size: str, given: Given) -> Any:
    """Return a Llama with random weights in bfloat16 on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = _SHAPES["smoke" if given.smoke else size]
    config = LlamaConfig(**shape, max_position_embeddings=2048, eos_token_id=0, pad_token_id=None)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with given.device:
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)


def _quantize(model: Any) -> None:
    """Replace the linear layers, except the output layer, by those in NF4."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, torch.nn.Linear) and name != "lm_head":
                made = Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    bias=False,
                    compute_dtype=torch.bfloat16,
                    quant_type="nf4",
                    device="meta",
                )
                weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
                made.weight = weight.to(layer.weight.device)
                made.support_avx512bf16_for_cpu = False
                setattr(parent, name, made)
    model.is_loaded_in_4bit = True


def transformers_sampling(given: Given) -> Iterator[Case]:
    """Yield the rates of transformers' engine with SmolLM2-135M's shape."""
    from flowllm.llm.engines.transformers import TransformersEngine

    for texts in [4] if given.smoke else [64, 256]:
        with tempfile.TemporaryDirectory() as folder:
            _random_llm("135m", given).save_pretrained(folder)
            engine = TransformersEngine(Path(folder), sampling=_sampling(given), batch_size=texts)
            yield f"batch {texts}", {"tokens/s": _sampled_per_second(engine, texts)}


def vllm_sampling(given: Given) -> Iterator[Case]:
    """Yield the rate of vLLM with SmolLM2-135M's shape."""
    import vllm  # noqa: F401  # a section without its package is skipped before anything is written

    from flowllm.config.load import load_config
    from flowllm.llm.engines.vllm import VllmEngine
    from flowllm.llm.scratch import make_tokenizer

    if given.device.type == "cuda" and not torch.backends.cuda.is_built():
        raise ImportError("the installed vLLM is its CPU build")
    prompts = load_config([Path(__file__).parents[1] / "config.yaml"]).prompts
    with tempfile.TemporaryDirectory() as folder:
        _random_llm("135m", given).save_pretrained(folder)
        make_tokenizer(prompts).save_pretrained(folder)
        gpus = int(given.device.type == "cuda")
        engine = VllmEngine(
            Path(folder), gpus=gpus, max_prompt_tokens=32, sampling=_sampling(given)
        )
        for texts in [4] if given.smoke else [256, 1024]:
            yield f"{texts} texts", {"tokens/s": _sampled_per_second(engine, texts)}
        engine.close()


def _sampling(given: Given) -> Any:
    """Return the options of token sampling; as many tokens are allowed as crystal texts have."""
    from flowllm.llm.engines.base import SamplingOptions

    return SamplingOptions(
        temperature=1.0,
        top_p=0.9,
        max_tokens=8 if given.smoke else 128,
        end_token_id=0,
        allowed_tokens=tuple(range(1, 131)),
    )


def _sampled_per_second(engine: Any, texts: int) -> float:
    """Return the tokens/s of texts that all have the maximum length, after a first batch."""
    from flowllm.llm.engines.base import DraftRequest

    seconds, tokens = 0.0, 0
    for first in (0, texts):
        for key in range(first, first + texts):
            engine.submit(key, DraftRequest(tuple(range(1, 21)), key))
        start = time.perf_counter()
        found: list[Any] = []
        while len(found) < texts:
            found += engine.finished()
        seconds = time.perf_counter() - start
        tokens = sum(len(draft.tokens) for _, draft in found)
    return tokens / seconds


SECTIONS: dict[str, Callable[[Given], Iterator[Case]]] = {
    "flow training": flow_training,
    "flow sampling": flow_sampling,
    "loader": loader,
    "relaxation": relaxation,
    "fine-tuning": fine_tuning,
    "transformers": transformers_sampling,
    "vLLM": vllm_sampling,
}
