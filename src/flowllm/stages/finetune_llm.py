"""Fine-tune the base language model on crystal text (paper, section 4.1).

The paper trains an adapter (LoRA); `method: full` trains all weights. In both cases the output is
the folder `llm/adapter`, of which `merge_adapter` makes a plain model folder.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from peft import PeftModel
from safetensors.torch import save_file
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from flowllm.config.sections.llm import CONDITIONS, FinetuneLlm, Prompts
from flowllm.config.sections.scratch import SCRATCH
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_folder, check_folder
from flowllm.io.schemas import CRYSTALS, CRYSTALS_WITH_PROPERTIES
from flowllm.io.start_files import start_files
from flowllm.io.tables import crystal_of, read_table
from flowllm.llm.adapter import add_lora, shard_base_model
from flowllm.llm.base_checks import (
    check_sampling_context,
    check_tokenizer,
    check_training_context,
)
from flowllm.llm.base_content import base_content, commit_of, commit_to_train
from flowllm.llm.base_model import (
    check_architecture,
    load_base_model,
    load_config,
    load_tokenizer,
    quiet_transformers,
    save_tokenizer,
)
from flowllm.llm.finetuning import Finetuning, State, curve_csv
from flowllm.llm.model_record import ADAPTER_WEIGHTS, ModelRecord, prompt_texts, write_record
from flowllm.llm.prompts import Conditions, PromptTokens, prompt_formula
from flowllm.llm.start import check_base_content, continue_adapter, folder_to_train
from flowllm.llm.token_loss import LanguageModel
from flowllm.llm.trained_weights import train_all_weights, trained_weights
from flowllm.llm.training_texts import TrainingTexts, texts_of
from flowllm.llm.written_model import CURVE, write_model
from flowllm.runtime.device import pick_dtype
from flowllm.runtime.distributed import launch, make_fabric
from flowllm.runtime.log import log
from flowllm.runtime.malloc import keep_freed_memory
from flowllm.runtime.provenance import stage_run
from flowllm.runtime.resume import keep_seconds, partial_folder
from flowllm.runtime.tensorboard import events_path

Records = Sequence[Mapping[str, Any]]

CHECKED_CRYSTALS = 100
"""Training crystals whose texts must survive encoding and decoding with the tokenizer."""


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    finetune_llm: FinetuneLlm
    prompts: Prompts


def run(settings: Settings, *, train: Path, val: Path, out: Path) -> None:
    """Fine-tune the base language model and write the adapter, or all weights.

    The folder contains the trained weights (safetensors), their configuration, the tokenizer, the
    training curve and `flowllm.json` (base model and its content, method, prompts, elements);
    TensorBoard's events are beside it. A model on the hub has the commit that `fetch_model` has
    recorded in `base_model.json` beside the folder. A killed run resumes from its last checkpoint,
    unless the base model has another content since, and, on the same machine, ends with the same
    bytes as an undisturbed run.

    Args:
        settings: sections `finetune_llm` and `prompts`.
        train: Training crystals (crystals/train.parquet).
        val: Crystals of the validation loss (crystals/val.parquet).
        out: Folder of the adapter to write.

    Raises:
        FlowllmError: the base model is not found, the start does not fit the settings, the
            tokenizer or the context does not fit the crystals, no text is short enough, or training
            diverges.
    """
    section: FinetuneLlm = settings.finetune_llm
    quiet_transformers()
    keep_freed_memory()
    # Beside an adapter the frozen weights have the precision of the configuration, and nothing is
    # cast. Weights that are all trained are in float32, and the computation is cast.
    fabric = make_fabric(section.precision if section.method == "full" else "fp32")
    launch(fabric)
    inputs: dict[str, Path | Sequence[Path]] = {"train": train, "val": val}
    if section.start is not None:
        inputs["start"] = start_files(section.start)
    leader = fabric.is_global_zero
    with stage_run(settings, inputs=inputs, output=out, leader=leader, check=check_folder) as run:
        content = _content_to_train(section, out, fabric)
        # Checkpoints of other weights are not resumed.
        run.work = {} if content is None else {"base_model": content}
        schema = CRYSTALS_WITH_PROPERTIES if settings.prompts.properties else CRYSTALS
        train_rows = read_table(train, schema).to_pylist()
        val_rows = read_table(val, schema).slice(0, section.validation_rows).to_pylist()
        with fabric.rank_zero_first():
            checkpoints = partial_folder(out, run)
        opened = folder_to_train(section, settings.prompts, settings.seed, commit_of(content))
        with opened as source:
            check_base_content(section, content)
            tokenizer = load_tokenizer(source)
            prompts = PromptTokens(settings.prompts, tokenizer)
            texts = _texts("train", train, train_rows, prompts, settings)
            record = _record(settings, train_rows, texts.longest_vector, content)
            val_texts = _texts("val", val, val_rows, prompts, settings)
            _check_base_model(load_config(source), prompts, train_rows, record, texts.longest)
            model = _model(source, settings, fabric)
        finetuning = Finetuning(
            model, texts, val_texts, section, settings.seed, prompts.end_token_id, fabric
        )
        padding, ungrouped = _padding_shares(finetuning)
        on_save = partial(keep_seconds, checkpoints, run)
        state = finetuning.train(checkpoints, events_path(out), on_save)
        if leader:
            kept = replace(record, val_loss=finetuning.kept_val_loss())
            _write_folder(out, model, tokenizer, state, kept)
        run.count(
            rows_in=len(train_rows),
            rows_out=len(texts),
            rows_failed=texts.too_long,
            padding_share=round(padding, 4),
            padding_share_without_grouping=round(ungrouped, 4),
            **_training_counts(finetuning, state),
        )


def _content_to_train(section: FinetuneLlm, out: Path, fabric: Fabric) -> str | None:
    """Return the content of the base model, the same in all processes, of which one reads it.

    Returns:
        None if the base model's weights are not used: new ones, or those of a start, are trained.
    """
    is_replaced = section.start is not None and section.method == "full"
    if section.base_model == SCRATCH or is_replaced:
        return None
    content = None
    if fabric.is_global_zero:
        content = base_content(section.base_model, commit_to_train(section, out))
    return fabric.broadcast(content)


def _padding_shares(finetuning: Finetuning) -> tuple[float, float]:
    """Log and return the shares of padding, with and without grouping by length."""
    padding, ungrouped = finetuning.padding_shares()
    log.info(
        "finetune_llm: padding %.1f %% of all tokens (%.1f %% without grouping by length)",
        *(100 * padding, 100 * ungrouped),
    )
    return padding, ungrouped


def _training_counts(finetuning: Finetuning, state: State) -> dict[str, Any]:
    """Return what the record says of the training: its length and its losses."""
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "training_seconds": round(state.seconds, 1),
        "train_loss": round(state.curve[-1]["train_loss"], 4),
        "val_loss": round(state.curve[-1]["val_loss"], 4),
        "best_step": finetuning.best.step,
        "best_val_loss": round(finetuning.best.loss, 4),
        "stopped_early": state.step < finetuning.num_steps,
    }


def _check_base_model(
    config: PretrainedConfig,
    prompts: PromptTokens,
    rows: Records,
    record: ModelRecord,
    longest_text: int,
) -> None:
    """Check the tokenizer and the context, which otherwise fail only after the training."""
    check_architecture(config)
    numbers = [np.asarray(row["atomic_numbers"]) for row in rows]
    formulas = [Conditions(formula=prompt_formula(prompts.prompts, atoms)) for atoms in numbers]
    crystals = [crystal_of(row) for row in rows[:CHECKED_CRYSTALS]]
    check_tokenizer(
        prompts,
        config.get_text_config().vocab_size,
        [
            prompts.crystal_text.describe(crystal).text
            for crystal in crystals
            if crystal is not None
        ],
        formulas[:CHECKED_CRYSTALS],
    )
    check_training_context(config, record.base_model, longest_text)
    check_sampling_context(
        config,
        f"finetune_llm.base_model {record.base_model}",
        prompt=max(len(prompts.prompt(asked)) for asked in formulas),
        answer=prompts.most_answer_tokens(record.elements, record.max_atoms),
        max_atoms=record.max_atoms,
    )


def _model(source: str, settings: Settings, fabric: Fabric) -> LanguageModel:
    """Load the model: all its weights are trained, or an adapter beside frozen weights.

    Frozen weights are whole in each process, or sharded over the processes.
    """
    section: FinetuneLlm = settings.finetune_llm
    if section.method == "full":
        whole = load_base_model(
            source, dtype=torch.float32, quantization="none", device=fabric.device
        )
        return train_all_weights(whole, section)
    sharded = section.sharding == "fsdp" and fabric.world_size > 1
    base = load_base_model(
        source,
        dtype=pick_dtype(section.precision),
        quantization=section.quantization,
        # A model to be sharded may be too large for one GPU.
        device="cpu" if sharded else fabric.device,
    )
    model = add_lora(base, section, settings.seed)
    if section.start is not None:
        continue_adapter(model, Path(section.start))
    if sharded:
        shard_base_model(model, fabric.device, fabric.world_size)
    return model


def _texts(
    name: str, path: Path, rows: Records, prompts: PromptTokens, settings: Settings
) -> TrainingTexts:
    section: FinetuneLlm = settings.finetune_llm
    texts = texts_of(name, rows, path, prompts, section, settings.seed)
    if len(texts) == 0:
        raise FlowllmError(
            f"{path}: none of {len(rows)} crystals fits into finetune_llm.max_tokens "
            f"({section.max_tokens}) tokens; raise it"
        )
    return texts


def _record(
    settings: Settings, rows: Records, longest_vector: float, content: str | None
) -> ModelRecord:
    section: FinetuneLlm = settings.finetune_llm
    trained = {"formula"} if section.formula_share else set()
    labels = [(name, value) for row in rows for name, value in row.get("labels") or ()]
    numbers = {name for row in rows for name, _ in row.get("numbers") or ()}
    own = {name for name in settings.prompts.properties if name in {*numbers, *dict(labels)}}
    if section.properties_share:
        trained = {name for name in CONDITIONS if any(row.get(name) is not None for row in rows)}
        trained |= {"formula", "elements", *own}
    if section.infill_share:
        trained |= {"infill", "mask"}
    optional = {*CONDITIONS, *settings.prompts.properties, "infill", "mask"}
    return ModelRecord(
        base_model=section.base_model,
        precision=section.precision,
        quantization=section.quantization,
        val_loss=math.nan,  # set after the training
        prompts={
            name: sentence
            for name, sentence in prompt_texts(settings.prompts).items()
            if name not in optional or name in trained
        },
        elements=tuple(sorted({z for row in rows for z in row["atomic_numbers"]})),
        max_atoms=max(row["num_atoms"] for row in rows),
        max_length=min(99, math.ceil(longest_vector)),
        method=section.method,
        categories={
            name: sorted({value for label, value in labels if label == name})
            for name in sorted(own & set(dict(labels)) & trained)
        },
        base_content=content,
    )


def _write_folder(
    out: Path,
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    state: State,
    record: ModelRecord,
) -> None:
    """Write the adapter's folder, or the whole model's with the precision of the configuration."""
    with atomic_folder(out) as folder:
        if isinstance(model, PeftModel):
            _write_adapter(folder, model, record)
            save_tokenizer(tokenizer, folder)
            write_record(folder, record)
        else:
            cast = model.to(pick_dtype(record.precision))  # type: ignore[arg-type]  # wrapped by it
            write_model(folder, cast, tokenizer, record)
        (folder / CURVE).write_text(curve_csv(state.curve))


def _write_adapter(folder: Path, model: PeftModel, record: ModelRecord) -> None:
    """Write the adapter; peft's own writer includes absolute paths and sets in random order."""
    config = model.peft_config["default"].to_dict()
    config |= {
        "base_model_name_or_path": record.base_model,
        "inference_mode": True,
        "target_modules": sorted(config["target_modules"]),
    }
    save_file(trained_weights(model), folder / ADAPTER_WEIGHTS)
    text = json.dumps(config, indent=2, sort_keys=True, default=str)
    (folder / "adapter_config.json").write_text(text + "\n")
