"""Merging: the merged weights compute what base and adapter compute together."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowllm.errors import FlowllmError
from flowllm.llm.model_record import read_record
from flowllm.stages import finetune_llm, merge_adapter
from llm_run import crystal_table, settings_for, small_crystals
from tiny_llm import write_tiny_llm


@pytest.fixture(scope="module", params=["none", "nf4"])
def merged(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("merge")
    base = write_tiny_llm(folder / "base")
    train = crystal_table(folder / "train.parquet", small_crystals())
    settings = settings_for(
        "finetune_llm", base, finetune_llm={"learning_rate": 0.02, "quantization": request.param}
    )
    finetune_llm.run(settings, train=train, val=train, out=folder / "adapter")
    settings = settings_for("merge_adapter", base)
    merge_adapter.run(settings, adapter=folder / "adapter", out=folder / "model")
    return folder


def test_logits_are_those_of_base_and_adapter(merged):
    tokens = torch.arange(1, 60).reshape(1, -1)
    base = AutoModelForCausalLM.from_pretrained(merged / "base")
    model = AutoModelForCausalLM.from_pretrained(merged / "model")
    with torch.no_grad():
        before = base(tokens).logits
        with_adapter = PeftModel.from_pretrained(base, merged / "adapter").eval()(tokens).logits
        after = model(tokens).logits
    torch.testing.assert_close(after, with_adapter, rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 0.01


def test_each_weight_is_its_base_plus_the_scaled_product(merged):
    base = load_file(merged / "base" / "model.safetensors")
    model = load_file(merged / "model" / "model.safetensors")
    adapter = load_file(merged / "adapter" / "adapter_model.safetensors")
    config = json.loads((merged / "adapter" / "adapter_config.json").read_text())
    name = "model.layers.1.mlp.up_proj"
    a = adapter[f"base_model.model.{name}.lora_A.weight"]
    b = adapter[f"base_model.model.{name}.lora_B.weight"]
    expected = base[f"{name}.weight"] + config["lora_alpha"] / config["r"] * b @ a
    torch.testing.assert_close(model[f"{name}.weight"], expected)
    assert set(model) == set(base)


def test_the_folder_is_plain_and_complete(merged):
    names = {path.name for path in (merged / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "flowllm.json"} <= names
    assert not any(name.startswith("adapter") for name in names)
    config = json.loads((merged / "model" / "config.json").read_text())
    generation = json.loads((merged / "model" / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(merged / "model")
    assert config["eos_token_id"] == generation["eos_token_id"] == tokenizer.eos_token_id
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert config["vocab_size"] == len(tokenizer)
    assert read_record(merged / "model") == read_record(merged / "adapter")


def test_merging_repeats_exactly(merged, tmp_path):
    settings = settings_for("merge_adapter", merged / "base")
    merge_adapter.run(settings, adapter=merged / "adapter", out=tmp_path / "again")
    for path in (merged / "model").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_folder_without_a_record_is_refused(merged, tmp_path):
    with pytest.raises(FlowllmError, match=r"flowllm\.json"):
        merge_adapter.run(
            settings_for("merge_adapter", merged / "base"),
            adapter=merged / "base",
            out=tmp_path / "model",
        )
    assert not (tmp_path / "model").exists()
