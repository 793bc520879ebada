"""Share of a fine-tuned model's texts that parse and have the requested formula, and tokens/s.

python benchmarks/bench_texts.py --model MODEL --crystals val.parquet --config config.yaml ...

The texts are sampled without condition and with the formulas of random crystals, each with and
without structured decoding. Each text has one attempt.
"""

import argparse
import time
from collections import Counter
from functools import partial
from pathlib import Path

from flowllm.config.load import load_config
from flowllm.crystal import Crystal
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import crystal_of, read_table
from flowllm.llm.crystal_text import Reason, composition_of
from flowllm.llm.grammar import cell_regex, crystal_regex
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.prompts import UNCONDITIONAL, Conditions, prompt_formula
from flowllm.llm.sampling import DrawRequest
from flowllm.seeds import derive, generator

PARSED = {Reason.FORMULA_MISMATCH, Reason.COINCIDING_ATOMS}
"""Reasons for which a text is rejected although it has the form of crystal text."""


SAMPLING = {
    "max_attempts": 1,
    "restrict_tokens": True,
    "reject_close_atoms": True,
    "min_distance": None,
    "backend": "vllm",
}
"""Settings of sampling in place of those of the configuration."""

WAYS = ((False, False), (False, True), (True, True), (True, False))
"""Sampling methods: whether decoding is structured, and whether the prompt has the formula."""


def main() -> None:
    """Print one line per sampling method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--crystals", type=Path, required=True)
    parser.add_argument("--config", type=Path, action="append", required=True)
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--max-atoms", type=int, default=20)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.9)
    given = parser.parse_args()
    config = load_config(given.config)
    opened = ModelFolder(given.model, config.prompts)
    table = read_table(given.crystals, CRYSTALS)
    rows = [row for row in table.to_pylist() if row["num_atoms"] <= given.max_atoms]
    chosen = generator(0, "bench_texts").choice(len(rows), given.texts)
    targets = [crystal_of(rows[i]) for i in chosen]
    formulas = [
        Conditions(prompt_formula(opened.prompts.prompts, c.atomic_numbers)) for c in targets
    ]
    with opened.sampler(
        [UNCONDITIONAL, *formulas],
        config.sample_base.model_copy(update=SAMPLING),
        temperature=given.temperature,
        top_p=given.top_p,
        gpus=0,
    ) as sampler:
        sampler.draw(
            [DrawRequest(UNCONDITIONAL, None, None, partial(derive, 1))]
        )  # starts the engine
        for structured, conditional in WAYS:
            asked = formulas if conditional else [UNCONDITIONAL] * given.texts
            tasks = [
                task(opened, conditions, crystal, structured, i)
                for i, (conditions, crystal) in enumerate(zip(asked, targets, strict=True))
            ]
            clock, processor = time.perf_counter(), time.process_time()
            outcomes = sampler.draw(tasks)
            seconds, busy = time.perf_counter() - clock, time.process_time() - processor
            reasons = Counter(r.reason for o in outcomes for r in o.rejections)
            malformed = sum(count for reason, count in reasons.items() if reason not in PARSED)
            parsed = given.texts - malformed
            as_asked = parsed - reasons[Reason.FORMULA_MISMATCH]
            accepted = as_asked - reasons[Reason.COINCIDING_ATOMS]
            tokens = sum(outcome.num_tokens for outcome in outcomes)
            print(
                f"structured {structured!s:5} conditional {conditional!s:5} of {given.texts}: "
                f"{parsed} parse, {as_asked} have the requested atoms, {accepted} are accepted; "
                f"{tokens} tokens, {tokens / seconds:.0f}/s, {tokens / busy:.0f} per CPU-second; "
                f"{ {reason.value: count for reason, count in reasons.items()} }",
                flush=True,
            )


def task(
    opened: ModelFolder, conditions: Conditions, crystal: Crystal, structured: bool, number: int
) -> DrawRequest:
    """Request one text, with the crystal's formula if the conditions have one."""
    record, numbers = opened.record, crystal.atomic_numbers
    with_formula = conditions.formula is not None
    form = None
    if structured and with_formula:
        form = partial(cell_regex, numbers.tolist(), record.max_length)
    elif structured:
        form = partial(crystal_regex, record.elements, record.max_atoms, record.max_length)
    composition = composition_of(numbers) if with_formula else None
    return DrawRequest(conditions, composition, form, partial(derive, 0, "bench_texts", number))


if __name__ == "__main__":
    main()
