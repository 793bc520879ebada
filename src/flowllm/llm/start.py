"""The earlier model that a fine-tuning continues from (`finetune_llm.start`).

An adapter is continued by `method: lora` on its own base model, a model folder by `method: full`.
Its weights mean something only with the same prompts, tokens and layers, so all of these are
compared before the training.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from flowllm.config.sections.llm import FinetuneLlm, Prompts
from flowllm.config.sections.scratch import SCRATCH
from flowllm.errors import FlowllmError
from flowllm.io.weights_file import check_safetensors
from flowllm.llm.base_model import load_config, load_tokenizer, plain_base_model
from flowllm.llm.model_files import ADAPTER_CONFIG, check_model_folder, read_object
from flowllm.llm.model_record import ADAPTER_WEIGHTS, read_record
from flowllm.llm.scratch import write_scratch
from flowllm.llm.trained_weights import set_trained_weights, trained_weights

CURE = "give another folder, or run the stage that wrote it again"
"""What to do about a damaged start."""

_SIZES = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
)
"""Values of a model's configuration that decide the shapes of its weights."""


@contextmanager
def folder_to_train(
    section: FinetuneLlm, prompts: Prompts, seed: int, commit: str | None = None
) -> Iterator[str]:
    """Give the folder from which tokenizer, configuration and weights are loaded.

    It is that of the base model, and with `method: full` that of the start if there is one.

    Args:
        section: base model, method and start.
        prompts: configured prompts.
        seed: seed of the configuration, for a model with random weights.
        commit: commit of a base model on the hub, None for its newest one.

    Raises:
        FlowllmError: the base model does not exist, or the start does not fit.
    """
    with _base_folder(section, prompts, seed, commit) as base:
        if section.start is not None:
            check_start(section, prompts, load_config(base), load_tokenizer(base))
        is_whole = section.start is not None and section.method == "full"
        yield str(section.start) if is_whole else base


@contextmanager
def _base_folder(
    section: FinetuneLlm, prompts: Prompts, seed: int, commit: str | None
) -> Iterator[str]:
    if section.base_model != SCRATCH:
        with plain_base_model(section.base_model, commit) as base:
            yield base
        return
    with tempfile.TemporaryDirectory(prefix="flowllm-scratch-") as folder:
        write_scratch(Path(folder), section.scratch, prompts, seed)
        yield folder


def check_start(
    section: FinetuneLlm,
    prompts: Prompts,
    base_config: PretrainedConfig | None,
    base_tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Check that training can continue from the start.

    Args:
        section: base model, method and start, which is not None.
        prompts: configured prompts.
        base_config: configuration of the base model, None if it is not available yet.
        base_tokenizer: tokenizer of the base model, None if it is not available yet.

    Raises:
        FlowllmError: the start does not exist or is damaged; it is not what the method continues
            from; or its prompts, base model, tokenizer, sizes or adapter are others.
    """
    folder = Path(str(section.start))
    if not folder.is_dir():
        raise FlowllmError(f"finetune_llm.start: {folder}: no such folder; {CURE}")
    is_adapter = (folder / ADAPTER_CONFIG).exists()
    if is_adapter and section.method == "full":
        raise _unfit(
            folder,
            "has an adapter, but method full trains all weights. Give llm/model of that run, or "
            "set method: lora",
        )
    if not is_adapter and section.method == "lora":
        raise _unfit(
            folder,
            "has no adapter, which method lora continues. Give llm/adapter of that run; for a new "
            "adapter on this model, set base_model to the folder and start to null",
        )
    _check_record(folder, section, prompts)
    if is_adapter:
        _check_adapter(folder, section)
    else:
        check_model_folder(folder, CURE)
        if base_config is not None:
            _check_sizes(folder, section, base_config)
    if base_tokenizer is not None:
        theirs = load_tokenizer(str(folder)).get_vocab()
        if theirs != base_tokenizer.get_vocab():
            raise _unfit(
                folder,
                f"has another tokenizer ({len(theirs)} tokens) than base_model "
                f"{section.base_model} ({len(base_tokenizer)} tokens). Give a start that was "
                "trained with this base_model and the same prompts",
            )


def check_base_content(section: FinetuneLlm, content: str | None) -> None:
    """Check that an adapter of the start was trained on this content of the base model.

    Args:
        section: base model, method and start.
        content: the base model's content (`base_content.base_content`); None if its weights are
            not used.

    Raises:
        FlowllmError: it was trained on another content.
    """
    if section.start is None or content is None:
        return
    trained_on = read_record(Path(section.start)).base_content
    if trained_on not in (None, content):
        raise _unfit(
            Path(section.start),
            f"was trained on another content of base_model {section.base_model} ({trained_on}) "
            f"than the present one ({content}). Give the base model as it was then",
        )


def continue_adapter(model: PeftModel, folder: Path) -> None:
    """Set the weights of a new adapter to those of the start.

    Raises:
        FlowllmError: the start's adapter has other layers or shapes.
    """
    found, wanted = load_file(folder / ADAPTER_WEIGHTS), trained_weights(model)
    differing = sorted(
        name
        for name in found.keys() | wanted.keys()
        if name not in found or name not in wanted or found[name].shape != wanted[name].shape
    )
    if differing:
        raise _unfit(
            folder,
            f"has an adapter with other layers than this run's, {len(differing)} of them, the "
            f"first {differing[0]}. Give a start with the same base model and lora_rank",
        )
    set_trained_weights(model, found)


def _check_record(folder: Path, section: FinetuneLlm, prompts: Prompts) -> None:
    record = read_record(folder)
    if not _same_model(record.base_model, section.base_model):
        raise _unfit(
            folder,
            f"was trained from base_model {record.base_model}, but this run has "
            f"{section.base_model}. Give the same base_model",
        )
    if differing := record.differing_prompts(prompts):
        raise _unfit(
            folder,
            f"was trained on other prompts ({', '.join(differing)} differ). Give the prompts of "
            "that training",
        )


def _check_adapter(folder: Path, section: FinetuneLlm) -> None:
    check_safetensors(folder / ADAPTER_WEIGHTS, CURE)
    theirs = read_object(folder / ADAPTER_CONFIG, CURE)
    ours = {"r": section.lora_rank, "lora_alpha": section.lora_alpha}
    for key, name in (("r", "lora_rank"), ("lora_alpha", "lora_alpha")):
        if theirs.get(key) != ours[key]:
            raise _unfit(
                folder,
                f"its adapter has {name} {theirs.get(key)}, but this run has {ours[key]}. Give "
                f"the same {name}",
            )


def _check_sizes(folder: Path, section: FinetuneLlm, base: PretrainedConfig) -> None:
    config = load_config(str(folder))
    for key in _SIZES:
        theirs, ours = getattr(config, key, None), getattr(base, key, None)
        if theirs != ours:
            raise _unfit(
                folder,
                f"its network has {key} {theirs}, but that of base_model {section.base_model} has "
                f"{ours}. Give a start of the same network",
            )


def _same_model(one: str, other: str) -> bool:
    """Return whether two names are equal, or name the same folder."""
    if one == other:
        return True
    return Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other)


def _unfit(folder: Path, said: str) -> FlowllmError:
    return FlowllmError(f"finetune_llm.start: {folder}: {said}.")
