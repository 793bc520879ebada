"""How far a language model follows the formula of its prompt: nats of the elements of a text.

python benchmarks/bench_formula_use.py RUN... [--crystals 150]

The texts are those of the first validation crystals of each run, after the prompt with the formula
of the crystal, without a formula, and with the formula of the next crystal that has another one.
Printed are the negative log-likelihood of all element symbols of a text in these three cases, and
the gain by the right formula over none, with its standard error.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from flowllm.config.load import load_config
from flowllm.config.recorded import RECORDED_CONFIG
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import crystal_of, read_table
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.prompts import UNCONDITIONAL, Example, PromptTokens, prompt_formula

SYMBOL = re.compile(r"[A-Z][a-z]?")
"""An element symbol; no other word of a text has a capital letter."""


def main() -> None:
    """Print one line per run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--crystals", type=int, default=150)
    given = parser.parse_args()
    print("| run | symbols | right formula | none | another | gain |\n|---|--:|--:|--:|--:|--:|")
    for run in given.runs:
        nats, symbols = measure(run, given.crystals)
        gains = nats[:, 1] - nats[:, 0]
        error = gains.std(ddof=1) / len(gains) ** 0.5
        means = " | ".join(f"{value:.1f}" for value in nats.mean(axis=0))
        print(f"| {run.name} | {symbols:.1f} | {means} | {gains.mean():.1f} ± {error:.1f} |")


def measure(run: Path, count: int) -> tuple[np.ndarray, float]:
    """Return the nats of each text, shape (texts, 3), and the mean number of symbols.

    Args:
        run: folder of a run with a finished language model.
        count: number of crystals.
    """
    config = load_config([run / RECORDED_CONFIG])
    prompts = ModelFolder(run / "llm" / "model", config.prompts).prompts
    model = AutoModelForCausalLM.from_pretrained(run / "llm" / "model", dtype=torch.float32).eval()
    rows = read_table(run / "crystals" / "val.parquet", CRYSTALS).to_pylist()
    texts = [prompts.crystal_text.describe(crystal_of(row)) for row in rows]
    formulas = [prompt_formula(config.prompts, text.atomic_numbers) for text in texts]
    nats, symbols = [], []
    for place in range(min(count, len(texts))):
        own = formulas[place]
        following = formulas[place + 1 :] + formulas[:place]
        other = next(formula for formula in following if formula != own)
        conditions = [replace(UNCONDITIONAL, formula=formula) for formula in (own, None, other)]
        examples = [prompts.example(one, texts[place].text) for one in conditions]
        places = symbol_places(prompts, examples[0])
        nats.append([symbol_nats(model, prompts, example) for example in examples])
        symbols.append(len(places))
    return np.array(nats), float(np.mean(symbols))


def symbol_places(prompts: PromptTokens, example: Example) -> Sequence[int]:
    """Return the places of the tokens that have a part of an element symbol of the text."""
    answer = range(example.prompt_length, len(example.tokens))
    return [place for place in answer if SYMBOL.search(prompts.decode([example.tokens[place]]))]


def symbol_nats(model: torch.nn.Module, prompts: PromptTokens, example: Example) -> float:
    """Return the negative log-likelihood of the element symbols of a text."""
    tokens = torch.tensor([example.tokens])
    with torch.no_grad():
        logs = torch.log_softmax(model(tokens).logits[0], dim=-1)
    places = symbol_places(prompts, example)
    return -sum(float(logs[place - 1, example.tokens[place]]) for place in places)


if __name__ == "__main__":
    main()
