"""Tokens/s and accepted pairs/s of vLLM and of transformers' generate, with the same prompts.

python benchmarks/bench_sampling.py --model MODEL --crystals val.parquet --config config.yaml ...

transformers samples as the public code does (`generate` with do_sample, temperature and top_p), in
batches of 1 and larger ones. Few texts suffice for its rate; each line gives their number. Each
formula is sampled `--draws-per-prompt` times. The start of the engine is reported separately.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from flowllm.config.load import load_config
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import crystal_of, read_table
from flowllm.llm.crystal_text import composition_of
from flowllm.llm.engines.base import Draft, DraftRequest, Engine, SamplingOptions
from flowllm.llm.engines.vllm import VllmEngine
from flowllm.llm.masks import MaskOptions
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.prompts import Conditions, prompt_formula
from flowllm.llm.redraws import Apart
from flowllm.llm.sampling import DrawRequest, Sampler
from flowllm.seeds import derive, generator


def main() -> None:
    """Print one line per engine and batch size, and the ratio of vLLM to each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--crystals", type=Path, required=True)
    parser.add_argument("--config", type=Path, action="append", required=True)
    parser.add_argument("--texts", type=int, default=256, help="texts of vLLM")
    parser.add_argument("--draws-per-prompt", type=int, default=1, help="texts per formula")
    parser.add_argument("--max-atoms", type=int, default=20)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 32, 64])
    parser.add_argument(
        "--batch-1-texts", type=int, default=3, help="texts of transformers in batches of 1"
    )
    parser.add_argument(
        "--min-distance",
        type=float,
        help="angstrom; measure vLLM also with atoms kept apart, and print the ratio",
    )
    parser.add_argument("--max-redraws", type=int, default=2, help="with --min-distance")
    parser.add_argument(
        "--all-tokens", action="store_true", help="do not restrict the tokens of vLLM"
    )
    given = parser.parse_args()
    config = load_config(given.config)
    opened = ModelFolder(given.model, config.prompts)
    rows = read_table(given.crystals, CRYSTALS).to_pylist()
    rows = [row for row in rows if row["num_atoms"] <= given.max_atoms]
    chosen = generator(0, "bench_sampling").choice(
        len(rows), -(-given.texts // given.draws_per_prompt)
    )
    tasks = [
        make_task(opened, rows[chosen[number // given.draws_per_prompt]], number)
        for number in range(given.texts)
    ]
    prompts, record = opened.prompts, opened.record
    longest = max(len(prompts.prompt(task.conditions)) for task in tasks)
    sampling = SamplingOptions(
        temperature=config.sample_pairs.temperature,
        top_p=config.sample_pairs.top_p,
        max_tokens=prompts.most_answer_tokens(record.elements, record.max_atoms),
        end_token_id=prompts.end_token_id,
        allowed_tokens=None if given.all_tokens else prompts.answer_tokens(),
    )
    dtype = AutoConfig.from_pretrained(given.model).dtype
    print(f"{given.model}: {dtype}, {torch.get_num_threads()} threads, {longest} prompt tokens")
    start = partial(VllmEngine, given.model, gpus=0, max_prompt_tokens=longest, sampling=sampling)
    ours = measure("vllm", start, opened, tasks)
    if given.min_distance is not None:
        masks = MaskOptions(config.prompts.crystal_text, given.min_distance, prompts.answer_texts())
        start.keywords["sampling"] = replace(sampling, masks=masks)
        apart = Apart(given.min_distance, given.max_redraws)
        name = f"vllm, atoms {given.min_distance} A apart"
        tokens, pairs = measure(name, start, opened, tasks, apart)
        print(
            f"{name} against vllm: {pairs / ours[1]:.2f} times the pairs/s, "
            f"{tokens / ours[0]:.2f} times the tokens/s"
        )
    for size in given.batch_sizes:
        start = partial(PlainGenerate, given.model, sampling, size)
        count = given.batch_1_texts if size == 1 else size
        name = f"transformers, batch {size}"
        tokens, pairs = measure(name, start, opened, tasks[:: max(1, given.texts // count)][:count])
        gain = ours[0] / tokens, ours[1] / pairs if pairs else float("nan")
        print(
            f"vllm against {name}: {gain[0]:.1f} times the tokens/s, "
            f"{gain[1]:.1f} times the pairs/s"
        )


class PlainGenerate:
    """Engine that calls transformers' sampling as the public code does."""

    cached_prompt_tokens = 0

    def __init__(self, model: Path, sampling: SamplingOptions, batch_size: int) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype="auto").eval()
        self._sampling, self._batch_size = sampling, batch_size
        self._waiting: list[tuple[int, DraftRequest]] = []

    def submit(self, key: int, request: DraftRequest) -> None:
        """Queue a text."""
        self._waiting.append((key, request))

    @torch.inference_mode()
    def finished(self) -> list[tuple[int, Draft]]:
        """Generate the next batch."""
        batch, self._waiting = (
            self._waiting[: self._batch_size],
            self._waiting[self._batch_size :],
        )
        end = self._sampling.end_token_id
        longest = max(len(request.prompt) for _, request in batch)
        padded = [[end] * (longest - len(one.prompt)) + list(one.prompt) for _, one in batch]
        mask = [[0] * (longest - len(one.prompt)) + [1] * len(one.prompt) for _, one in batch]
        written = self._model.generate(
            input_ids=torch.tensor(padded),
            attention_mask=torch.tensor(mask),
            do_sample=True,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            top_k=0,
            max_new_tokens=self._sampling.max_tokens,
            eos_token_id=end,
            pad_token_id=end,
        )[:, longest:].tolist()
        return [(key, self._draft(row)) for (key, _), row in zip(batch, written, strict=True)]

    def close(self) -> None:
        """Free the model's memory."""
        del self._model

    def _draft(self, row: Sequence[int]) -> Draft:
        end = self._sampling.end_token_id
        if end not in row:
            return Draft(tuple(row), truncated=True)
        return Draft(tuple(row[: row.index(end) + 1]), truncated=False)


def make_task(opened: ModelFolder, row: dict, number: int) -> DrawRequest:
    """Request a text without structured decoding for the formula of a crystal."""
    numbers = crystal_of(row).atomic_numbers
    asked = Conditions(prompt_formula(opened.prompts.prompts, numbers))
    return DrawRequest(
        asked, composition_of(numbers), None, partial(derive, 0, "bench_sampling", number)
    )


def measure(
    name: str,
    start: Callable[[], Engine],
    opened: ModelFolder,
    tasks: list[DrawRequest],
    apart: Apart | None = None,
) -> tuple[float, float]:
    """Return tokens and accepted pairs per second, with one attempt per task."""
    clock = time.perf_counter()
    engine = start()
    started = time.perf_counter() - clock
    with Sampler(
        lambda: engine,
        opened.prompts,
        max_atoms=opened.record.max_atoms,
        max_attempts=1,
        reject_close_atoms=True,
        apart=apart,
    ) as sampler:
        clock, processor = time.perf_counter(), time.process_time()
        outcomes = sampler.draw(tasks)
        seconds, busy = time.perf_counter() - clock, time.process_time() - processor
    tokens = sum(outcome.num_tokens for outcome in outcomes)
    accepted = sum(outcome.crystal is not None for outcome in outcomes)
    print(
        f"{name}: {len(tasks)} texts, {tokens} tokens in {seconds:.1f} s, "
        f"{tokens / seconds:.1f} tokens/s, {tokens / busy:.1f} per CPU-second, "
        f"{accepted} accepted, {accepted / seconds:.3f} pairs/s, "
        f"{sampler.speed.cached_prompt_tokens} of {sampler.speed.prompt_tokens} prompt tokens "
        "from the cache "
        f"(start {started:.1f} s)",
        flush=True,
    )
    return tokens / seconds, accepted / seconds


if __name__ == "__main__":
    main()
