"""A flow continues from the network of an earlier run, or says why it cannot."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from flow_pairs import LLM_FLOW
from flow_training import SMALL, small_settings
from flowllm.commands.check import check, failures
from flowllm.config.load import check_config, load_config, merge
from flowllm.errors import FlowllmError
from flowllm.rfm.model import CURVE
from flowllm.runtime.provenance import read_provenance
from flowllm.stages import train_rfm
from llm_run import CONFIGS

STILL = {"max_steps": 1, "learning_rate": 1e-12, "min_learning_rate": 0.0}
"""A training that changes nothing, so that the weights are those of the start."""


@pytest.fixture
def earlier(config_path, shards, tmp_path):
    """The folder rfm of an earlier run."""
    folder = tmp_path / "earlier" / "rfm"
    train_rfm.run(small_settings(config_path), **shards, out=folder / "llm")
    return folder


def test_weights_and_statistics_are_those_of_the_start(config_path, shards, earlier, tmp_path):
    out = tmp_path / "flow"
    settings = small_settings(config_path, start=str(earlier), **STILL)
    train_rfm.run(settings, pairs=shards["pairs"][:1], val_pairs=shards["val_pairs"], out=out)
    before, after = (load_file(folder / "weights.safetensors") for folder in (earlier / "llm", out))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-7, rtol=1e-6)
    old, new = (
        json.loads((folder / "model.json").read_text()) for folder in (earlier / "llm", out)
    )
    assert new["standardization"] == old["standardization"]
    assert new["validation_loss"] == pytest.approx(old["validation_loss"], rel=1e-5)


def test_a_training_that_raises_the_loss_keeps_the_start(config_path, shards, earlier, tmp_path):
    """Steps so large that every validation is worse than that of the start."""
    out = tmp_path / "flow"
    wild = {"learning_rate": 1.0, "min_learning_rate": 1.0}
    settings = small_settings(config_path, start=str(earlier), **wild)
    train_rfm.run(settings, **shards, out=out)
    record = json.loads((out / "model.json").read_text())
    curve = [float(row["val_loss"]) for row in csv.DictReader((out / CURVE).open())]
    assert record["best_step"] == 0
    assert record["validation_loss"] < min(curve)
    before, after = (load_file(folder / "weights.safetensors") for folder in (earlier / "llm", out))
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_flow_that_no_method_uses_needs_no_start(earlier):
    """`types` of config.yaml is not among the earlier networks."""
    overlay = {"train_rfm": {**SMALL, "start": str(earlier)}}
    config = check_config(merge(load_config(CONFIGS).model_dump(mode="json"), overlay))
    assert {flow.name for flow in config.flows} == {"llm", "types"}
    assert failures(check(config, stages=["train_rfm"], packages=False)) == []


def test_the_record_names_the_start(config_path, shards, earlier, tmp_path):
    settings = small_settings(config_path, start=str(earlier), **STILL)
    digests = []
    for number in range(2):
        out = tmp_path / f"flow{number}"
        train_rfm.run(settings, **shards, out=out)
        record = read_provenance(out)
        assert str(earlier / "llm" / "weights.safetensors") in record["input_paths"]["start"]
        digests.append(record["inputs"]["start"])
        model = earlier / "llm" / "model.json"
        model.write_text(model.read_text() + " ")
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 32}, "train_rfm.hidden_dim 16, but this run has 32"),
        ({"angle_bounds": [50.0, 130.0]}, "train_rfm.angle_bounds"),
        ({"start": "nowhere"}, "has no network of flow llm"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    config_path, shards, earlier, tmp_path, changes, message
):
    """The workflow refuses it too, before its first job, with the same words."""
    given = {"start": str(earlier), **changes}
    with pytest.raises(FlowllmError, match=message) as caught:
        train_rfm.run(small_settings(config_path, **given), **shards, out=tmp_path / "flow")
    values = load_config(CONFIGS).model_dump(mode="json")
    overlay = {"train_rfm": {**SMALL, **given}, "flows": [LLM_FLOW]}
    config = check_config(merge(values, overlay))
    found = failures(check(config, stages=["train_rfm"], packages=False))
    assert [(one.subject, one.said) for one in found] == [("train_rfm.start", str(caught.value))]


def test_a_network_of_another_base_distribution_is_refused(config_path, shards, earlier, tmp_path):
    shutil.copytree(earlier / "llm", earlier / "types")
    settings = small_settings(
        config_path, flow={"name": "types", "start": "simple"}, start=str(earlier)
    )
    with pytest.raises(FlowllmError, match="the flow's start llm, but this run has simple"):
        train_rfm.run(settings, **shards, out=tmp_path / "flow")
