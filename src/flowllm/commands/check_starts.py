"""Checks of the models that training starts from: random weights, or those of an earlier run.

`commands.check` imports this module only where it is needed, since transformers takes seconds.
"""

from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from flowllm.config.model import Config
from flowllm.config.sections.scratch import SCRATCH
from flowllm.llm.base_model import load_config, load_tokenizer, quiet_transformers
from flowllm.llm.scratch import make_tokenizer, scratch_config
from flowllm.llm.start import check_start as check_llm_start
from flowllm.rfm.start import check_start as check_flow_start


def scratch_model(config: Config) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Return the architecture and the tokenizer of a model with random weights."""
    tokenizer = make_tokenizer(config.prompts)
    return scratch_config(config.finetune_llm.scratch, tokenizer), tokenizer


def llm_start(config: Config) -> str:
    """Check the earlier model that the fine-tuning continues from.

    Base models that must be unpacked or downloaded are compared by `finetune_llm`.

    Raises:
        FlowllmError: it does not exist, is damaged or does not fit the configuration.
    """
    section = config.finetune_llm
    quiet_transformers()
    architecture, tokenizer = None, None
    if section.base_model == SCRATCH:
        architecture, tokenizer = scratch_model(config)
    elif Path(section.base_model).is_dir():
        architecture = load_config(section.base_model)
        tokenizer = load_tokenizer(section.base_model)
    check_llm_start(section, config.prompts, architecture, tokenizer)
    return f"{section.start}, continued by method {section.method}"


def flow_starts(config: Config) -> str:
    """Check the earlier network that each flow of a method continues from.

    Raises:
        FlowllmError: one does not exist, is damaged or does not fit the configuration.
    """
    flows = [flow for flow in config.flows if flow.name in config.used_flows]
    for flow in flows:
        check_flow_start(config.train_rfm, flow)
    return f"{config.train_rfm.start}, networks of {', '.join(flow.name for flow in flows)}"
