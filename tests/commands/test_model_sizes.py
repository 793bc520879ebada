"""Sizes of models against those that torch, transformers and peft make."""

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from flowllm.commands.model_sizes import KNOWN, Llama, model_bytes
from flowllm.config.load import load_config
from tiny_run import ROOT


def on_meta(size: Llama) -> LlamaForCausalLM:
    head = 64
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.width // head,
        num_key_value_heads=size.key_value // head,
        tie_word_embeddings=size.tied,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_and_adapter_are_those_of_the_libraries(name):
    size = KNOWN[name]
    model = on_meta(size)
    assert sum(weight.numel() for weight in model.parameters()) == size.parameters
    adapted = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", bias="none"))
    trained = sum(one.numel() for one in adapted.parameters() if one.requires_grad)
    assert trained == size.adapter(8)


def test_the_papers_base_model_has_138_gigabytes():
    sizes = model_bytes(load_config([ROOT / "config.yaml"]))
    assert sizes.downloaded == sizes.merged == 2 * 68_976_648_192


def configured(tmp_path, **changes):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.safe_dump(changes))
    return load_config([ROOT / "config.yaml", overlay])


def test_a_folder_is_not_downloaded_and_counts_by_its_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    section = {"base_model": str(tmp_path), "precision": "fp32", "quantization": "none"}
    sizes = model_bytes(configured(tmp_path, finetune_llm=section))
    assert (sizes.downloaded, sizes.merged, sizes.adapter) == (0, 2000, None)


def test_an_unknown_model_has_unknown_bytes(tmp_path):
    sizes = model_bytes(configured(tmp_path, finetune_llm={"base_model": "owner/other"}))
    assert (sizes.downloaded, sizes.merged, sizes.adapter) == (None, None, None)


def test_checkpoints_with_patience_have_the_best_weights_too(tmp_path):
    adapter = KNOWN["meta-llama/Llama-2-70b-hf"].adapter(8)
    without, patient = (
        model_bytes(configured(tmp_path, finetune_llm={"patience": patience})).llm_checkpoints
        for patience in (None, 3)
    )
    assert without == 2 * 4 * 3 * adapter
    assert patient == 2 * 4 * 4 * adapter
