"""Merge the adapter into its base model: a plain model folder that any engine loads."""

from pathlib import Path

from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from flowllm.config import StageSettings
from flowllm.device import pick_dtype
from flowllm.llm.base_model import (
    load_base_model,
    plain_base_model,
    quiet_transformers,
    save_tokenizer,
)
from flowllm.llm.model_record import read_record, write_record
from flowllm.runlog import stage_run
from flowllm.tables import atomic_folder, check_folder


def run(settings: StageSettings, *, adapter: Path, out: Path) -> None:
    """Add the adapter's low-rank products to the base model's weights.

    The base model is loaded unquantised in the precision of the fine-tuning, on the CPU, whatever
    it was quantised to in training.

    Args:
        settings: no section; all that matters stands in the adapter's folder.
        adapter: folder of the adapter.
        out: folder of the merged model (safetensors, tokenizer, `flowllm.json`).

    Raises:
        FlowllmError: the folder is not an adapter's, or its base model is not found.
    """
    quiet_transformers()
    with stage_run(settings, inputs={"adapter": adapter}, output=out, check=check_folder) as run:
        record = read_record(adapter)
        dtype = pick_dtype(record.precision)
        with plain_base_model(record.base_model) as source:
            base = load_base_model(source, dtype=dtype, quantization="none", device="cpu")
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload(safe_merge=True)
        tokenizer = AutoTokenizer.from_pretrained(adapter)
        _end_at(merged, tokenizer.eos_token_id)
        with atomic_folder(out) as folder:
            merged.save_pretrained(folder)
            save_tokenizer(tokenizer, folder)
            write_record(folder, record)
        run.count(parameters=merged.num_parameters())


def _end_at(model: PreTrainedModel, end_token_id: int) -> None:
    """Let generation end where the training texts end, and sample as it is told to."""
    model.config.eos_token_id = end_token_id
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=end_token_id,
        pad_token_id=end_token_id,
    )
