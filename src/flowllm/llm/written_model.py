"""Writing of a plain Hugging Face model folder, which any engine loads."""

from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from flowllm.llm.base_model import save_tokenizer
from flowllm.llm.model_record import ModelRecord, write_record

CURVE = "training_curve.csv"
"""Name of the training curve, which `finetune_llm` writes beside the weights."""


def write_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    record: ModelRecord,
) -> None:
    """Write weights, configuration, tokenizer and record.

    Args:
        folder: an existing folder.
        model: model whose configuration is completed in place.
        tokenizer: its tokenizer, with the end token of the training texts.
        record: record of the fine-tuning.
    """
    end_token_id = tokenizer.eos_token_id
    assert isinstance(end_token_id, int)
    _end_at(model, end_token_id)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    write_record(folder, record)


def _end_at(model: PreTrainedModel, end_token_id: int) -> None:
    """Set the end token of the training texts, and no other generation defaults."""
    model.config.eos_token_id = end_token_id
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=end_token_id,
        pad_token_id=end_token_id,
    )
