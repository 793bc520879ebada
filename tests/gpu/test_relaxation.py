"""Relaxation by CHGNet in batches on a device, against each crystal alone on the CPU."""

import pytest

pytest.importorskip("chgnet")
pytest.importorskip("torch_sim")

import torch

from crystals import caesium_chloride, fcc, perovskite, rattled, rocksalt
from flowllm.relax import relaxer
from flowllm.relax.checked_model import CheckedModel
from flowllm.relax.models import load_potential

LIMITS = {"max_force": 0.1, "max_steps": 100, "max_seconds": float("inf")}


def crystals():
    return [
        rattled(rocksalt(), 0.1, 1),
        fcc(),
        rattled(caesium_chloride(), 0.2, 3),
        rattled(perovskite(), 0.1, 2),
    ]


def test_batches_of_a_device_have_the_energies_of_each_crystal_alone(device, monkeypatch):
    """On a GPU torch-sim measures how many crystals fit; on the CPU two of them are a batch."""
    monkeypatch.setattr(relaxer, "CPU_BATCH_LOAD", 500.0)
    given = crystals()
    alone = load_potential("chgnet", torch.device("cpu"))
    expected = [relaxer.relax(alone, [crystal], **LIMITS)[0] for crystal in given]
    found = relaxer.relax(load_potential("chgnet", device), given, **LIMITS)
    for one, other in zip(found, expected, strict=True):
        assert one.failure is None
        assert one.converged
        assert one.initial_energy_per_atom == pytest.approx(other.initial_energy_per_atom, abs=1e-4)
        assert one.final_energy_per_atom == pytest.approx(other.final_energy_per_atom, abs=1e-3)
        assert one.crystal.lengths == pytest.approx(other.crystal.lengths, rel=1e-3)


@pytest.mark.gpu
def test_the_memory_probe_finds_room_for_more_than_one_crystal():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU is visible, and the CPU has a fixed size of batches")
    model = CheckedModel(load_potential("chgnet", torch.device("cuda")).model)
    one = rocksalt()
    assert relaxer._batch_limit(model, one) > 2 * relaxer._load(one)


def test_a_crystal_that_cannot_be_evaluated_leaves_the_others_as_they_are(device):
    good = rattled(rocksalt(), 0.1, 1)
    far = fcc("Cu", 30.0)
    potential = load_potential("chgnet", device)
    [failed, found] = relaxer.relax(potential, [far, good], **LIMITS)
    [expected] = relaxer.relax(potential, [good], **LIMITS)
    assert failed.failure is not None
    assert found.final_energy_per_atom == pytest.approx(expected.final_energy_per_atom, abs=1e-4)
