"""Best weights and early stopping, against the list of all losses."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from flowllm.runtime.early_stopping import BestWeights

LOSSES = st.lists(st.sampled_from([0.1, 0.2, 0.3, math.nan, math.inf]), min_size=1)


@given(losses=LOSSES, patience=st.none() | st.integers(1, 4))
def test_the_first_lowest_loss_is_kept_and_the_wait_counted(losses, patience):
    best = BestWeights(patience)
    for step, loss in enumerate(losses, start=1):
        best.update(step, loss, lambda step=step: {"weight": torch.tensor(float(step))})
    finite = [loss for loss in losses if math.isfinite(loss)]
    step = losses.index(min(finite)) + 1 if finite else 0
    assert (best.step, best.loss) == (step, min(finite, default=math.inf))
    assert best.evaluations_without_gain == len(losses) - step
    assert best.weights == ({"weight": torch.tensor(float(step))} if finite else {})
    assert best.is_patience_over == (patience is not None and len(losses) - step >= patience)


def test_kept_weights_are_a_copy():
    weight = torch.zeros(2)
    best = BestWeights(None)
    best.update(1, 0.5, lambda: {"weight": weight})
    weight += 1
    torch.testing.assert_close(best.weights["weight"], torch.zeros(2))
