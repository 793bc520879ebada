"""Stage fetch_model: local models need no internet; missing models give a one-line error."""

import json
import re
from pathlib import Path

import pytest

from flowllm.config.load import load_config
from flowllm.config.stage_settings import StageSettings
from flowllm.errors import FlowllmError
from flowllm.llm import hub
from flowllm.stages import fetch_model
from tiny_llm import write_tiny_llm

CONFIG = Path(__file__).parents[2] / "config.yaml"


@pytest.fixture
def settings():
    return StageSettings.from_config("fetch_model", load_config([CONFIG]))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and no internet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["bundled", "folder"])
def test_what_is_here_is_not_fetched(settings, tmp_path, cache, kind):
    name = "smollm2-135m"
    if kind == "folder":
        name = str(write_tiny_llm(tmp_path / "base"))
    fetch_model.run(settings, base_model=name, out=tmp_path / "base_model.json")
    written = json.loads((tmp_path / "base_model.json").read_text())
    assert written == {"base_model": name, "commit": None}
    assert not cache.exists()


def test_a_model_in_the_cache_is_found_without_the_internet(settings, tmp_path, cache):
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = cache / "models--someone--model"
    snapshot = model / "snapshots" / commit
    write_tiny_llm(snapshot)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    fetch_model.run(settings, base_model="someone/model", out=tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["commit"] == commit


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", ["auto_map", "cut", "no config"])
def test_a_model_that_no_job_could_use_is_refused(settings, tmp_path, kind):
    base = write_tiny_llm(tmp_path / "base")
    if kind == "auto_map":
        config = json.loads((base / "config.json").read_text()) | {"auto_map": {"AutoModel": "a.B"}}
        (base / "config.json").write_text(json.dumps(config))
    elif kind == "cut":
        weights = base / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        (base / "config.json").unlink()
    with pytest.raises(FlowllmError, match=re.escape(str(base))):
        fetch_model.run(settings, base_model=str(base), out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["someone/no-such-model", "/no/such/folder", "a b; rm -rf x"])
def test_what_cannot_be_had_is_said(settings, tmp_path, name):
    with pytest.raises(FlowllmError, match=r"finetune_llm\.base_model"):
        fetch_model.run(settings, base_model=name, out=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_no_pickle_and_no_code_is_ever_asked_for():
    for pattern in hub.PATTERNS:
        assert not pattern.endswith((".bin", ".pt", ".pth", ".py", ".pkl", ".h5", "*"))
