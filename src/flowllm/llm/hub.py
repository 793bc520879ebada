"""Fetching a base language model into Hugging Face's cache, for jobs without the internet."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from flowllm.errors import FlowllmError

PATTERNS = ["*.safetensors", "*.json", "*.jsonl", "*.model", "*.txt", "*.jinja"]
"""Weights as safetensors, configuration and tokenizer; never pickled weights, never code."""


def fetch_model(name: str) -> Path:
    """Fetch what is not yet in the cache of a model on the Hugging Face hub.

    A token for gated models is read by Hugging Face's library (`HF_TOKEN`).

    Args:
        name: of the model, `owner/name`.

    Returns:
        Its folder in the cache, which is named after the commit.

    Raises:
        FlowllmError: there is no such model, no access to it, or it has no safetensors.
    """
    try:
        folder = Path(snapshot_download(name, allow_patterns=PATTERNS))
    except HFValidationError as error:
        raise FlowllmError(
            f"finetune_llm.base_model {name}: no such folder, and no name on the Hugging Face hub"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FlowllmError(
            f"finetune_llm.base_model {name}: cannot be fetched ({reason}); a gated model needs "
            "its licence accepted and HF_TOKEN set, a machine without the internet a local folder"
        ) from error
    if not any(folder.rglob("*.safetensors")):
        raise FlowllmError(f"finetune_llm.base_model {name}: has no safetensors; take another")
    return folder
