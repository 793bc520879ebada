"""vLLM extension point: token sampling with separate random numbers for each text.

Where requests have seeds, vLLM itself sorts the vocabulary and draws a random number for each of
its tokens (on GPUs too). Here `llm.engines.top_p` samples the token instead: all other logits are
set to -inf, and vLLM is asked for the most likely token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from flowllm.llm.engines.base import SamplingOptions
from flowllm.llm.engines.random_numbers import RandomNumbers, on_device
from flowllm.llm.engines.top_p import draw_tokens
from flowllm.llm.masks import MaskedText, MaskOptions, mask_logits

SEED = "flowllm_seed"
"""Key of a request's seed in its extra arguments."""

KEPT = "flowllm_kept"
"""Key of the tokens that a request continues in its extra arguments, given with `SCOPE`."""

SCOPE = "flowllm_masked"
"""Key of a request's masked part in its extra arguments, if it has one."""

MASKS = "flowllm_masks"
"""Key of the `MaskOptions` in vLLM's additional configuration; None for none."""

CONFIG = "flowllm"
"""Key of the `SamplingOptions` in vLLM's additional configuration."""


@dataclass(frozen=True)
class _Text:
    """A text that is being generated.

    Attributes:
        numbers: row of its random numbers.
        written: tokens generated so far; vLLM's own list, which it extends.
        masked: mask of the text, None if it has none.
    """

    numbers: int
    written: list[int]
    masked: MaskedText | None


class DrawProcessor(LogitsProcessor):
    """Logits processor of vLLM that samples the next token of each text."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        """Read the sampling options; vLLM gives every processor the same arguments."""
        shared = vllm_config.additional_config
        assert isinstance(shared, dict)
        self._sampling = SamplingOptions(**shared[CONFIG])
        self._masks = None if shared[MASKS] is None else MaskOptions(**shared[MASKS])
        allowed = self._sampling.allowed_tokens
        self._allowed = None if allowed is None else torch.tensor(allowed, device=device)
        self._numbers = RandomNumbers(self._sampling.max_tokens, device)
        self._by_row: dict[int, _Text] = {}
        self._texts: list[_Text] = []
        self._rows = on_device([], device)

    def is_argmax_invariant(self) -> bool:
        """Return whether the most likely token is always kept; it is not."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Update the texts when requests enter, leave or move within the batch."""
        if process_dict_updates(self._by_row, batch_update, self._text_of):
            self._texts = [self._by_row[row] for row in sorted(self._by_row)]
            rows = [text.numbers for text in self._texts]
            self._numbers.keep(rows)
            self._rows = on_device(rows, self._rows.device)

    def _text_of(self, params: SamplingParams, _: list[int] | None, written: list[int]) -> _Text:
        """Return the text of a request that enters the batch."""
        assert params.extra_args is not None
        masked = None
        if SCOPE in params.extra_args:
            assert self._masks is not None
            masked = MaskedText(self._masks, params.extra_args[KEPT], params.extra_args[SCOPE])
        return _Text(self._numbers.add(params.extra_args[SEED]), written, masked)

    def apply(self, logits: Tensor) -> Tensor:
        """Set all logits (b, v) to -inf except that of each row's sampled token, in place."""
        texts = self._texts
        assert len(texts) == len(logits)
        if self._masks is not None:
            mask_logits(logits, [text.masked for text in texts], [text.written for text in texts])
        choices = logits if self._allowed is None else logits[:, self._allowed]
        drawn = draw_tokens(
            choices,
            self._numbers.take(self._rows, [len(text.written) for text in texts]),
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
        )
        tokens = drawn if self._allowed is None else self._allowed[drawn]
        return logits.fill_(-torch.inf).scatter_(-1, tokens.unsqueeze(-1), 0.0)
