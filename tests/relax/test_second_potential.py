"""A second potential evaluates what the first has relaxed, and says what it cannot evaluate."""

import logging

import pytest
import torch

from crystals import perovskite, rocksalt
from flowllm.relax.second_potential import SecondPotential

CPU = torch.device("cpu")


def test_energies_keep_their_places_and_a_failure_is_logged(caplog):
    """The third element of the list has americium, to which CHGNet was not fitted."""
    judge = SecondPotential("chgnet-0.2.0", CPU)
    given = [rocksalt(), None, perovskite(), rocksalt("Am", "O", 5.0)]
    with caplog.at_level(logging.WARNING, logger="flowllm"):
        salt, none, oxide, unknown = judge.energies(given)
    assert none is unknown is None
    (alone,) = judge.energies([perovskite()])
    assert oxide == pytest.approx(alone, abs=1e-5)
    assert salt != pytest.approx(oxide, abs=0.1)
    assert "no energy for 1 of 3 relaxed crystals (first: the potential was not" in caplog.text
