"""Base models of architectures other than Llama are fine-tuned, merged, sampled, or rejected."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from flowllm.commands.generate_drafts import draft_rows
from flowllm.errors import FlowllmError
from flowllm.llm.base_checks import check_heads, context_of, heads_of
from flowllm.llm.base_model import load_config
from flowllm.llm.engines.vllm import cached_numbers
from flowllm.stages import finetune_llm, merge_adapter
from llm_run import crystal_table, settings_for, small_crystals
from other_llms import ARCHITECTURES, SIZES, write_llm
from tiny_llm import make_tokenizer


def tune(base: Path, folder: Path, **changes) -> Path:
    train = crystal_table(folder / "train.parquet", small_crystals())
    settings = settings_for("finetune_llm", base, finetune_llm={"max_steps": 2, **changes})
    finetune_llm.run(settings, train=train, val=train, out=folder / "adapter")
    return folder / "adapter"


def sampled(architecture: str, folder: Path, backend: str) -> list[dict]:
    """Return two texts of a model that was fine-tuned with 4-bit weights and merged."""
    base = write_llm(architecture, folder / "base")
    adapter = tune(base, folder, quantization="nf4")
    merge_adapter.run(settings_for("merge_adapter", base), adapter=adapter, out=folder / "model")
    changes = {"backend": backend, "structured": False, "max_attempts": 1}
    settings = settings_for("sample_base", base, row="tau0.7-p0.9", sample_base=changes)
    return draft_rows(settings, model=folder / "model", asked=[{}], count=2, gpus=0)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neox", "mistral", "qwen2", "gemma"])
def test_a_model_is_tuned_merged_and_sampled(tmp_path, architecture):
    rows = sampled(architecture, tmp_path, "transformers")
    assert [row["attempts"] for row in rows] == [1, 1]
    assert all(row["num_tokens"] > 0 for row in rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cache_holds_keys_and_values_of_each_head(tmp_path, architecture):
    config = load_config(str(write_llm(architecture, tmp_path)))
    heads = 4 if architecture in ("gpt2", "opt", "gpt_neox") else 2
    assert cached_numbers(config) == 2 * 2 * heads * 32  # keys and values, two layers
    assert context_of(config) == 1024


def test_heads_that_gpus_cannot_share_are_refused(tmp_path):
    config = load_config(str(write_llm("opt", tmp_path)))
    for gpus in (0, 1, 2, 4):
        check_heads(heads_of(config), gpus, "resources.sample_pairs.gpus")
    with pytest.raises(FlowllmError, match=r"resources\.sample_pairs\.gpus is 3, but the 4 att"):
        check_heads(heads_of(config), 3, "resources.sample_pairs.gpus")


def refused_before_training(base: Path, folder: Path, monkeypatch, **changes) -> str:
    """Fine-tune on a model that must be refused before its weights are read."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(finetune_llm, "load_base_model", never)
    with pytest.raises(FlowllmError) as caught:
        tune(base, folder, **changes)
    assert not (folder / "adapter").exists()
    return str(caught.value)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_encoders_and_translators_are_refused(tmp_path, kind, monkeypatch):
    tokenizer = make_tokenizer()
    if kind == "bert":
        model = BertForMaskedLM(BertConfig(**SIZES, vocab_size=len(tokenizer)))
    else:
        sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
        model = T5ForConditionalGeneration(T5Config(**sizes, vocab_size=len(tokenizer)))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    said = refused_before_training(tmp_path / "base", tmp_path, monkeypatch)
    assert f"{kind} models" in said
    assert "take" in said


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_context_shorter_than_the_texts_is_said_with_the_numbers(
    tmp_path, architecture, monkeypatch
):
    base = write_llm(architecture, tmp_path / "short", max_position_embeddings=64)
    said = refused_before_training(base, tmp_path, monkeypatch)
    assert "its context has 64 tokens" in said
    assert "the longest training text has" in said
    assert "finetune_llm.max_tokens" in said


def test_a_context_shorter_than_prompt_and_longest_answer_is_said(tmp_path, monkeypatch):
    """Each training text fits, since long ones are left out; a sampled crystal would not."""
    base = write_llm("opt", tmp_path / "short", max_position_embeddings=120)
    said = refused_before_training(base, tmp_path, monkeypatch, max_tokens=110)
    assert "its context has 120 tokens" in said
    assert "sampling needs" in said
    assert "a crystal of 5 atoms" in said
    assert "prepare.max_atoms" in said


def test_a_context_that_just_suffices_is_taken(tmp_path):
    tune(write_llm("gpt2", tmp_path / "base", max_position_embeddings=400), tmp_path)


def losing(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that does not reproduce texts."""
    tokenizer = make_tokenizer()
    inner = tokenizer.backend_tokenizer
    if kind == "line breaks":
        inner.normalizer = normalizers.Replace("\n", " ")
    elif kind == "cases":
        inner.normalizer = normalizers.Lowercase()
    elif kind == "spaces":
        inner.normalizer = normalizers.Replace(" ", "")
    elif kind == "stripped":
        inner.normalizer = normalizers.Replace("0", "O")
    elif kind == "words":
        # As BERT's and T5's: cut at white space of any kind, joined by spaces.
        words = ["<unk>", "<|end|>", *"0123456789.?:", "A", "crystal", "Na", "Cl"]
        model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
        inner = Tokenizer(model)
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        inner.decoder = decoders.WordPiece()
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token="<|end|>", unk_token="<unk>"
        )
    elif kind == "end":
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=".")
    return tokenizer


@pytest.mark.parametrize("kind", ["line breaks", "cases", "spaces", "stripped", "words", "end"])
def test_a_tokenizer_that_does_not_give_a_text_back_is_refused(tmp_path, kind, monkeypatch):
    base = write_llm("llama", tmp_path / "base")
    for path in base.glob("tokenizer*"):
        path.unlink()
    losing(kind).save_pretrained(base)
    said = refused_before_training(base, tmp_path, monkeypatch)
    assert str(base) in said
    assert "take a base model with another tokenizer" in said
    if kind == "line breaks":
        assert "line breaks" in said


def test_a_tokenizer_of_another_model_is_refused(tmp_path, monkeypatch):
    base = write_llm("llama", tmp_path / "base", vocab_size=100)
    said = refused_before_training(base, tmp_path, monkeypatch)
    assert "tokens 0 to 99" in said


def test_a_sentencepiece_like_tokenizer_is_taken(tmp_path):
    """Llama-2's kind: a space before each text, spaces as a character of their own, byte tokens."""
    tokenizer = make_tokenizer()
    alphabet = [*"▁\n0123456789.?:,/", *map(chr, range(65, 91)), *map(chr, range(97, 123))]
    words = ["<s>", "</s>", *alphabet]
    inner = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    base = write_llm("llama", tmp_path / "base")
    for path in base.glob("tokenizer*"):
        path.unlink()
    tokenizer.save_pretrained(base)
    assert (tune(base, tmp_path) / "adapter_model.safetensors").exists()


def test_weights_that_a_folder_lacks_are_not_drawn_at_random(tmp_path):
    from safetensors.torch import load_file, save_file

    base = write_llm("llama", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    lost = next(name for name in weights if name.endswith("up_proj.weight"))
    del weights[lost]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FlowllmError, match=r"lack 1 of the model's weights, the first .*up_proj"):
        tune(base, tmp_path)


def test_gpt2s_transposed_layers_get_their_products(tmp_path):
    """Merged GPT-2 computes what base and adapter compute."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = write_llm("gpt2", tmp_path / "base")
    adapter = tune(base, tmp_path, max_steps=6, learning_rate=0.05)
    settings = settings_for("merge_adapter", base)
    merge_adapter.run(settings, adapter=adapter, out=tmp_path / "model")
    tokens = torch.arange(1, 60).reshape(1, -1)
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        before = plain(tokens).logits.numpy()
        expected = PeftModel.from_pretrained(plain, adapter).eval()(tokens).logits.numpy()
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()(tokens).logits
    np.testing.assert_allclose(merged.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected - before).max() > 0.01


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neox"])
def test_vllm_samples_a_model_without_num_key_value_heads(tmp_path, architecture):
    """In a process of its own: vLLM changes transformers' GPT-NeoX for the rest of a process."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        rows = pool.submit(sampled, architecture, tmp_path, "vllm").result()
    assert [row["attempts"] for row in rows] == [1, 1]
    assert all(row["num_tokens"] > 0 for row in rows)
