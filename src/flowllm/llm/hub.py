"""Download of a base model into Hugging Face's cache, for jobs without internet access."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from flowllm.errors import FlowllmError, PassingError

PATTERNS = ["*.safetensors", "*.json", "*.jsonl", "*.model", "*.txt", "*.jinja"]
"""Files that are downloaded: safetensors weights, configuration and tokenizer. Pickled weights and
code are never downloaded."""


def fetch_model(name: str, commit: str | None = None) -> Path:
    """Download the files of a model on the Hugging Face hub that are not in the cache yet.

    Hugging Face's library reads the token for gated models from `HF_TOKEN`.

    Args:
        name: name of the model, `owner/name`.
        commit: commit of the model, None for the newest one.

    Returns:
        The model's folder in the cache, which is named after the commit.

    Raises:
        FlowllmError: the model does not exist, cannot be accessed, or has no safetensors weights.
    """
    at = "" if commit is None else f" at commit {commit}"
    try:
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=PATTERNS))
    except HFValidationError as error:
        raise FlowllmError(
            f"finetune_llm.base_model {name}: there is no such folder, and the name is not one of "
            "the Hugging Face hub (owner/name). Correct the name or the path."
        ) from error
    except Exception as error:
        # Those of the hub, and of the network libraries below it, have no common class.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise PassingError(
            f"finetune_llm.base_model {name}{at}: cannot be downloaded ({reason}). For a gated "
            "model, accept its license and set HF_TOKEN; on a machine without internet access, "
            "give a local folder."
        ) from error
    if not any(folder.rglob("*.safetensors")):
        raise FlowllmError(
            f"finetune_llm.base_model {name}: the model has no safetensors weights on the Hugging "
            "Face hub, and pickled weights are not read. Take a model with safetensors weights."
        )
    return folder
