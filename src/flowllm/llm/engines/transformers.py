"""The second engine: transformers' generate, for machines without vLLM, and to check vLLM by.

Tokens are drawn by the same numbers as vLLM's (`llm.engines.top_p`), so that both engines write the
same text to the same seed, but for the last bits of the logits, which depend on the batch here too.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from flowllm.errors import FlowllmError
from flowllm.llm.base_model import load_base_model, load_config
from flowllm.llm.engines.base import Draft, Request, Sampling
from flowllm.llm.engines.top_p import draw_tokens, uniforms_of
from flowllm.llm.model_files import MERGE_AGAIN
from flowllm.runtime.device import pick_device

BATCH = 64
"""Texts at once; a batch goes on until its longest text ends."""


class Draw(LogitsProcessor):
    """Leaves of each row's logits just the token that the row's own random numbers draw."""

    def __init__(self, requests: Sequence[Request], sampling: Sampling, prompt_length: int) -> None:
        """Make each row's random numbers.

        Args:
            requests: of the batch.
            sampling: how all texts are drawn.
            prompt_length: tokens of the padded prompts.
        """
        rows = [uniforms_of(request.seed, sampling.max_tokens) for request in requests]
        self._uniforms = torch.stack(rows)
        self._sampling, self._prompt_length = sampling, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Filter scores (b, v)."""
        allowed = self._sampling.allowed_tokens
        tokens = torch.arange(scores.shape[-1]) if allowed is None else torch.tensor(allowed)
        tokens = tokens.to(scores.device)
        written = input_ids.shape[1] - self._prompt_length
        drawn = draw_tokens(
            scores[:, tokens],
            self._uniforms[:, written].to(scores.device),
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
        )
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(-1, tokens[drawn].unsqueeze(-1), 0.0)


class TransformersEngine:
    """transformers holding one model, on one GPU or the CPU.

    Attributes:
        cached_prompt_tokens: none, every prompt is computed.
    """

    def __init__(self, model: Path, *, sampling: Sampling, batch_size: int = BATCH) -> None:
        """Load the model.

        Args:
            model: a plain Hugging Face folder.
            sampling: how all texts are drawn; temperature 0 takes the likeliest token.
            batch_size: texts at once.
        """
        dtype = load_config(str(model)).dtype
        self._model = load_base_model(
            str(model), dtype=dtype, quantization="none", device=pick_device(), cure=MERGE_AGAIN
        ).eval()
        self._sampling, self._batch_size = sampling, batch_size
        self.cached_prompt_tokens = 0
        self._waiting: list[tuple[int, Request]] = []

    def submit(self, key: int, request: Request) -> None:
        """Take on a text; the key tells it from the others being written.

        Raises:
            FlowllmError: the request asks for a form, which only vLLM holds to.
        """
        if request.regex:
            raise FlowllmError("structured: true needs backend: vllm")
        self._waiting.append((key, request))

    def finished(self) -> list[tuple[int, Draft]]:
        """Write the next batch of texts; they come with their keys."""
        batch = self._waiting[: self._batch_size]
        del self._waiting[: self._batch_size]
        keys, requests = zip(*batch, strict=True)
        return list(zip(keys, self._write(requests), strict=True))

    def close(self) -> None:
        """Give back the model's memory."""
        del self._model

    @torch.inference_mode()
    def _write(self, requests: Sequence[Request]) -> list[Draft]:
        end, device = self._sampling.end_token_id, self._model.device
        longest = max(len(request.prompt) for request in requests)
        input_ids = torch.full((len(requests), longest), end)
        attention_mask = torch.zeros_like(input_ids)
        for i, request in enumerate(requests):
            input_ids[i, longest - len(request.prompt) :] = torch.tensor(request.prompt)
            attention_mask[i, longest - len(request.prompt) :] = 1
        written = self._model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            max_new_tokens=self._sampling.max_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([Draw(requests, self._sampling, longest)]),
            eos_token_id=end,
            pad_token_id=end,
        )
        return [self._draft(row) for row in written[:, longest:].tolist()]

    def _draft(self, tokens: Sequence[int]) -> Draft:
        """Cut a row behind its end token; what stands there is padding."""
        end = self._sampling.end_token_id
        if end not in tokens:
            return Draft(tuple(tokens), truncated=True)
        return Draft(tuple(tokens[: tokens.index(end) + 1]), truncated=False)
