"""Measure the merged model: its validation loss, and its invariance under transformations.

The validation loss is computed here and not by `merge_adapter`, since merging needs no GPU, and the
loss of a model of 70 billion parameters takes minutes on GPUs but a day on a CPU.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from flowllm.config.sections.llm import MAX_LOSS_RISE, FinetuneLlm, Invariance, Prompts
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.io import schemas
from flowllm.io.tables import read_table, required_crystal
from flowllm.llm.base_model import quiet_transformers
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.model_folder import ModelFolder
from flowllm.llm.perplexity import increase_under_transformation, perplexities
from flowllm.llm.token_loss import loss_per_token
from flowllm.llm.training_texts import micro_batches, texts_of
from flowllm.llm.transformations import permuted, translated
from flowllm.runtime.device import pick_device
from flowllm.runtime.log import Progress, log
from flowllm.runtime.provenance import stage_run
from flowllm.runtime.resume import write_in_parts
from flowllm.seeds import generator

TRANSFORMATIONS = {"translation": translated, "permutation": permuted}

CRYSTALS_PER_PART = 10
"""Crystals per saved part: the most that a killed job loses."""


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    invariance: Invariance
    prompts: Prompts
    finetune_llm: FinetuneLlm


def run(settings: Settings, *, model: Path, crystals: Path, out: Path) -> None:
    """Measure the increase in perplexity under translation and permutation (equation 9).

    The merged model's loss on the validation texts of the fine-tuning goes into the record, beside
    the loss that the adapter had at the end of its training.

    Args:
        settings: sections `invariance`, `prompts` and `finetune_llm`.
        model: Folder of the merged model; it is distributed over all GPUs of the job.
        crystals: The validation split (crystals/val.parquet).
        out: Table to write, one row per crystal.

    Raises:
        FlowllmError: the model was trained on other prompts, or an input is missing.
    """
    section: Invariance = settings.invariance
    quiet_transformers()
    with stage_run(settings, inputs={"model": model, "crystals": crystals}, output=out) as run:
        opened = ModelFolder(model, settings.prompts)
        split = read_table(crystals, schemas.CRYSTALS)
        rows = split.slice(0, section.num_crystals).to_pylist()
        device = pick_device()
        language_model = opened.language_model("auto" if device.type == "cuda" else device)
        progress = Progress("invariance: crystals", len(rows))

        def measure(texts: list[str]) -> np.ndarray:
            return perplexities(language_model, opened.prompts, texts, section.batch_size)

        def make_rows(items: range) -> list[dict[str, Any]]:
            made = [_row(rows[item], crystals, settings, measure) for item in items]
            progress.advance(len(items))
            return made

        table = write_in_parts(
            out, run, schemas.INVARIANCE, len(rows), CRYSTALS_PER_PART, make_rows
        )
        means = {
            name: round(float(np.mean(table.column(name).to_numpy())), 5)
            for name in schemas.INVARIANCE.names[2:]
        }
        losses = _losses(language_model, opened, split, crystals, settings)
        run.count(rows_in=len(rows), rows_out=len(rows), rows_failed=0, **means, **losses)


def _losses(
    model: PreTrainedModel, opened: ModelFolder, split: pa.Table, path: Path, settings: Settings
) -> dict[str, float]:
    """Return the validation losses of adapter and merged model in nats per token; warn of a rise.

    Texts, tokens that count and rows are those of the fine-tuning's validation.
    """
    section: FinetuneLlm = settings.finetune_llm
    rows = split.slice(0, section.validation_rows).to_pylist()
    texts = texts_of("val", rows, path, opened.prompts, section, settings.seed)
    batches = micro_batches(
        texts.epoch(0),
        settings.invariance.batch_size,
        section.loss_on == "text",
        opened.prompts.end_token_id,
    )
    before, after = opened.record.val_loss, loss_per_token(model, batches)
    log.info("invariance: validation loss %.4f of the adapter, %.4f when merged", before, after)
    if after - before > MAX_LOSS_RISE:
        log.warning(
            "invariance: merging raised the validation loss by %.4f nats per token, more than "
            "%.2f: the merged model is not the one that was trained (merge_adapter.into: "
            "dequantized keeps the weights of the training)",
            *(after - before, MAX_LOSS_RISE),
        )
    return {"adapter_val_loss": before, "merged_val_loss": round(after, 6)}


def _row(
    row: Mapping[str, Any],
    path: Path,
    settings: Settings,
    measure: Callable[[list[str]], np.ndarray],
) -> dict[str, Any]:
    """Return one crystal's row; what is drawn depends on the seed and the crystal's id alone."""
    crystal = required_crystal(row, path)
    count = settings.invariance.num_transformations
    described = crystal_text(settings.prompts.crystal_text).describe(crystal).text
    plain, *transformed = measure([described, *_texts(row["id"], crystal, settings)])
    made = {"id": row["id"], "num_atoms": crystal.num_atoms, "perplexity": plain}
    for number, name in enumerate(TRANSFORMATIONS):
        part = np.asarray(transformed[number * count : (number + 1) * count])
        made[f"ipt_{name}"] = increase_under_transformation(plain, part)
    return made


def _texts(name: str, crystal: Crystal, settings: Settings) -> list[str]:
    """Return the texts of the transformed crystal, kind by kind."""
    count = settings.invariance.num_transformations
    describe = crystal_text(settings.prompts.crystal_text).describe
    texts = []
    for kind, transform in TRANSFORMATIONS.items():
        rng = generator(settings.seed, "invariance", kind, name)
        texts += [describe(transform(crystal, rng)).text for _ in range(count)]
    return texts
