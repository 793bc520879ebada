"""Merge the adapter into its base model: a plain model folder that any engine loads."""

import shutil
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from flowllm.config.sections.llm import MergeAdapter
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_folder, check_folder
from flowllm.io.start_files import start_files
from flowllm.io.weights_file import check_safetensors, count_numbers
from flowllm.llm.base_content import base_content, commit_of
from flowllm.llm.base_model import (
    load_base_model,
    load_tokenizer,
    plain_base_model,
    quiet_transformers,
)
from flowllm.llm.dequantized import round_as_in_training
from flowllm.llm.model_files import check_model_folder, weight_files
from flowllm.llm.model_identity import merged_identity
from flowllm.llm.model_record import ADAPTER_WEIGHTS, ModelRecord, read_record
from flowllm.llm.written_model import CURVE, write_model
from flowllm.runtime.device import pick_dtype
from flowllm.runtime.identity import with_identity
from flowllm.runtime.log import log
from flowllm.runtime.provenance import stage_run

FINETUNE_AGAIN = "delete the folder and run finetune_llm again"
"""What to do about a damaged adapter."""


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    merge_adapter: MergeAdapter


def run(settings: Settings, *, adapter: Path, out: Path) -> None:
    """Merge the adapter into its base model: a plain Hugging Face model folder.

    The base model is loaded unquantized in the precision of the fine-tuning, on the CPU. With
    `into: dequantized` its weights are first rounded as the quantization of the fine-tuning rounds
    them; `invariance` compares the merged model's validation loss with the adapter's. A model whose
    weights were all trained has no adapter, and its files are copied.

    Args:
        settings: section `merge_adapter`; everything else is read from the adapter's folder.
        adapter: Folder of the adapter.
        out: Folder of the merged model to write (safetensors, tokenizer, `flowllm.json`).

    Raises:
        FlowllmError: the folder is not an adapter's or is damaged, or its base model is not found
            or has another content than in the fine-tuning.
    """
    section: MergeAdapter = settings.merge_adapter
    quiet_transformers()
    with stage_run(settings, inputs={"adapter": adapter}, output=out, check=check_folder) as run:
        record = read_record(adapter)
        identity = merged_identity(adapter, run.settings, run.version)
        with atomic_folder(out) as folder, with_identity(out, identity):
            if record.method == "full":
                counts = _copy(adapter, folder)
            else:
                counts = _merge(adapter, record, section, folder)
        run.count(**counts, adapter_val_loss=record.val_loss)


def _copy(adapter: Path, folder: Path) -> dict[str, int]:
    """Copy a model whose weights were all trained; return the stage's counts."""
    check_model_folder(adapter, FINETUNE_AGAIN)
    for path in start_files(str(adapter)):
        if path.name != CURVE:
            shutil.copyfile(path, folder / path.name)
    weights = weight_files(folder, FINETUNE_AGAIN)
    return {"parameters": sum(map(count_numbers, weights)), "dequantized_layers": 0}


def _merge(
    adapter: Path, record: ModelRecord, section: MergeAdapter, folder: Path
) -> dict[str, int]:
    """Write the sum of the base model's weights and the adapter; return the stage's counts."""
    check_safetensors(adapter / ADAPTER_WEIGHTS, FINETUNE_AGAIN)
    dtype = pick_dtype(record.precision)
    _check_base(adapter, record)
    with plain_base_model(record.base_model, commit_of(record.base_content)) as source:
        base = load_base_model(source, dtype=dtype, quantization="none", device="cpu")
    rounded = []
    if section.into == "dequantized":
        rounded = round_as_in_training(base, record.quantization)
        log.info("merge_adapter: %d layers rounded to %s", len(rounded), record.quantization)
    merged = _with_adapter(base, adapter).merge_and_unload(safe_merge=True)
    write_model(folder, merged, load_tokenizer(str(adapter)), record)
    return {"parameters": merged.num_parameters(), "dequantized_layers": len(rounded)}


def _check_base(adapter: Path, record: ModelRecord) -> None:
    """Check that the base model is the one that the adapter was trained on.

    Adapters of earlier versions have no record of it and are not checked.

    Raises:
        FlowllmError: it has another content, or does not exist.
    """
    if record.base_content is None:
        return
    found = base_content(record.base_model, commit_of(record.base_content))
    if found != record.base_content:
        raise FlowllmError(
            f"{adapter}: was trained on another content of base_model {record.base_model} "
            f"({record.base_content}) than the present one ({found}). Restore the base model's "
            f"files, or {FINETUNE_AGAIN}."
        )


def _with_adapter(base: PreTrainedModel, adapter: Path) -> PeftModel:
    """Load the adapter onto the base model.

    Raises:
        FlowllmError: its files are damaged, or do not fit the base model.
    """
    try:
        model = PeftModel.from_pretrained(base, adapter)
        with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
            found = set(file.keys())
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise FlowllmError(
            f"{adapter}: the adapter does not load onto its base model ({said}); {FINETUNE_AGAIN}"
        ) from error
    # peft would leave missing weights at their initial values, without effect.
    if missing := sorted(set(get_peft_model_state_dict(model)) - found):
        raise FlowllmError(
            f"{adapter / ADAPTER_WEIGHTS}: lacks {len(missing)} of the adapter's weights, the "
            f"first {missing[0]}; {FINETUNE_AGAIN}"
        )
    return model
