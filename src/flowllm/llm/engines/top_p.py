"""Sampling of a token from the nucleus (top-p), the same for both engines.

Engines usually sort all logits of a step and draw a random number for each of them; with a small
model this takes most of the time. The nucleus is nearly always among the few hundred largest
logits, which are found without a sort. One random number then selects the token at which the
cumulative probability, in the order of the vocabulary, exceeds that number. Only rows with a larger
nucleus are sorted completely.

Source: Holtzman et al., arXiv 1904.09751 (nucleus sampling).
"""

import torch
from torch import Tensor

CANDIDATES = 128
"""Number of the largest logits among which the nucleus is searched first."""


def draw_tokens(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float,
    top_p: float,
    candidates: int = CANDIDATES,
) -> Tensor:
    """Sample one token per row.

    Args:
        logits: (b, v); entries may be -inf, but not all entries of a row.
        uniforms: (b,), float64 in [0, 1); one random number per row.
        temperature: temperature of the softmax; 0 selects the most likely token.
        top_p: the nucleus consists of the fewest most likely tokens whose probabilities sum to at
            least this value, in (0, 1].
        candidates: number of the largest logits that are tried before a row is sorted completely.

    Returns:
        Indices (b,) of the sampled tokens.
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
    """Select one token per row from the nucleus of the given tokens.

    Args:
        descending: (b, c), probabilities of the tokens, the largest first.
        tokens: (b, c), the tokens.
        uniforms: (b,), random numbers in [0, 1).
        top_p: cumulative probability of the nucleus.
    """
    # A token belongs to the nucleus if the more likely tokens do not reach top_p without it.
    likelier = descending.cumsum(dim=-1) - descending
    kept = descending.masked_fill(likelier >= top_p, 0.0)
    # Tokens are put into the order of the vocabulary: in the order of probability, two nearly equal
    # tokens could change places by rounding, which would change the sampled token.
    tokens, order = tokens.sort(dim=-1)
    cumulative = kept.gather(-1, order).cumsum(dim=-1)
    passed = cumulative > uniforms.unsqueeze(-1) * cumulative[:, -1:]
    return tokens.gather(-1, passed.int().argmax(dim=-1, keepdim=True)).squeeze(-1)


def uniforms_of(seed: int, count: int) -> Tensor:
    """Return the random numbers of one text, one per token.

    Args:
        seed: seed of the text.
        count: maximum number of tokens of the text.

    Returns:
        (count,), float64 in [0, 1). The first numbers do not depend on `count`.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64)
