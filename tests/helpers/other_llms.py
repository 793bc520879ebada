"""Tiny random models of other architectures than Llama, with the tokenizer of `tiny_llm`.

Heads of 32 numbers are the smallest that vLLM computes on a CPU.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from tiny_llm import make_tokenizer

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
SPECIAL = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}

ARCHITECTURES: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": lambda **more: LlamaConfig(**{**GROUPED, **more}),
    "mistral": lambda **more: MistralConfig(**{**GROUPED, **more}),
    "qwen2": lambda **more: Qwen2Config(**{**GROUPED, **more}),
    "gemma": lambda **more: GemmaConfig(**{**GROUPED, "head_dim": 32, **more}),
    "gpt_neox": lambda **more: GPTNeoXConfig(**{**SIZES, **more}),
    # Galactica's and Pythia's classes are OPT's and GPT-NeoX's.
    "opt": lambda **more: OPTConfig(
        **{
            **{key: value for key, value in SIZES.items() if key != "intermediate_size"},
            **{"ffn_dim": 256, "word_embed_proj_dim": 128, **more},
        }
    ),
    "gpt2": lambda **more: GPT2Config(
        n_embd=128,
        n_layer=2,
        n_head=4,
        n_positions=more.pop("max_position_embeddings", 1024),
        **more,
    ),
}


def write_llm(architecture: str, folder: Path, **changes) -> Path:
    """Write a model and a tokenizer to a folder, and return it."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    given = {"vocab_size": len(tokenizer), **SPECIAL, **changes}
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](**given))
    model.to(torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
