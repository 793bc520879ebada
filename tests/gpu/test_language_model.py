"""The language model on a device: one step of fine-tuning, and texts of the merged model."""

import json
import math
from dataclasses import replace

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file

from flowllm.llm.engines import transformers as engine
from flowllm.llm.engines.base import DraftRequest, SamplingOptions
from flowllm.llm.engines.transformers import TransformersEngine
from flowllm.llm.masks import MaskOptions
from flowllm.runtime.distributed import _precision_plugin
from flowllm.stages import finetune_llm, merge_adapter
from llm_run import crystal_table, drafts_of, settings_for, small_crystals
from tiny_llm import END, make_tokenizer, write_tiny_llm

FREE = SamplingOptions(
    temperature=1.0, top_p=0.9, max_tokens=24, end_token_id=0, allowed_tokens=None
)
DIGITS = tuple(sorted(make_tokenizer().convert_tokens_to_ids([*"0123456789", END])))
SCRATCH = {"width": 64, "layers": 2, "heads": 2}


@pytest.fixture
def on(monkeypatch):
    """Return a function that lets the stages and engines use one device."""

    def use(device: torch.device) -> None:
        def fabric(precision: str) -> Fabric:
            plugins = [_precision_plugin(precision, device)]
            return Fabric(accelerator=device.type, devices=1, plugins=plugins)

        monkeypatch.setattr(finetune_llm, "make_fabric", fabric)
        monkeypatch.setattr(engine, "pick_device", lambda: device)

    return use


def tuned(folder, name, base, **changes):
    """Fine-tune by one step; return the folder and the losses of training and validation."""
    train = crystal_table(folder / f"{name}.parquet", small_crystals())
    settings = settings_for("finetune_llm", base, finetune_llm={"max_steps": 1, **changes})
    finetune_llm.run(settings, train=train, val=train, out=folder / name)
    record = json.loads((folder / f"_{name}.provenance.json").read_text())["counts"]
    return folder / name, (record["train_loss"], record["val_loss"])


@pytest.mark.parametrize(
    ("precision", "quantization", "tolerance"),
    [
        ("fp32", "none", 1e-3),
        ("bf16", "none", 1e-2),
        ("bf16", "nf4", 5e-2),
        ("bf16", "int8", 5e-2),
    ],
)
def test_one_step_of_lora_has_the_losses_of_the_cpu_in_float32(
    device, on, tmp_path, precision, quantization, tolerance
):
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    base = write_tiny_llm(tmp_path / "base")
    on(torch.device("cpu"))
    _, expected = tuned(tmp_path, "expected", base)
    on(device)
    changes = {"precision": precision, "quantization": quantization}
    adapter, found = tuned(tmp_path, "found", base, **changes)
    assert found == pytest.approx(expected, rel=tolerance)
    weights = load_file(adapter / "adapter_model.safetensors")
    moved = [value for name, value in weights.items() if "lora_B" in name]
    assert moved
    assert all(value.isfinite().all() and value.abs().max() > 0 for value in moved)


def test_one_step_of_a_new_model_has_the_losses_of_the_cpu(device, on, tmp_path):
    changes = {"method": "full", "scratch": SCRATCH}
    on(torch.device("cpu"))
    _, expected = tuned(tmp_path, "expected", "scratch", **changes)
    on(device)
    _, found = tuned(tmp_path, "found", "scratch", **changes)
    assert all(map(math.isfinite, found))
    assert found == pytest.approx(expected, rel=1e-3)


def texts_on(device, on, folder, requests, sampling=FREE):
    on(device)
    made = TransformersEngine(folder, sampling=sampling)
    drafts = drafts_of(made, requests)
    made.close()
    return drafts


def test_the_merged_model_writes_the_same_texts_on_the_device_as_on_the_cpu(device, on, tmp_path):
    """Greedy and random texts; the last bits of the logits change few tokens."""
    base = write_tiny_llm(tmp_path / "base")
    on(device)
    adapter, _ = tuned(tmp_path, "adapter", base)
    merge_adapter.run(settings_for("merge_adapter", base), adapter=adapter, out=tmp_path / "model")
    tokenizer = make_tokenizer()
    prompts = ["A crystal.\n", "Formula Na4Cl4.\n", "Formula Cs1Cl1, and a longer prompt.\n"]
    requests = [
        DraftRequest(tuple(tokenizer(prompts[seed % 3])["input_ids"]), seed) for seed in range(60)
    ]
    for sampling in (replace(FREE, temperature=0.0), FREE):
        found, expected = (
            texts_on(one, on, tmp_path / "model", requests, sampling)
            for one in (device, torch.device("cpu"))
        )
        same = [one == other for one, other in zip(found, expected, strict=True)]
        assert sum(same) >= 0.95 * len(same)


def test_a_mask_excludes_near_points_on_the_device(device, on, tmp_path):
    """After the kept lines, the digits 0 and 9 lead to points near the first atom only."""
    folder = write_tiny_llm(tmp_path / "base")
    tokenizer = make_tokenizer()
    kept = tokenizer("4.0 4.0 4.0\n90 90 90\nNa\n0.00 0.00 0.00\nNa\n0.00 0.00 0.")["input_ids"]
    texts = {token: tokenizer.decode([token]) for token in {*kept, *DIGITS}} | {DIGITS[0]: "\n"}
    masks = MaskOptions("coordinates", 0.5, texts)
    sampling = replace(FREE, max_tokens=300, allowed_tokens=DIGITS, masks=masks)
    prompt = tuple(tokenizer("A crystal.\n")["input_ids"])
    requests = [
        DraftRequest(prompt, seed, kept=tuple(kept), stops=lambda _: True, masked="line")
        for seed in range(40)
    ]
    drafts = texts_on(device, on, folder, requests, sampling)
    assert {len(draft.tokens) for draft in drafts} == {1}
    assert {tokenizer.decode(draft.tokens[0]) for draft in drafts} <= set("12345678")
