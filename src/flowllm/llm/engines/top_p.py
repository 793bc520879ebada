"""Drawing a token from the nucleus (top-p), the same for both engines.

Engines usually sort all logits of a step and draw random numbers for all of them; with a small
model that is most of the time. The nucleus nearly always lies within the few hundred largest
logits, which are found without a sort, and one random number picks from it: the token at which the
cumulative probability, in the order of the vocabulary, passes that number. Only a row whose
nucleus is larger is sorted whole.
"""

import torch
from torch import Tensor

CANDIDATES = 128
"""Largest logits that are looked at first."""


def draw_tokens(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float,
    top_p: float,
    candidates: int = CANDIDATES,
) -> Tensor:
    """Draw a token a row.

    Args:
        logits: (b, v), any of them -inf, not all of a row.
        uniforms: (b,), float64 in [0, 1); the draw's randomness.
        temperature: of the softmax; at 0 the likeliest token is taken.
        top_p: the draw is from the fewest likeliest tokens whose probabilities reach this, in
            (0, 1].
        candidates: how many of the largest logits are looked at before a row is sorted whole.

    Returns:
        Columns (b,) of the drawn tokens.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    scores = logits.float() / temperature
    log_total = scores.logsumexp(dim=-1, keepdim=True)
    top = scores.topk(min(candidates, scores.shape[-1]), dim=-1)
    probabilities = (top.values - log_total).double().exp()
    tokens = _pick(probabilities, top.indices, uniforms, top_p)
    incomplete = probabilities.sum(dim=-1) < top_p
    if top.indices.shape[-1] < scores.shape[-1] and incomplete.any():
        every = scores[incomplete].sort(dim=-1, descending=True)
        probabilities = (every.values - log_total[incomplete]).double().exp()
        tokens[incomplete] = _pick(probabilities, every.indices, uniforms[incomplete], top_p)
    return tokens


def _pick(descending: Tensor, tokens: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Pick from the nucleus of likeliest tokens (b, c), given with their probabilities."""
    # A token belongs to the nucleus if the likelier ones do not reach top_p without it.
    likelier = descending.cumsum(dim=-1) - descending
    kept = descending.masked_fill(likelier >= top_p, 0.0)
    # In the vocabulary's order: were it the probabilities', two nearly equal ones that change
    # places by rounding would change the draw.
    tokens, order = tokens.sort(dim=-1)
    cumulative = kept.gather(-1, order).cumsum(dim=-1)
    passed = cumulative > uniforms.unsqueeze(-1) * cumulative[:, -1:]
    return tokens.gather(-1, passed.int().argmax(dim=-1, keepdim=True)).squeeze(-1)


def uniforms_of(seed: int, count: int) -> Tensor:
    """Return a text's own random numbers (count,), one a token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64)
