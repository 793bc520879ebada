"""vLLM extension point: token sampling with random numbers of each text's own.

vLLM sorts the vocabulary, and draws a random number for each of its tokens, wherever requests carry
seeds (on GPUs too). Here it is told to take the likeliest token, of logits in which only the
one that `llm.engines.top_p` drew is left.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from flowllm.llm.engines.top_p import draw_tokens, uniforms_of

SEED = "flowllm_seed"
"""Name of a request's seed among its extra arguments."""

CONFIG = "flowllm"
"""Name of what all requests share in vLLM's additional configuration."""


@dataclass(frozen=True)
class _Text:
    """A text being written: its random numbers, and its tokens so far (vLLM's own list)."""

    uniforms: Tensor
    written: list[int]


class DrawProcessor(LogitsProcessor):
    """vLLM's extension point for logits: draws each text's next token."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        """Read how tokens are drawn; the arguments are the engine's for every processor."""
        shared = vllm_config.additional_config[CONFIG]
        self._temperature, self._top_p = shared["temperature"], shared["top_p"]
        self._max_tokens: int = shared["max_tokens"]
        allowed = shared["allowed_tokens"]
        self._allowed = None if allowed is None else torch.tensor(allowed, device=device)
        self._texts: dict[int, _Text] = {}

    def is_argmax_invariant(self) -> bool:
        """No: what is drawn is seldom the likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests as they come, go and move within the batch."""

        def text_of(params: SamplingParams, _: list[int] | None, written: list[int]) -> _Text:
            assert params.extra_args is not None
            return _Text(uniforms_of(params.extra_args[SEED], self._max_tokens), written)

        process_dict_updates(self._texts, batch_update, text_of)

    def apply(self, logits: Tensor) -> Tensor:
        """Leave of the logits (batch, vocabulary) just the drawn token of each row, in place."""
        uniforms = torch.tensor(
            [self._uniform(row) for row in range(logits.shape[0])], dtype=torch.float64
        )
        choices = logits if self._allowed is None else logits[:, self._allowed]
        drawn = draw_tokens(
            choices,
            uniforms.to(logits.device),
            temperature=self._temperature,
            top_p=self._top_p,
        )
        tokens = drawn if self._allowed is None else self._allowed[drawn]
        return logits.fill_(-torch.inf).scatter_(-1, tokens.unsqueeze(-1), 0.0)

    def _uniform(self, row: int) -> float:
        text = self._texts[row]
        return text.uniforms[len(text.written)].item()
