"""Model folders are checked before anything is loaded: data only, whole, no foreign code."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from flowllm.errors import FlowllmError
from flowllm.io.weights_file import check_safetensors
from flowllm.llm.base_model import load_base_model, load_config, load_tokenizer
from flowllm.llm.model_files import INDEX, WEIGHTS, check_model_folder
from flowllm.llm.model_folder import ModelFolder
from flowllm.rfm.base_distribution import base_distribution_from_record
from flowllm.rfm.model import build_field, load_model, save_model
from flowllm.rfm.network import NetworkSize, Standardization
from llm_run import merged_model, settings_for
from tiny_llm import write_tiny_llm


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "base")
    return tmp_path / "base"


def set_key(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder: Path, monkeypatch) -> str:
    """Load a model that must be refused before transformers sees it."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("transformers was asked")

    for name in ("AutoModelForCausalLM", "AutoConfig", "AutoTokenizer"):
        monkeypatch.setattr(f"flowllm.llm.base_model.{name}.from_pretrained", never)
    with pytest.raises(FlowllmError) as caught:
        load_base_model(str(folder), dtype=torch.float32, quantization="none", device="cpu")
    return str(caught.value)


CODE = {"AutoModelForCausalLM": "someone/code--model.Model"}


@pytest.mark.parametrize(
    ("name", "values", "key"),
    [
        ("config.json", {"attn_implementation": "someone/kernels"}, "attn_implementation"),
        ("config.json", {"attn_implementation": "someone/kernels@v1:flash"}, "attn_implementation"),
        ("config.json", {"_attn_implementation": "kernels-community/x"}, "_attn_implementation"),
        ("config.json", {"attn_implementation": {"text": "a/b"}}, "attn_implementation"),
        ("config.json", {"attn_implementation": 1}, "attn_implementation"),
        (
            "config.json",
            {"text_config": {"attn_implementation": "a/b"}},
            "text_config.attn_implementation",
        ),
        ("config.json", {"experts_implementation": "a/b"}, "experts_implementation"),
        ("config.json", {"use_kernels": True}, "use_kernels"),
        ("config.json", {"auto_map": CODE}, "auto_map"),
        ("config.json", {"text_config": {"auto_map": CODE}}, "text_config.auto_map"),
        ("config.json", {"parts": [{"auto_map": CODE}]}, "parts.0.auto_map"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ("config.json", {"transformers_weights": "other.safetensors"}, "transformers_weights"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["t.T", None]}}, "auto_map"),
        ("generation_config.json", {"custom_generate": "someone/code"}, "custom_generate"),
    ],
)
def test_what_would_fetch_or_run_code_is_refused_by_file_and_key(
    folder, monkeypatch, name, values, key
):
    set_key(folder / name, **values)
    said = refused(folder, monkeypatch)
    assert said.startswith(f"{folder / name}: {key}")


def test_a_tokenizer_with_code_is_refused_alone_too(folder):
    set_key(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]})
    with pytest.raises(FlowllmError, match=r"tokenizer_config\.json: auto_map names Python code"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("value", [None, "eager", "sdpa", {"": "sdpa", "text": "eager"}])
def test_transformers_own_attention_is_taken(folder, value):
    set_key(folder / "config.json", attn_implementation=value, auto_map={})
    check_model_folder(folder)


def test_an_adapter_in_the_folder_would_load_another_base_model(folder, monkeypatch):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model"}')
    assert "adapter_config.json" in refused(folder, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        *("pytorch_model.bin", "model.pt", "../elsewhere/model.safetensors", "/etc/x.safetensors"),
        *("part/model.safetensors", "..\\up.safetensors", "model.safetensors.bin", "", None, 3),
    ],
)
def test_an_index_that_names_a_pickle_or_another_folder_is_refused(folder, monkeypatch, name):
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    good = "model-00001-of-00001.safetensors"
    index = {"metadata": {}, "weight_map": {"model.norm.weight": good, "lm_head.weight": name}}
    (folder / INDEX).write_text(json.dumps(index))
    said = refused(folder, monkeypatch)
    assert said.startswith(f"{folder / INDEX}: weight_map: lm_head.weight is in {name!r}")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_is_none_is_refused(folder, monkeypatch, text):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(text)
    assert refused(folder, monkeypatch).startswith(str(folder / INDEX))


def test_a_part_that_the_index_names_and_the_folder_lacks_is_named(folder, monkeypatch):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    said = refused(folder, monkeypatch)
    assert said.startswith(f"{folder / 'model-1.safetensors'}: No such file")
    assert said.endswith("fetch the model again")


@pytest.mark.parametrize("text", [None, "", "{", "[]", '"x"'])
def test_a_config_that_is_none_is_named(folder, monkeypatch, text):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    assert refused(folder, monkeypatch).startswith(str(folder / "config.json"))


@pytest.mark.parametrize("values", [{"model_type": "nothing-known"}, {"hidden_size": "many"}])
def test_a_config_that_transformers_cannot_read_is_named(folder, values):
    set_key(folder / "config.json", **values)
    with pytest.raises(FlowllmError, match=r"config\.json: cannot be read"):
        load_config(str(folder))


CURES = {"base": "fetch the model again", "model": "run merge_adapter again"}


@given(st.data())
def test_a_file_cut_anywhere_is_not_whole(whole, tmp_path_factory, data):
    content = (whole / WEIGHTS).read_bytes()
    size = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.mktemp("cut") / WEIGHTS
    path.write_bytes(content[:size])
    with pytest.raises(FlowllmError, match=r"not a whole safetensors file .*; cure"):
        check_safetensors(path, "cure")
    path.write_bytes(content + b"x")
    with pytest.raises(FlowllmError, match="not a whole safetensors file"):
        check_safetensors(path, "cure")
    path.write_bytes(content)
    check_safetensors(path, "cure")


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_a_whole_file_or_named(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / WEIGHTS
    path.write_bytes(content)
    if content[8:10] != b"{}":
        with pytest.raises(FlowllmError, match=r"not a whole safetensors file"):
            check_safetensors(path, "cure")


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{", b'{"a": 1}', b'{"a": {"data_offsets": [0]}}', b'{"a": {"data_offsets": "x"}}'],
)
def test_headers_of_another_form_are_named(tmp_path, header):
    path = tmp_path / WEIGHTS
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(FlowllmError, match="not a whole safetensors file"):
        check_safetensors(path, "cure")


def test_a_cut_off_merged_model_is_named_with_its_cure(tmp_path):
    paths = merged_model(tmp_path)
    weights = paths["model"] / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1000])
    prompts = settings_for("sample_base", paths["base"], row="tau0.7-p0.9").prompts
    with pytest.raises(FlowllmError, match=r"model\.safetensors: .* run merge_adapter again"):
        ModelFolder(paths["model"], prompts)


def test_a_cut_off_flow_is_named_with_its_cure(tmp_path):
    size = NetworkSize(8, 1, 4, 2)
    statistics = Standardization([1.0] * 6, [1.0] * 6, 1.0, [0.0] * 6, [1.0] * 6)
    field = build_field(size, (59.9, 120.1), statistics)
    noise = {"coords_noise": 0.0, "lengths_noise": 0.0, "angles_noise": 0.0}
    start = base_distribution_from_record({"kind": "llm", **noise})
    curve = [{"step": 1, "seconds": 1.0}]
    save_model(tmp_path / "flow", field, field.state_dict(), start, {}, curve)
    load_model(tmp_path / "flow", torch.device("cpu"))
    path = tmp_path / "flow" / "weights.safetensors"
    content = path.read_bytes()
    for kept in (0, 7, 100, len(content) - 1):
        path.write_bytes(content[:kept])
        with pytest.raises(FlowllmError, match=r"weights\.safetensors: .* run train_rfm again"):
            load_model(tmp_path / "flow", torch.device("cpu"))


def test_a_model_in_parts_loads(folder):
    from safetensors.torch import load_file

    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for name, held in parts.items():
        save_file({one: weights[one] for one in held}, folder / name, metadata={"format": "pt"})
    places = {one: name for name, held in parts.items() for one in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    model = load_base_model(str(folder), dtype=torch.float32, quantization="none", device="cpu")
    torch.testing.assert_close(dict(model.named_parameters())[names[0]], weights[names[0]])
