"""vLLM against transformers' generate with one model and prompts: tokens/s and accepted pairs/s.

python benchmarks/bench_sampling.py --model MODEL --crystals val.parquet --config config.yaml ...

transformers at batch 1 is how the public code samples. Its few texts are enough for a rate; each
line says how many there were. Engine start-up is left out and told apart.
"""

import argparse
import time
from functools import partial
from pathlib import Path

from transformers import AutoConfig

from flowllm.config import load_config
from flowllm.llm.engine import Sampling, VllmEngine
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.prompts import Conditions, prompt_formula
from flowllm.llm.sampling import Sampler, Task
from flowllm.llm.text import composition_of
from flowllm.llm.transformers_engine import TransformersEngine
from flowllm.seeds import derive, generator
from flowllm.tables import CRYSTALS, crystal_of, read_table


def main() -> None:
    """Print one line an engine and batch size, and vLLM's gain over each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--crystals", type=Path, required=True)
    parser.add_argument("--config", type=Path, action="append", required=True)
    parser.add_argument("--texts", type=int, default=64, help="of vLLM")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--batch-1-texts", type=int, default=3)
    given = parser.parse_args()
    config = load_config(given.config)
    opened = ModelFolder(given.model, config.prompts)
    rows = read_table(given.crystals, CRYSTALS).to_pylist()
    chosen = generator(0, "bench_sampling").choice(len(rows), given.texts)
    tasks = [make_task(opened, rows[i], number) for number, i in enumerate(chosen)]
    prompts, record = opened.prompts, opened.record
    longest = max(len(prompts.prompt(task.conditions)) for task in tasks)
    sampling = Sampling(
        temperature=config.sample_pairs.temperature,
        top_p=config.sample_pairs.top_p,
        max_tokens=prompts.most_answer_tokens(record.elements, record.max_atoms),
        end_token_id=prompts.end_token_id,
    )
    print(f"{given.model}: {AutoConfig.from_pretrained(given.model).dtype}")
    engines = {
        "vllm": lambda: VllmEngine(
            given.model, gpus=0, max_prompt_tokens=longest, sampling=sampling
        )
    }
    for size in given.batch_sizes:
        engines[f"transformers, batch {size}"] = partial(
            TransformersEngine, given.model, sampling=sampling, batch_size=size
        )
    rates = {}
    for name, start in engines.items():
        size = given.texts if name == "vllm" else int(name.split()[-1])
        count = given.batch_1_texts if size == 1 else size
        rates[name] = measure(name, start, opened, tasks[:count])
    for name, (tokens, pairs) in rates.items():
        gain = rates["vllm"][0] / tokens, rates["vllm"][1] / pairs if pairs else float("nan")
        print(f"vllm against {name}: {gain[0]:.1f} times the tokens/s, {gain[1]:.1f} the pairs/s")


def make_task(opened: ModelFolder, row: dict, number: int) -> Task:
    """A free text with the formula of a crystal."""
    numbers = crystal_of(row).atomic_numbers
    asked = Conditions(prompt_formula(opened.prompts.prompts, numbers))
    return Task(asked, composition_of(numbers), None, partial(derive, 0, "bench_sampling", number))


def measure(name: str, start, opened: ModelFolder, tasks: list[Task]) -> tuple[float, float]:
    """Tokens and accepted pairs a second of one attempt a task."""
    clock = time.perf_counter()
    engine = start()
    started = time.perf_counter() - clock
    with Sampler(
        lambda: engine, opened.prompts, max_atoms=opened.record.max_atoms, max_attempts=1
    ) as sampler:
        clock, processor = time.perf_counter(), time.process_time()
        outcomes = sampler.draw(tasks)
        seconds, busy = time.perf_counter() - clock, time.process_time() - processor
    tokens = sum(outcome.num_tokens for outcome in outcomes)
    accepted = sum(outcome.crystal is not None for outcome in outcomes)
    print(
        f"{name}: {len(tasks)} texts, {tokens} tokens in {seconds:.1f} s, "
        f"{tokens / seconds:.1f} tokens/s, {tokens / busy:.1f} a CPU-second, "
        f"{accepted} accepted, {accepted / seconds:.3f} pairs/s "
        f"(start {started:.1f} s)",
        flush=True,
    )
    return tokens / seconds, accepted / seconds


if __name__ == "__main__":
    main()
