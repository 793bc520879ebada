"""Rate of the work on texts after their generation, for a million texts through the stage.

python benchmarks/bench_text_path.py --model MODEL --crystals train.parquet --config config.yaml ...

The stage `sample_pairs` runs shard by shard, with its prompts, decoding, checks, further attempts,
pairing and Parquet files. Only the engine is replaced: it returns prepared texts of training
crystals with noise, some of them invalid. So the measured time is that of everything except
generation.
"""

import argparse
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flowllm.config.load import check_config, load_config, merge
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import crystal_of, read_table
from flowllm.llm import model_folder
from flowllm.llm.engines.base import Draft, DraftRequest
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.prompts import Conditions, prompt_formula
from flowllm.llm.text import encode
from flowllm.stages import sample_pairs

VARIANTS = 4
"""Texts per crystal."""

BATCH = 256
"""Texts that the engine finishes at once."""

ALL_PAIRS = 3_300_000
"""Number of pairs in the paper (appendix C)."""

Tokens = tuple[int, ...]


def main() -> None:
    """Print texts per second, peak memory, and the time for the paper's number of pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--crystals", type=Path, required=True)
    parser.add_argument("--config", type=Path, action="append", required=True)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--broken", type=float, default=0.1, help="fraction of invalid texts")
    parser.add_argument("--shard", type=int, default=11_000, help="pairs per shard")
    parser.add_argument("--chunk", type=int, default=1000, help="pairs per saved part")
    given = parser.parse_args()
    changes = {"structured": False, "backend": "vllm", "chunk_size": given.chunk}
    values = load_config(given.config).model_dump(mode="json")
    base = {"structured": changes["structured"]}  # a configuration needs both to be equal
    config = check_config(merge(values, {"sample_pairs": changes, "sample_base": base}))
    settings = StageSettings.from_config("sample_pairs", config)
    opened = ModelFolder(given.model, config.prompts)
    good, broken = make_texts(opened, given.crystals)
    engines: list[PreparedTexts] = []

    def start(*_: object, **__: object) -> PreparedTexts:
        engines.append(PreparedTexts(good, broken, given.broken))
        return engines[-1]

    model_folder.VllmEngine = start
    clock, processor = time.perf_counter(), time.process_time()
    written = shards = 0
    with tempfile.TemporaryDirectory() as folder:
        while written < given.texts:
            out = Path(folder) / f"shard-{shards:05d}.parquet"
            sample_pairs.run(
                settings,
                model=given.model,
                crystals=given.crystals,
                split="train",
                first_draw=shards * given.shard,
                count=given.shard,
                out=out,
                gpus=0,
            )
            shards += 1
            written = sum(engine.texts for engine in engines)
            if shards in (1, 2, 4, 8, 16, 32, 64):
                report(written, shards, time.perf_counter() - clock, processor)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.parquet"))
    seconds = time.perf_counter() - clock
    report(written, shards, seconds, processor)
    rows = shards * given.shard
    busy = time.process_time() - processor
    print(
        f"{ALL_PAIRS:,} pairs: {busy * ALL_PAIRS / rows / 3600:.2f} CPU-hours in total, "
        f"{busy / shards:.1f} CPU-seconds per shard of {given.shard:,}, "
        f"{size / rows * ALL_PAIRS / 1e9:.2f} GB of Parquet"
    )


def report(texts: int, shards: int, seconds: float, processor: float) -> None:
    """Print the rates so far."""
    busy = time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{texts:,} texts in {shards} shards: {texts / seconds:,.0f} texts/s, "
        f"{texts / busy:,.0f} per CPU-second, peak memory {peak:,.0f} MiB",
        flush=True,
    )


class PreparedTexts:
    """Engine that returns prepared texts; the seed of the request decides which one."""

    cached_prompt_tokens = 0

    def __init__(
        self, good: dict[Tokens, list[Tokens]], broken: Sequence[Tokens], broken_share: float
    ) -> None:
        """Store the valid texts by prompt, and the invalid ones."""
        self._good, self._broken, self._share = good, broken, broken_share
        self._waiting: list[tuple[int, DraftRequest]] = []
        self.texts = 0

    def submit(self, key: int, request: DraftRequest) -> None:
        """Queue a text."""
        self._waiting.append((key, request))

    def finished(self) -> list[tuple[int, Draft]]:
        """Return the next texts."""
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        self.texts += len(batch)
        return [(key, Draft(self._text(request), truncated=False)) for key, request in batch]

    def close(self) -> None:
        """Do nothing; there are no resources to free."""

    def _text(self, request: DraftRequest) -> Tokens:
        texts = self._good[request.prompt]
        if request.seed % 1000 < 1000 * self._share:
            texts = self._broken
        return texts[request.seed // 1000 % len(texts)]


def make_texts(opened: ModelFolder, path: Path) -> tuple[dict[Tokens, list[Tokens]], list[Tokens]]:
    """Make texts of crystals with noise of 0.02 of the cell, by prompt, and invalid texts."""
    rng = np.random.default_rng(0)
    good: dict[Tokens, list[Tokens]] = defaultdict(list)
    broken = []
    for row in read_table(path, CRYSTALS).to_pylist():
        crystal = crystal_of(row)
        formula = prompt_formula(opened.prompts.prompts, crystal.atomic_numbers)
        prompt = opened.prompts.prompt(Conditions(formula))
        for _ in range(VARIANTS):
            noisy = Crystal.from_arrays(
                crystal.atomic_numbers,
                crystal.frac_coords + rng.normal(0, 0.02, crystal.frac_coords.shape),
                crystal.lengths,
                crystal.angles,
            )
            good[prompt].append(opened.prompts.answer(encode(noisy)))
        broken += [opened.prompts.answer(text) for text in break_text(encode(crystal))]
    return good, broken


def break_text(text: str) -> list[str]:
    """Return invalid versions: a missing line, a non-number, an unknown element, an extra atom."""
    lines = text.split("\n")
    return [
        "\n".join(lines[:-1]),
        "\n".join([*lines[:-1], "0.00 x 0.00"]),
        "\n".join([*lines[:2], "Xx", *lines[3:]]),
        "\n".join([*lines, "H", "0.11 0.22 0.33"]),
    ]


if __name__ == "__main__":
    main()
