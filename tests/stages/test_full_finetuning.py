"""Fine-tuning of all weights, and trainings that continue from an earlier model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowllm.commands.check import check, failures
from flowllm.config.load import check_config, load_config, merge
from flowllm.errors import FlowllmError
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import read_table
from flowllm.llm.finetuning import _in_messages
from flowllm.llm.model_record import read_record
from flowllm.llm.prompts import PromptTokens
from flowllm.llm.token_loss import loss_per_token
from flowllm.llm.training_texts import micro_batches, texts_of
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import finetune_llm, merge_adapter
from llm_run import CONFIGS, SMALL, crystal_table, settings_for, small_crystals
from tiny_llm import write_tiny_llm

FULL = {"method": "full", "learning_rate": 2e-3}
STILL = {"max_steps": 1, "learning_rate": 1e-12}
"""A training that changes nothing, so that its validation loss is that of the start."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """A base model, crystals, and an adapter and a model that were trained on them."""
    folder = tmp_path_factory.mktemp("inputs")
    found = {
        "base": write_tiny_llm(folder / "base"),
        "train": crystal_table(folder / "train.parquet", small_crystals()),
        "val": crystal_table(folder / "val.parquet", small_crystals()[:3]),
    }
    lora = {"max_steps": 20, "learning_rate": 0.02}
    found["lora"] = run(found, folder / "lora" / "adapter", **lora)
    found["full"] = run(found, folder / "full" / "adapter", **FULL, max_steps=20)
    return found


def run(inputs, out: Path, *, prompts: dict | None = None, **changes) -> Path:
    settings = settings_for(
        "finetune_llm", inputs["base"], finetune_llm=changes, prompts=prompts or {}
    )
    finetune_llm.run(settings, train=inputs["train"], val=inputs["val"], out=out)
    return out


def merged(inputs, adapter: Path, out: Path) -> Path:
    merge_adapter.run(settings_for("merge_adapter", inputs["base"]), adapter=adapter, out=out)
    return out


def loss_of(inputs, folder: Path) -> float:
    """The validation loss of a model's folder as transformers loads it."""
    settings = settings_for("finetune_llm", inputs["base"])
    section = settings.finetune_llm
    prompts = PromptTokens(settings.prompts, AutoTokenizer.from_pretrained(folder))
    rows = read_table(inputs["val"], CRYSTALS).to_pylist()
    texts = texts_of("val", rows, inputs["val"], prompts, section, settings.seed).epoch(0)
    batches = micro_batches(texts, 3, section.loss_on == "text", 0)
    return loss_per_token(AutoModelForCausalLM.from_pretrained(folder).eval(), batches)


def test_every_weight_is_trained_and_the_recorded_loss_is_the_models(inputs):
    before = load_file(inputs["base"] / "model.safetensors")
    after = load_file(inputs["full"] / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert not torch.equal(value, before[name]), name
    record = read_record(inputs["full"])
    assert record.method == "full"
    assert record.val_loss == pytest.approx(loss_of(inputs, inputs["full"]), abs=1e-5)
    assert record.val_loss < loss_of(inputs, inputs["base"]) - 1


def test_merging_copies_a_model_without_adapter(inputs, tmp_path):
    model = merged(inputs, inputs["full"], tmp_path / "model")
    names = {path.name for path in inputs["full"].iterdir()}
    assert {path.name for path in model.iterdir()} == names - {"training_curve.csv"}
    for path in model.iterdir():
        assert path.read_bytes() == (inputs["full"] / path.name).read_bytes()
    counts = read_provenance(model)["counts"]
    loaded = AutoModelForCausalLM.from_pretrained(model)
    assert counts["parameters"] == loaded.num_parameters()
    assert counts["adapter_val_loss"] == read_record(model).val_loss
    config = json.loads((model / "config.json").read_text())
    assert config["use_cache"] is True


def test_a_damaged_model_is_not_copied(inputs, tmp_path):
    adapter = shutil.copytree(inputs["full"], tmp_path / "adapter")
    weights = adapter / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FlowllmError, match=r"not a whole safetensors file .* finetune_llm again"):
        merged(inputs, adapter, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_updates_that_bfloat16_would_round_away_are_kept(inputs, tmp_path):
    """Beside weights of 0.02, bfloat16 loses steps of 2e-5; a float32 training sums them."""
    slow = {"method": "full", "learning_rate": 2e-5, "max_steps": 30, "precision": "bf16"}
    out = run(inputs, tmp_path / "adapter", **slow, gradient_checkpointing=True, warmup_steps=0)
    after = load_file(out / "model.safetensors")
    before = load_file(inputs["base"] / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert after[name].dtype == torch.bfloat16
    moved = (after[name].float() - before[name].bfloat16().float()).abs()
    assert (moved > 0).float().mean() > 0.8
    assert read_record(out).val_loss == pytest.approx(loss_of(inputs, out), abs=0.05)


def test_the_best_weights_are_kept_with_patience(inputs, tmp_path):
    crystals = small_crystals()
    paths = {
        **inputs,
        "train": crystal_table(tmp_path / "train.parquet", crystals[:4]),
        "val": crystal_table(tmp_path / "val.parquet", crystals[4:]),
    }
    early = {"max_steps": 200, "eval_steps": 2, "patience": 3}
    out = run(paths, tmp_path / "adapter", **FULL, **early)
    counts = read_provenance(out)["counts"]
    assert counts["stopped_early"]
    assert counts["best_step"] < counts["steps"]
    assert read_record(out).val_loss == pytest.approx(loss_of(paths, out), abs=1e-5)
    assert read_record(out).val_loss == pytest.approx(counts["best_val_loss"], abs=1e-4)


def test_gradients_are_summed_in_messages_of_bounded_size(monkeypatch):
    monkeypatch.setattr("flowllm.llm.finetuning.MESSAGE_NUMBERS", 10)
    sizes = [4, 6, 1, 30, 2, 8]
    found = _in_messages([torch.ones(size) for size in sizes])
    messages = [[one.numel() for one in message] for message in found]
    assert messages == [[4, 6], [1], [30], [2, 8]]


@pytest.mark.parametrize(("start", "method"), [("lora", "lora"), ("full", "full")])
def test_training_continues_from_the_weights_of_the_start(inputs, tmp_path, start, method):
    out = run(inputs, tmp_path / "adapter", method=method, start=str(inputs[start]), **STILL)
    assert read_record(out).val_loss == pytest.approx(read_record(inputs[start]).val_loss, abs=1e-5)


def test_the_model_of_a_merged_run_is_a_start_of_full(inputs, tmp_path):
    model = merged(inputs, inputs["lora"], tmp_path / "model")
    out = run(inputs, tmp_path / "adapter", method="full", start=str(model), **STILL)
    assert read_record(out).val_loss == pytest.approx(loss_of(inputs, model), abs=1e-5)


def test_the_record_names_the_start_by_its_bytes(inputs, tmp_path):
    start = shutil.copytree(inputs["lora"], tmp_path / "start")
    given = {"start": str(start), "max_steps": 1}
    digests = []
    for number in range(2):
        out = run(inputs, tmp_path / f"adapter{number}", **given)
        record = read_provenance(out)
        assert str(start / "adapter_model.safetensors") in record["input_paths"]["start"]
        digests.append(record["inputs"]["start"])
        weights = load_file(start / "adapter_model.safetensors")
        weights = {name: value * 2 for name, value in weights.items()}
        save_file(weights, start / "adapter_model.safetensors")
    assert digests[0] != digests[1]


SCRATCH = {
    **{"base_model": "scratch", "method": "full", "quantization": "none"},
    "scratch": {"width": 64, "layers": 2, "heads": 2},
}


@pytest.fixture(scope="module")
def scratch(inputs, tmp_path_factory):
    return run(inputs, tmp_path_factory.mktemp("scratch") / "adapter", **SCRATCH, max_steps=1)


OTHER_SIZE = {"width": 128, "layers": 2, "heads": 2}


@pytest.mark.parametrize(
    ("start", "changes", "message"),
    [
        ("nowhere", {}, "no such folder"),
        ("lora", {"method": "full"}, "has an adapter, but method full"),
        ("full", {}, "has no adapter, which method lora continues"),
        ("lora", {"prompts": {"introduction": "A cell."}}, r"other prompts \(introduction differ"),
        ("lora", {"lora_rank": 8}, "lora_rank 4, but this run has 8"),
        ("lora", {"lora_alpha": 4.0}, r"lora_alpha 32\.0, but this run has 4\.0"),
        ("full", {**SCRATCH}, "was trained from base_model .*base, but this run has scratch"),
        ("scratch", {**SCRATCH, "scratch": OTHER_SIZE}, "hidden_size 64, but .* has 128"),
        ("scratch", {**SCRATCH, "prompts": {"band_gap": "A gap of {band_gap}."}}, "tokenizer"),
        ("base", {"method": "full"}, r"flowllm\.json"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_before_training(
    inputs, scratch, tmp_path, monkeypatch, start, changes, message
):
    """The workflow refuses it too, before its first job, with the same words."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(finetune_llm, "load_base_model", never)
    folders = {**inputs, "scratch": scratch, "nowhere": tmp_path / "nowhere"}
    given = {"start": str(folders[start]), **changes}
    with pytest.raises(FlowllmError, match=message) as caught:
        run(inputs, tmp_path / "adapter", **given)
    prompts = given.pop("prompts", {})
    values = load_config(CONFIGS).model_dump(mode="json")
    overlay = {"finetune_llm": {"base_model": str(inputs["base"]), **SMALL, **given}}
    config = check_config(merge(merge(values, overlay), {"prompts": prompts}))
    found = failures(check(config, stages=["finetune_llm"], packages=False))
    assert [(one.subject, one.said) for one in found] == [("finetune_llm.start", str(caught.value))]


def test_a_start_with_another_tokenizer_is_refused(inputs, tmp_path):
    start = shutil.copytree(inputs["full"], tmp_path / "start")
    text = (start / "tokenizer.json").read_text()
    tokenizer = json.loads(text)
    vocab = tokenizer["model"]["vocab"]
    vocab["!"], vocab['"'] = vocab['"'], vocab["!"]
    (start / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(FlowllmError, match="has another tokenizer"):
        run(inputs, tmp_path / "adapter", method="full", start=str(start))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_model": "scratch", "method": "lora"}, "set method: full"),
        ({"method": "full", "quantization": "nf4"}, "set quantization: none"),
        ({"method": "full", "sharding": "fsdp"}, "set sharding: none"),
    ],
)
def test_methods_that_cannot_train_are_refused(changes, message):
    with pytest.raises(FlowllmError, match=message):
        settings_for("finetune_llm", Path("base"), finetune_llm=changes)


@pytest.mark.parametrize("key", ["finetune_llm", "train_rfm"])
def test_a_start_in_the_runs_own_folder_is_refused(key):
    values = load_config(CONFIGS).model_dump(mode="json")
    changes = {"run_dir": "runs/mine", key: {"start": "runs/../runs/mine/llm/adapter"}}
    with pytest.raises(FlowllmError, match=rf"{key}\.start: .* is in run_dir"):
        check_config(merge(values, changes))
