"""How far the language model knows that a crystal has no origin and its atoms no order."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowllm import tables
from flowllm.config import Invariance, StageSettings
from flowllm.crystal import Crystal
from flowllm.device import pick_device
from flowllm.llm.base_model import quiet_transformers
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.perplexity import increase_under_transformation, perplexities
from flowllm.llm.text import encode
from flowllm.llm.transformations import permuted, translated
from flowllm.resume import write_in_parts
from flowllm.runlog import Progress, stage_run
from flowllm.seeds import generator
from flowllm.tables import crystal_of, read_table

TRANSFORMATIONS = {"translation": translated, "permutation": permuted}

CRYSTALS_PER_PART = 10
"""Crystals saved at once; what a kill can cost."""


def run(settings: StageSettings, *, model: Path, crystals: Path, out: Path) -> None:
    """Measure the increase in perplexity under transformation (equation 9), a row a crystal.

    Args:
        settings: sections `invariance` and `prompts`.
        model: folder of the merged model; it is laid over all GPUs of the job.
        crystals: the validation split.
        out: `tables.INVARIANCE`.

    Raises:
        FlowllmError: the model was trained on other prompts, or an input is missing.
    """
    section: Invariance = settings.invariance
    quiet_transformers()
    with stage_run(settings, inputs={"model": model, "crystals": crystals}, output=out) as run:
        opened = ModelFolder(model, settings.prompts)
        rows = read_table(crystals, tables.CRYSTALS).slice(0, section.num_crystals).to_pylist()
        device = pick_device()
        language_model = opened.language_model("auto" if device.type == "cuda" else device)
        progress = Progress("invariance: crystals", len(rows))

        def measure(texts: list[str]) -> np.ndarray:
            return perplexities(language_model, opened.prompts, texts, section.batch_size)

        def make_rows(items: range) -> list[dict[str, Any]]:
            made = [_row(rows[item], settings, measure) for item in items]
            progress.advance(len(items))
            return made

        table = write_in_parts(out, run, tables.INVARIANCE, len(rows), CRYSTALS_PER_PART, make_rows)
        means = {
            name: round(float(np.mean(table.column(name).to_numpy())), 5)
            for name in tables.INVARIANCE.names[2:]
        }
        run.count(rows_in=len(rows), rows_out=len(rows), rows_failed=0, **means)


def _row(
    row: Mapping[str, Any], settings: StageSettings, measure: Callable[[list[str]], np.ndarray]
) -> dict[str, Any]:
    """Return one crystal's row; what is drawn depends on the seed and the crystal's id alone."""
    crystal = crystal_of(row)
    assert isinstance(crystal, Crystal)
    count = settings.invariance.num_transformations
    plain, *transformed = measure([encode(crystal), *_texts(row["id"], crystal, settings)])
    made = {"id": row["id"], "num_atoms": crystal.num_atoms, "perplexity": plain}
    for number, name in enumerate(TRANSFORMATIONS):
        part = np.asarray(transformed[number * count : (number + 1) * count])
        made[f"ipt_{name}"] = increase_under_transformation(plain, part)
    return made


def _texts(name: str, crystal: Crystal, settings: StageSettings) -> list[str]:
    """Return the texts of the transformed crystal, kind by kind."""
    count = settings.invariance.num_transformations
    texts = []
    for kind, transform in TRANSFORMATIONS.items():
        rng = generator(settings.seed, "invariance", kind, name)
        texts += [encode(transform(crystal, rng)) for _ in range(count)]
    return texts
