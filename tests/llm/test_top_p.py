"""Draws from the nucleus, against vLLM's own filter, which sorts, and the filtered softmax."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from flowllm.llm.engines.top_p import draw_tokens, uniforms_of


def shares(logits: torch.Tensor, candidates: int, **options: float) -> torch.Tensor:
    """How often each token (v,) is drawn where the random numbers are evenly spaced."""
    uniforms = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    rows = logits.expand(len(uniforms), -1)
    drawn = draw_tokens(rows, uniforms, candidates=candidates, **options)
    return torch.bincount(drawn, minlength=len(logits)) / len(uniforms)


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("candidates", [8, 300])
def test_shares_are_the_filtered_softmax(scale, p, candidates):
    torch.manual_seed(0)
    logits = torch.randn(200) * scale
    logits[50:100] = -torch.inf  # as a grammar leaves them
    scaled = logits[None] / 0.7
    filtered = apply_top_k_top_p_pytorch(scaled, None, torch.tensor([p])) if p < 1 else scaled
    expected = filtered[0].softmax(0)
    found = shares(logits, candidates, temperature=0.7, top_p=p)
    # Evenly spaced numbers miss a token's share by at most one of them at each end.
    torch.testing.assert_close(found, expected, atol=1.01 / 20000, rtol=0)


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.floats(0.01, 1.0),
    st.integers(1, 8),
    st.floats(0, 1, exclude_max=True),
)
def test_what_is_drawn_belongs_to_the_smallest_set_that_reaches_p(values, p, candidates, uniform):
    logits = torch.tensor([values])
    uniforms = torch.tensor([uniform], dtype=torch.float64)
    drawn = draw_tokens(logits, uniforms, temperature=1.0, top_p=p, candidates=candidates)
    probabilities = torch.tensor(values, dtype=torch.float64).softmax(0)
    likelier = probabilities[probabilities > probabilities[drawn] + 1e-9].sum()
    assert likelier < p + 1e-5


def test_rows_are_drawn_each_for_itself():
    """Rows whose nucleus is among the candidates beside rows whose is not."""
    torch.manual_seed(1)
    logits = torch.randn(32, 300) * torch.tensor([0.1, 6.0]).repeat(16)[:, None]
    uniforms = torch.rand(32, dtype=torch.float64)
    options = {"temperature": 0.9, "top_p": 0.95, "candidates": 16}
    together = draw_tokens(logits, uniforms, **options)
    alone = [draw_tokens(logits[i : i + 1], uniforms[i : i + 1], **options) for i in range(32)]
    assert together.tolist() == torch.cat(alone).tolist()


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, -1.0, 4.9]])
    uniforms = torch.tensor([0.99, 0.99], dtype=torch.float64)
    assert draw_tokens(logits, uniforms, temperature=0, top_p=1.0).tolist() == [1, 0]


def test_the_numbers_of_a_text_repeat_and_are_uniform():
    numbers = uniforms_of(7, 10000)
    assert torch.equal(numbers[:50], uniforms_of(7, 50))
    assert not torch.equal(numbers[:50], uniforms_of(8, 50))
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts = torch.histc(numbers.float(), 10, 0, 1)
    assert (counts - 1000).abs().max() < 5 * 30  # five standard deviations
