"""Time to make and to compile the grammars of structured decoding, by tokenizer and text.

python benchmarks/bench_grammar.py --train crystals/train.parquet --config config.yaml \
    --config workflow/config/symmetric_text.yaml --base-model smollm2-135m --base-model scratch

The crystals must be prepared for the text of the configuration (prompts.crystal_text). For each
crystal the grammars are made that vLLM is given while its text is drawn: of the first piece, of the
rest, and of a redraw in the middle of the text, without a formula and with the crystal's. They are
compiled by xgrammar, as vLLM does, with one thread and without its cache.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xgrammar
from transformers import PreTrainedTokenizerBase

from flowllm.config.load import check_config, load_config, merge
from flowllm.config.model import Config
from flowllm.crystal import Crystal
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import crystal_of, read_table
from flowllm.llm.base_model import load_config as load_model_config
from flowllm.llm.base_model import load_tokenizer, quiet_transformers
from flowllm.llm.crystal_text import HEADER_LINES, Description
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.start import folder_to_train
from flowllm.seeds import generator

Form = Callable[[str], str]


def main() -> None:
    """Print one line per tokenizer, way and piece."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--config", type=Path, action="append", required=True)
    parser.add_argument("--base-model", action="append", required=True)
    parser.add_argument("--crystals", type=int, default=100)
    given = parser.parse_args()
    quiet_transformers()
    config = load_config(given.config)
    rows = read_table(given.train, CRYSTALS).to_pylist()
    elements = sorted({z for row in rows for z in row["atomic_numbers"]})
    chosen = generator(0, "bench_grammar").choice(len(rows), given.crystals)
    known = [crystal for i in chosen if (crystal := crystal_of(rows[i])) is not None]
    text = crystal_text(config.prompts.crystal_text)
    described = [text.describe(crystal) for crystal in known]
    longest = int(np.ceil(max(one.longest for one in described)))
    for name in given.base_model:
        tokenizer, size = tokenizer_of(config, name)
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
        compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        for way, forms in ways(config, known, elements, longest).items():
            print(f"{name} ({size} tokens), {config.prompts.crystal_text}, {way}:", flush=True)
            report(compiler, forms, described, text.first_lines)


def tokenizer_of(config: Config, base_model: str) -> tuple[PreTrainedTokenizerBase, int]:
    """Return the tokenizer of a base model and the size of its vocabulary."""
    method = "full" if base_model == "scratch" else config.finetune_llm.method
    changes = {"base_model": base_model, "method": method, "quantization": "none"}
    values = merge(config.model_dump(mode="json"), {"finetune_llm": changes})
    section = check_config(values).finetune_llm
    with folder_to_train(section, config.prompts, config.seed) as source:
        return load_tokenizer(source), load_model_config(source).get_text_config().vocab_size


def ways(
    config: Config, known: list[Crystal], elements: list[int], longest: int
) -> dict[str, list[Form]]:
    """Return the form of the text of each crystal, without and with its formula."""
    text, most = crystal_text(config.prompts.crystal_text), max(one.num_atoms for one in known)

    def free(written: str) -> str:
        return text.grammar(elements, most, longest, written)

    def with_formula(crystal: Crystal) -> Form:
        numbers = crystal.atomic_numbers.tolist()
        return lambda written: text.cell_grammar(numbers, longest, written)

    return {"without formula": [free] * len(known), "with formula": list(map(with_formula, known))}


def report(
    compiler: xgrammar.GrammarCompiler,
    forms: list[Form],
    described: list[Description],
    first_lines: int,
) -> None:
    """Print the times of all pieces in milliseconds."""
    found: dict[str, list[tuple[float, float, int]]] = {}
    for form, crystal in zip(forms, described, strict=True):
        for piece, written in pieces(crystal, first_lines):
            clock = time.process_time()
            grammar = form(written)
            made = time.process_time()
            if grammar.startswith("root ::="):
                compiled = compiler.compile_grammar(grammar)
            else:
                compiled = compiler.compile_regex(grammar)
            times = made - clock, time.process_time() - made, compiled.memory_size_bytes
            found.setdefault(piece, []).append(times)
    for piece, measured in found.items():
        made, compiled, sizes = np.array(measured).T
        print(
            f"  {piece}: made in {1e3 * np.median(made):.1f} ms (at most {1e3 * made.max():.0f}), "
            f"compiled in {1e3 * np.median(compiled):.0f} ms (mean {1e3 * compiled.mean():.0f}, at "
            f"most {1e3 * compiled.max():.0f}), {np.median(sizes) / 2**20:.1f} MiB",
            flush=True,
        )


def pieces(crystal: Description, first_lines: int) -> Iterator[tuple[str, str]]:
    """Yield the pieces of a text, and what is written before each."""
    lines = crystal.text.split("\n")
    yield "first piece", ""
    if first_lines:
        yield "rest", "".join(f"{line}\n" for line in lines[:first_lines])
    middle = HEADER_LINES + 2 * (len(crystal.sites) // 2) + 1
    yield "redraw in the middle", "".join(f"{line}\n" for line in lines[:middle])


if __name__ == "__main__":
    main()
