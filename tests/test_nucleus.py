"""The nucleus without a sort, against vLLM's own filter, which sorts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.logits_processor.interface import MoveDirectionality
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from flowllm.llm.nucleus import EXTRA_ARG, NucleusProcessor, keep_nucleus


def theirs(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    return apply_top_k_top_p_pytorch(logits.clone(), None, top_p)


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99])
def test_keeps_what_vllm_keeps(scale, p):
    torch.manual_seed(0)
    logits = torch.randn(16, 1000) * scale
    logits[::2, 50:] = -torch.inf  # as a grammar leaves them
    top_p = torch.full((16,), p)
    expected = theirs(logits, top_p)
    torch.testing.assert_close(keep_nucleus(logits, top_p), expected)


def test_rows_have_their_own_p():
    torch.manual_seed(1)
    logits = torch.randn(4, 300)
    top_p = torch.tensor([0.2, 0.999, 1.0, 0.7])
    expected = theirs(logits, top_p)
    kept = keep_nucleus(logits.clone(), top_p, candidates=16)
    torch.testing.assert_close(kept[[0, 1, 3]], expected[[0, 1, 3]])
    torch.testing.assert_close(kept[2], logits[2])


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.floats(0.01, 1.0),
    st.integers(1, 8),
)
def test_what_is_kept_is_the_smallest_set_that_reaches_p(values, p, candidates):
    logits = torch.tensor([values])
    kept = keep_nucleus(logits.clone(), torch.tensor([p]), candidates)[0]
    probabilities = torch.tensor(values, dtype=torch.float64).softmax(0)
    inside = kept.isfinite()
    assert inside.any()
    assert probabilities[inside].sum() >= p - 1e-5
    # Without its least likely values the set would not reach p.
    least = probabilities[inside].min()
    assert probabilities[probabilities > least + 1e-9].sum() < p + 1e-5
    assert inside[probabilities > least].all()


def test_requests_are_followed_through_the_batch():
    processor = NucleusProcessor(None, torch.device("cpu"), False)
    narrow = SamplingParams(extra_args={EXTRA_ARG: 0.01})
    plain = SamplingParams()

    def kept() -> list[int]:
        logits = torch.arange(10.0).repeat(3, 1)
        return processor.apply(logits).isfinite().sum(dim=1).tolist()

    assert kept() == [10, 10, 10]
    added = [(0, plain, [], []), (1, narrow, [], []), (2, plain, [], [])]
    processor.update_state(BatchUpdate(3, removed=[], added=added, moved=[]))
    assert kept() == [10, 1, 10]
    swap = [(0, 1, MoveDirectionality.SWAP)]
    processor.update_state(BatchUpdate(3, removed=[], added=[], moved=swap))
    assert kept() == [1, 10, 10]
    processor.update_state(BatchUpdate(3, removed=[0], added=[], moved=[]))
    assert kept() == [10, 10, 10]
