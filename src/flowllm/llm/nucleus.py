"""Nucleus (top-p) sampling without sorting the whole vocabulary.

vLLM's own filter sorts all logits of a step wherever requests carry seeds, on GPUs too; with a
small model that is most of the time. The nucleus nearly always lies within the few hundred largest
logits, which are found without a sort; only a row where it does not is sorted whole. What is kept
is the same.
"""

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

CANDIDATES = 128
"""Largest logits that are looked at first."""

EXTRA_ARG = "flowllm_top_p"
"""Name of the request's own top_p; the engine's stays 1, so that its sort is left out."""


class NucleusProcessor(LogitsProcessor):
    """vLLM's extension point for logits: applies each request's nucleus."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        """Start with no request; the arguments are the engine's for every processor."""
        self._top_p: dict[int, float] = {}
        self._device = device
        self._values = torch.empty(0, device=device)

    def is_argmax_invariant(self) -> bool:
        """The likeliest token is always kept."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests as they come, go and move within the batch."""

        def top_p_of(params: SamplingParams, *_: list[int] | None) -> float | None:
            return (params.extra_args or {}).get(EXTRA_ARG)

        if process_dict_updates(self._top_p, batch_update, top_p_of) and self._top_p:
            rows = 1 + max(self._top_p)
            values = [self._top_p.get(row, 1.0) for row in range(rows)]
            self._values = torch.tensor(values, device=self._device)

    def apply(self, logits: Tensor) -> Tensor:
        """Filter the logits (batch, vocabulary) in place, after the temperature."""
        if not self._top_p:
            return logits
        top_p = logits.new_ones(logits.shape[0])
        rows = min(logits.shape[0], self._values.numel())
        top_p[:rows] = self._values[:rows]
        return keep_nucleus(logits, top_p)


def keep_nucleus(logits: Tensor, top_p: Tensor, candidates: int = CANDIDATES) -> Tensor:
    """Set to -inf, in place, all but the fewest likeliest tokens whose probabilities reach top_p.

    Args:
        logits: (b, v), any of them -inf.
        top_p: (b,), in (0, 1]; 1 keeps all.
        candidates: how many of the largest logits are looked at before a row is sorted whole.

    Returns:
        The same tensor. Tokens as likely as the last one kept are kept too.
    """
    log_total = logits.logsumexp(dim=-1, keepdim=True)
    top = logits.topk(min(candidates, logits.shape[-1]), dim=-1).values
    threshold, complete = _threshold(top, log_total, top_p)
    incomplete = ~complete & (top_p < 1)
    if incomplete.any():
        all_sorted = logits[incomplete].sort(dim=-1, descending=True).values
        threshold[incomplete] = _threshold(all_sorted, log_total[incomplete], top_p[incomplete])[0]
    threshold.masked_fill_(top_p >= 1, -torch.inf)
    return logits.masked_fill_(logits < threshold.unsqueeze(-1), -torch.inf)


def _threshold(descending: Tensor, log_total: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest logit of the nucleus, and whether the given logits reach top_p."""
    cumulative = (descending - log_total).exp().cumsum(dim=-1)
    reached = cumulative >= top_p.unsqueeze(-1)
    # A token belongs to the nucleus if the likelier ones do not reach top_p without it.
    last = (~reached).sum(dim=-1, keepdim=True).clamp(max=descending.shape[-1] - 1)
    return descending.gather(-1, last).squeeze(-1), reached[..., -1]
