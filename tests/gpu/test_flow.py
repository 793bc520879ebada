"""The flow on a device: training against float64 on the CPU, refine against the CPU."""

import json
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("lightning")

import numpy as np
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file

from flow_pairs import BOUNDS, NO_NOISE, OPTIONS, base_row, prototypes, statistics, write_pairs
from flow_training import small_settings
from flowllm.config.stage_settings import StageSettings
from flowllm.io.schemas import BASE
from flowllm.io.tables import read_table, write_table
from flowllm.rfm.base_distribution import LlmBaseDistribution, base_distribution_record
from flowllm.rfm.loader import PreparedPairs, size_groups
from flowllm.rfm.loss import FlowLoss
from flowllm.rfm.model import build_field
from flowllm.rfm.network import NetworkSize, Standardization
from flowllm.rfm.train import train
from flowllm.runtime.device import copied, pick_device
from flowllm.runtime.distributed import _precision_plugin
from flowllm.stages import refine, train_rfm

SIZE = NetworkSize(hidden_dim=32, num_layers=2, time_dim=8, num_frequencies=4)
SCALES = Standardization([4.0] * 3 + [0.0] * 3, [2.0] * 6, 0.1, [0.0] * 6, [0.5] * 6)

TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}
"""Tolerated relative error of the loss and of the whole gradient, by precision. A number in
bfloat16 is rounded by up to 0.4 %, and a gradient sums many of them with either sign."""


@pytest.fixture
def config_path(request):
    return request.config.rootpath / "config.yaml"


@pytest.fixture
def prepared(tmp_path):
    """Prepared pairs of real crystals of several sizes."""
    path = tmp_path / "shard-0.parquet"
    write_pairs(path, prototypes()[:20], 0)
    pairs, _ = train_rfm.prepare_split("train", [path], tmp_path, OPTIONS)
    return pairs


def fabric_of(device: torch.device, precision: str) -> Fabric:
    plugins = [_precision_plugin(precision, device)]
    return Fabric(accelerator=device.type, devices=1, plugins=plugins)


def loss_and_gradient(field, pairs: PreparedPairs, fabric: Fabric, dtype=torch.float32):
    """Return the loss over all pairs and its whole gradient, in float64 on the CPU."""
    loss = fabric.setup(FlowLoss(field.to(dtype)))
    rng = torch.Generator().manual_seed(5)
    total = 0.0
    for group in size_groups(pairs.num_atoms, 100):
        batch = pairs.batch(group)
        floats = {name: x.to(dtype) for name, x in vars(batch).items() if x.is_floating_point()}
        times = torch.rand(len(batch), generator=rng).to(dtype)
        batch = replace(batch, **floats).to(fabric.device)
        errors = loss([batch], [copied(times, fabric.device)])
        total = total + 200 * errors[0] + errors[1]
    fabric.backward(total)
    gradient = torch.cat([p.grad.flatten().double().cpu() for p in field.parameters()])
    return total.item(), gradient


def check_gradient(device, prepared, precision, *, compiled=False):
    exact = build_field(SIZE, BOUNDS, SCALES, seed=1)
    field = deepcopy(exact)
    expected = loss_and_gradient(
        exact, prepared, fabric_of(torch.device("cpu"), "fp32"), torch.float64
    )
    if compiled:
        torch.compiler.reset()
        field.network.compile_layers()
    loss, gradient = loss_and_gradient(field, prepared, fabric_of(device, precision))
    assert loss == pytest.approx(expected[0], rel=TOLERANCES[precision])
    error = (gradient - expected[1]).norm() / expected[1].norm()
    assert error < TOLERANCES[precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_and_its_gradient_are_those_in_float64(device, prepared, precision):
    check_gradient(device, prepared, precision)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_layers_have_the_gradient_in_float64(device, prepared, precision):
    check_gradient(device, prepared, precision, compiled=True)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2)])
def test_a_training_on_a_device_has_the_losses_of_one_on_the_cpu(
    device, prepared, config_path, tmp_path, precision, tolerance
):
    settings = small_settings(config_path, precision=precision)
    scales = statistics(prepared)
    given = settings.train_rfm, settings.seed, prepared, prepared, scales

    def curve(fabric, name):
        files = tmp_path / f"{name}.pt", tmp_path / name
        return train(*given, *files, fabric).curve

    expected = curve(fabric_of(torch.device("cpu"), "fp32"), "expected")
    found = curve(fabric_of(device, precision), "found")
    for one, other in zip(found, expected, strict=True):
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=tolerance)
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=tolerance)


def test_batches_on_a_device_have_the_content_of_the_files(device, prepared):
    for group in size_groups(prepared.num_atoms, 100):
        batch = prepared.batch(group)
        for name, value in vars(batch.to(device)).items():
            assert value.device.type == device.type
            assert torch.equal(value.cpu(), getattr(batch, name))


@pytest.mark.parametrize("keep_symmetry", [False, True])
@pytest.mark.parametrize("integrator", ["euler", "heun"])
def test_refined_crystals_are_those_of_the_cpu(device, tmp_path, integrator, keep_symmetry):
    section = {
        **{"integrator": integrator, "batch_memory_mb": 1, "anneal_slope": 1.0},
        **{"keep_symmetry": keep_symmetry, "trajectory_every": None},
    }
    method = {"name": "flow", "base": "base", "flow": "llm", "num_steps": 10}
    values = {"seed": 7, "version": 1, "refine": section, "method": method}
    settings = StageSettings("refine", values)
    rows = [base_row(crystal, index) for index, crystal in enumerate(prototypes()[:20])]
    write_table(tmp_path / "base.parquet", rows, BASE, {})
    rows = read_table(tmp_path / "base.parquet", BASE).to_pylist()
    field = build_field(SIZE, BOUNDS, SCALES, seed=1).requires_grad_(False).eval()
    expected, _, _ = refine.refine_rows(rows, field, NO_NOISE, settings, None)
    moved = deepcopy(field).to(device)
    found, _, _ = refine.refine_rows(rows, moved, NO_NOISE, settings, None)
    assert [row["status"] for row in found] == [row["status"] for row in expected]
    good = [pair for pair in zip(found, expected, strict=True) if pair[1]["status"] == "ok"]
    assert len(good) > 10
    for one, other in good:
        difference = np.array(one["frac_coords"]) - np.array(other["frac_coords"])
        assert np.abs(difference - difference.round()).max() < 1e-4
        np.testing.assert_allclose(one["lengths"], other["lengths"], rtol=1e-4)
        np.testing.assert_allclose(one["angles"], other["angles"], rtol=1e-4)


@pytest.mark.usefixtures("prepared")
def test_two_processes_train_what_one_does_on_the_cpu(pair_of_devices, config_path, tmp_path):
    """Gradients are averaged by gloo on the CPU and by NCCL on two GPUs."""
    settings = small_settings(config_path, max_steps=6, batch_size=3)
    noise = LlmBaseDistribution(0.02, 0.1, 1.0)
    pairs = PreparedPairs([tmp_path / "train-00000.arrow"], noise, BOUNDS)
    files = tmp_path / "alone.pt", tmp_path / "events-alone"
    fabric = fabric_of(torch.device("cpu"), "fp32")
    scales = statistics(pairs)
    alone = train(settings.train_rfm, settings.seed, pairs, pairs, scales, *files, fabric)
    values = {"seed": settings.seed, "version": settings.version, **settings.values}
    script = Path(__file__).parents[1] / "helpers" / "two_processes.py"
    words = [str(tmp_path), json.dumps(values), str(tmp_path / "two")]
    words += [json.dumps(base_distribution_record(noise)), pair_of_devices]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(script), *words], check=True, env=environment)
    curve = json.loads((tmp_path / "two.json").read_text())
    assert [row["step"] for row in curve] == [4, 6]
    for row, expected in zip(curve, alone.curve, strict=True):
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-3)
    for name, value in alone.weights.items():
        found = load_file(tmp_path / "two")[name]
        torch.testing.assert_close(found, value, atol=1e-4, rtol=1e-3)


@pytest.mark.gpu
def test_stages_use_the_gpu_where_there_is_one():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU is visible")
    assert pick_device().type == "cuda"
