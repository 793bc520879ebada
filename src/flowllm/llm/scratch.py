"""A small Llama with random weights, and a tokenizer of characters and elements.

With a few million weights, a CPU trains on many times more text per minute than with SmolLM2's 135
million. The tokenizer has one token per byte, so that any text can be written, one per element
symbol, and one per constant part of the prompts, which would otherwise be longer than the crystal.
"""

import re
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flowllm.config.sections.llm import Prompts
from flowllm.config.sections.scratch import Scratch
from flowllm.crystal import MAX_ATOMIC_NUMBER
from flowllm.llm.text_parts import element_symbol
from flowllm.seeds import derive

CONTEXT = 4096
"""Tokens of prompt and crystal together. The rotary embedding has no weights that depend on it."""

END = "<|end|>"
"""The end token."""

_MULTIPLE = 16
"""The hidden width of a layer is a multiple of this number, as is usual for fast products."""


def write_scratch(folder: Path, scratch: Scratch, prompts: Prompts, seed: int) -> None:
    """Write a model with random weights and its tokenizer as a Hugging Face folder.

    Args:
        folder: an existing folder.
        scratch: size of the network.
        prompts: configured prompts, whose constant parts become tokens.
        seed: seed of the configuration, from which that of the weights is derived.
    """
    tokenizer = make_tokenizer(prompts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "finetune_llm", "scratch"))
        model = LlamaForCausalLM(scratch_config(scratch, tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def scratch_config(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the architecture: a Llama whose input and output embeddings are the same.

    The hidden width of a layer is 8/3 of the width, with which its three matrices have the weights
    of a usual layer's two (Shazeer, arXiv 2002.05202).
    """
    hidden = -(-8 * scratch.width // (3 * _MULTIPLE)) * _MULTIPLE
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scratch.width,
        intermediate_size=hidden,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )


def make_tokenizer(prompts: Prompts) -> PreTrainedTokenizerFast:
    """Return the tokenizer of bytes, element symbols and constant parts of the prompts."""
    symbols = [element_symbol(z) for z in range(1, MAX_ATOMIC_NUMBER + 1)]
    merges = [(symbol[0], symbol[1]) for symbol in symbols if len(symbol) == 2]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [END, *alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(
        models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=merges)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in _constant_parts(prompts)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False
    )


def _constant_parts(prompts: Prompts) -> list[str]:
    """Return the parts of the sentences between the values, in alphabetical order.

    Parts without a word are left to the characters. No word occurs in crystal text, whose tokens
    are therefore those of its characters and elements alone.
    """
    texts = (prompts.introduction, *prompts.sentences.values(), prompts.instruction, prompts.infill)
    parts = {part for text in texts for part in re.split(r"\{\w*\}", text)}
    return sorted(part for part in parts if re.search("[a-z]{3}", part))
