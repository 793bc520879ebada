"""Merging: the merged weights compute what base and adapter compute together."""

import json
import math
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowllm.errors import FlowllmError
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import read_table
from flowllm.llm.base_model import load_base_model
from flowllm.llm.dequantized import round_as_in_training
from flowllm.llm.model_record import read_record
from flowllm.llm.prompts import PromptTokens
from flowllm.llm.token_loss import loss_per_token
from flowllm.llm.training_texts import micro_batches, texts_of
from flowllm.runtime.identity import identity_path
from flowllm.runtime.provenance import digest, read_provenance
from flowllm.stages import finetune_llm, invariance, merge_adapter
from llm_run import crystal_table, settings_for, small_crystals
from other_llms import ARCHITECTURES, write_llm
from tiny_llm import write_tiny_llm


def merge(folder, quantization: str, into: str, **changes):
    """Fine-tune and merge a tiny model into a folder."""
    base = write_tiny_llm(folder / "base")
    train = crystal_table(folder / "train.parquet", small_crystals())
    given = {"learning_rate": 0.02, "quantization": quantization, **changes}
    settings = settings_for("finetune_llm", base, finetune_llm=given)
    finetune_llm.run(settings, train=train, val=train, out=folder / "adapter")
    settings = settings_for("merge_adapter", base, merge_adapter={"into": into})
    merge_adapter.run(settings, adapter=folder / "adapter", out=folder / "model")
    return folder


@pytest.fixture(scope="module", params=["none", "nf4"])
def merged(tmp_path_factory, request):
    return merge(tmp_path_factory.mktemp("merge"), request.param, "original")


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
    settings = settings_for("merge_adapter", merged / "base", merge_adapter={"into": "original"})
    merge_adapter.run(settings, adapter=merged / "adapter", out=tmp_path / "again")
    for path in (merged / "model").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_a_model_that_is_made_again_has_its_former_identity(merged, tmp_path):
    settings = settings_for("merge_adapter", merged / "base", merge_adapter={"into": "original"})
    merge_adapter.run(settings, adapter=merged / "adapter", out=tmp_path / "model")
    made = identity_path(tmp_path / "model").stat().st_mtime_ns
    merge_adapter.run(settings, adapter=merged / "adapter", out=tmp_path / "model")
    assert identity_path(tmp_path / "model").stat().st_mtime_ns == made


def moved_to(folder, merged):
    """Copy adapter and base model, to change them."""
    for part in ("adapter", "base"):
        shutil.copytree(merged / part, folder / part)
    record = json.loads((folder / "adapter" / "flowllm.json").read_text())
    record["base_model"] = str(folder / "base")
    (folder / "adapter" / "flowllm.json").write_text(json.dumps(record))
    return folder


def scale_weights(path):
    weights = {name: value * 0.9 for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def test_an_adapter_is_not_merged_into_other_weights_of_its_base_model(merged, tmp_path):
    folder = moved_to(tmp_path, merged)
    settings = settings_for("merge_adapter", folder / "base")
    given = {"adapter": folder / "adapter", "out": folder / "model"}
    merge_adapter.run(settings, **given)
    before = (folder / "model" / "model.safetensors").read_bytes()
    scale_weights(folder / "base" / "model.safetensors")
    with pytest.raises(FlowllmError, match="another content of base_model") as caught:
        merge_adapter.run(settings, **given)
    content = read_record(folder / "adapter").base_content
    assert all(part in str(caught.value) for part in (str(folder / "adapter"), content))
    assert (folder / "model" / "model.safetensors").read_bytes() == before


def test_an_adapter_without_a_record_of_the_content_is_merged(merged, tmp_path):
    """As earlier versions have written it."""
    folder = moved_to(tmp_path, merged)
    path = folder / "adapter" / "flowllm.json"
    record = json.loads(path.read_text())
    del record["base_content"]
    path.write_text(json.dumps(record))
    settings = settings_for("merge_adapter", folder / "base")
    merge_adapter.run(settings, adapter=folder / "adapter", out=folder / "model")
    assert read_record(folder / "model").base_content is None


def test_a_retrained_model_of_equal_sizes_has_another_digest(merged, tmp_path):
    """Parts of a killed job that used the former model are then not used."""
    folder = moved_to(tmp_path, merged)
    settings, digests = settings_for("merge_adapter", folder / "base"), []
    for is_retrained in (False, False, True):
        if is_retrained:
            scale_weights(folder / "adapter" / "adapter_model.safetensors")
        merge_adapter.run(settings, adapter=folder / "adapter", out=folder / "model")
        digests.append(digest(folder / "model"))
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_without_a_record_is_refused(merged, tmp_path):
    with pytest.raises(FlowllmError, match=r"flowllm\.json"):
        merge_adapter.run(
            settings_for("merge_adapter", merged / "base"),
            adapter=merged / "base",
            out=tmp_path / "model",
        )
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounded_weights_are_those_that_training_computes_with(
    tmp_path, quantization, architecture, dtype
):
    """Compare with the model quantized by transformers; each layer is applied to unit vectors."""
    source = str(write_llm(architecture, tmp_path / "base"))
    options = {"dtype": dtype, "device": "cpu"}
    quantized = load_base_model(source, quantization=quantization, **options)
    plain = load_base_model(source, quantization="none", **options)
    before = {name: value.clone() for name, value in plain.named_parameters()}
    rounded = set(round_as_in_training(plain, quantization))
    kind = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization]
    assert rounded == {n for n, m in quantized.named_modules() if type(m).__name__ == kind}
    assert rounded
    for name, value in plain.named_parameters():
        layer, _, kind = name.rpartition(".")
        assert torch.equal(value, before[name]) != (layer in rounded and kind == "weight"), name
    if quantization == "int8" and dtype == torch.bfloat16:
        return  # its products round the unit vectors' sums to bfloat16 too
    for name in rounded:
        module, expected = quantized.get_submodule(name), plain.get_submodule(name)
        with torch.no_grad():
            unit = torch.eye(module.in_features, dtype=dtype)
            torch.testing.assert_close(module(unit), expected(unit), rtol=2e-3, atol=2e-4)


def test_without_quantization_no_weight_is_rounded(tmp_path):
    model = load_base_model(
        str(write_tiny_llm(tmp_path)), dtype=torch.float32, quantization="none", device="cpu"
    )
    assert round_as_in_training(model, "none") == []


def validation_loss(folder, model) -> float:
    """The loss on the texts of the fine-tuning's validation, by this process's model."""
    settings = settings_for("finetune_llm", folder / "base")
    prompts = PromptTokens(settings.prompts, AutoTokenizer.from_pretrained(folder / "adapter"))
    section = settings.finetune_llm
    path = folder / "train.parquet"
    rows = read_table(path, CRYSTALS).to_pylist()[: section.validation_rows]
    texts = texts_of("val", rows, path, prompts, section, settings.seed).epoch(0)
    batches = micro_batches(texts, 3, section.loss_on == "text", 0)
    return loss_per_token(model.eval(), batches)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_dequantized_merge_has_the_adapters_loss_and_an_original_one_not(tmp_path, quantization):
    """Training validated the quantized base with the adapter, which peft alone computes here."""
    folder = merge(tmp_path, quantization, "dequantized", max_steps=60)
    base = load_base_model(
        str(folder / "base"), dtype=torch.float32, quantization=quantization, device="cpu"
    )
    trained = validation_loss(folder, PeftModel.from_pretrained(base, folder / "adapter"))
    record = read_record(folder / "adapter")
    assert record.val_loss == pytest.approx(trained, abs=2e-4)
    assert record.quantization == quantization
    counts = read_provenance(folder / "model")["counts"]
    assert counts["adapter_val_loss"] == record.val_loss
    assert counts["dequantized_layers"] == 14

    plain = AutoModelForCausalLM.from_pretrained(folder / "base")
    swapped = validation_loss(folder, PeftModel.from_pretrained(plain, folder / "adapter"))
    found = {}
    for into in ("dequantized", "original"):
        settings = settings_for("merge_adapter", folder / "base", merge_adapter={"into": into})
        merge_adapter.run(settings, adapter=folder / "adapter", out=folder / into)
        counts = read_provenance(measure(folder, folder / into))["counts"]
        assert counts["adapter_val_loss"] == record.val_loss
        found[into] = counts["merged_val_loss"]
    close = {"nf4": 1e-4, "int8": 5e-3}[quantization]  # int8 rounds activations too
    assert found["dequantized"] == pytest.approx(trained, abs=close)
    assert found["original"] == pytest.approx(swapped, abs=1e-4)
    if quantization == "nf4":
        assert abs(swapped - trained) > 2e-4


def measure(folder, model):
    """Run invariance on a merged model; return its output."""
    out = model.with_suffix(".parquet")
    settings = settings_for(
        "invariance",
        folder / "base",
        invariance={"num_crystals": 1, "num_transformations": 1, "batch_size": 3},
    )
    invariance.run(settings, model=model, crystals=folder / "train.parquet", out=out)
    return out


def test_a_merge_that_raises_the_loss_is_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("flowllm.runtime.log.log.propagate", True)
    folder = merge(tmp_path, "none", "dequantized")
    measure(folder, folder / "model")
    assert "merging raised" not in caplog.text
    weights = load_file(folder / "model" / "model.safetensors")
    weights = {name: value * 0.7 for name, value in weights.items()}
    save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    counts = read_provenance(measure(folder, folder / "model"))["counts"]
    assert counts["merged_val_loss"] > counts["adapter_val_loss"] + 0.02
    assert "merging raised the validation loss" in caplog.text


def test_the_loss_of_the_best_adapter_is_recorded_where_patience_keeps_it(tmp_path):
    folder = merge(tmp_path, "none", "original", max_steps=40, eval_steps=5, patience=9)
    counts = read_provenance(folder / "adapter")["counts"]
    kept = read_record(folder / "adapter").val_loss
    assert kept == pytest.approx(counts["best_val_loss"], abs=1e-4)
    assert math.isfinite(kept)


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, -1])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "base/model.safetensors"])
def test_cut_off_weights_are_named_with_a_cure(merged, tmp_path, kept, name):
    moved_to(tmp_path, merged)
    path = tmp_path / name if "/" in name else tmp_path / "adapter" / name
    content = path.read_bytes()
    size = int(len(content) * kept) if 0 < kept < 1 else kept
    path.write_bytes(content[:size])
    with pytest.raises(FlowllmError, match=r"not a whole safetensors file .*; .* again") as caught:
        merge_adapter.run(
            settings_for("merge_adapter", tmp_path / "base"),
            adapter=tmp_path / "adapter",
            out=tmp_path / "model",
        )
    assert str(caught.value).startswith(str(path))
    assert not (tmp_path / "model").exists()


def test_an_adapter_that_lacks_weights_is_refused(merged, tmp_path):
    shutil.copytree(merged / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    del weights[name]
    save_file(weights, path)
    with pytest.raises(FlowllmError, match=f"lacks 1 of the adapter's weights, the first {name}"):
        merge_adapter.run(
            settings_for("merge_adapter", merged / "base"),
            adapter=tmp_path / "adapter",
            out=tmp_path / "model",
        )


def test_other_architectures_are_covered():
    assert {"llama", "gpt2", "opt", "gpt_neox", "mistral", "qwen2", "gemma"} <= set(ARCHITECTURES)
