"""A second potential evaluates what the first has relaxed, and says what it cannot evaluate."""

import logging

import pytest
import torch

from crystals import perovskite, rocksalt
from flowllm.relax.failures import RelaxationFailure
from flowllm.relax.relaxer import Relaxation
from flowllm.relax.second_potential import SecondPotential

CPU = torch.device("cpu")


def test_without_a_name_nothing_is_evaluated():
    judge = SecondPotential(None, CPU)
    assert judge.label is None
    assert judge.energies([Relaxation(crystal=rocksalt())]) == [None]


def test_energies_keep_their_places_and_a_failure_is_logged(caplog):
    """The third element of the list has americium, to which CHGNet was not fitted."""
    judge = SecondPotential("chgnet-0.2.0", CPU)
    failed = Relaxation(failure=RelaxationFailure("failed", "x"))
    crystals = [rocksalt(), perovskite(), rocksalt("Am", "O", 5.0)]
    relaxed = [Relaxation(crystal=one) for one in crystals]
    with caplog.at_level(logging.WARNING, logger="flowllm"):
        salt, none, oxide, unknown = judge.energies([relaxed[0], failed, *relaxed[1:]])
    assert none is unknown is None
    (alone,) = judge.energies([relaxed[1]])
    assert oxide == pytest.approx(alone, abs=1e-5)
    assert salt != pytest.approx(oxide, abs=0.1)
    assert "no energy for 1 of 3 relaxed crystals (first: the potential was not" in caplog.text
