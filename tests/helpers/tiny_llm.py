"""A randomly initialised Llama of some hundred thousand parameters, as a plain model folder.

`python tests/helpers/tiny_llm.py OUT` writes it. Transformers, peft and vLLM load it as any other;
its tokenizer is a byte-level BPE that gives every digit its own token and knows each element.
"""

import sys
from pathlib import Path

import torch
from pymatgen.core.periodic_table import Element
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """All bytes, and the symbols of two letters as merges of their letters."""
    symbols = [Element.from_Z(z).symbol for z in range(1, 119)]
    merges = [tuple(symbol) for symbol in symbols if len(symbol) == 2]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [END, *alphabet, *("".join(pair) for pair in merges)]
    bpe = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def make_model(vocab_size: int, seed: int = 0) -> LlamaForCausalLM:
    """Random weights; float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config)


def write_tiny_llm(folder: Path) -> Path:
    """Write model and tokenizer to a folder, and return it."""
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    write_tiny_llm(Path(sys.argv[1]))
