"""Merge the adapter into its base model: a plain model folder that any engine loads."""

from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedModel

from flowllm.config.sections.llm import MergeAdapter
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_folder, check_folder
from flowllm.io.weights_file import check_safetensors
from flowllm.llm.base_model import (
    load_base_model,
    load_tokenizer,
    plain_base_model,
    quiet_transformers,
    save_tokenizer,
)
from flowllm.llm.dequantized import round_as_in_training
from flowllm.llm.model_identity import merged_identity
from flowllm.llm.model_record import read_record, write_record
from flowllm.runtime.device import pick_dtype
from flowllm.runtime.identity import with_identity
from flowllm.runtime.log import log
from flowllm.runtime.provenance import stage_run

ADAPTER_WEIGHTS = "adapter_model.safetensors"

FINETUNE_AGAIN = "delete the folder and run finetune_llm again"
"""What to do about a damaged adapter."""


class Settings(StageSettings):
    """The settings that a job of this stage is given."""

    merge_adapter: MergeAdapter


def run(settings: Settings, *, adapter: Path, out: Path) -> None:
    """Merge the adapter into its base model: a plain Hugging Face model folder.

    The base model is loaded unquantized in the precision of the fine-tuning, on the CPU. With
    `into: dequantized` its weights are first rounded as the quantization of the fine-tuning rounds
    them; `invariance` compares the merged model's validation loss with the adapter's.

    Args:
        settings: section `merge_adapter`; everything else is read from the adapter's folder.
        adapter: Folder of the adapter.
        out: Folder of the merged model to write (safetensors, tokenizer, `flowllm.json`).

    Raises:
        FlowllmError: the folder is not an adapter's or is damaged, or its base model is not found.
    """
    section: MergeAdapter = settings.merge_adapter
    quiet_transformers()
    with stage_run(settings, inputs={"adapter": adapter}, output=out, check=check_folder) as run:
        record = read_record(adapter)
        check_safetensors(adapter / ADAPTER_WEIGHTS, FINETUNE_AGAIN)
        dtype = pick_dtype(record.precision)
        with plain_base_model(record.base_model) as source:
            base = load_base_model(source, dtype=dtype, quantization="none", device="cpu")
        rounded = []
        if section.into == "dequantized":
            rounded = round_as_in_training(base, record.quantization)
            log.info("merge_adapter: %d layers rounded to %s", len(rounded), record.quantization)
        merged = _with_adapter(base, adapter).merge_and_unload(safe_merge=True)
        tokenizer = load_tokenizer(str(adapter))
        _end_at(merged, tokenizer.eos_token_id)
        identity = merged_identity(adapter, run.settings, run.version)
        with with_identity(out, identity), atomic_folder(out) as folder:
            merged.save_pretrained(folder)
            save_tokenizer(tokenizer, folder)
            write_record(folder, record)
        run.count(
            parameters=merged.num_parameters(),
            dequantized_layers=len(rounded),
            adapter_val_loss=record.val_loss,
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


def _end_at(model: PreTrainedModel, end_token_id: int) -> None:
    """Set the end token of the training texts, and no other generation defaults."""
    model.config.eos_token_id = end_token_id
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=end_token_id,
        pad_token_id=end_token_id,
    )
