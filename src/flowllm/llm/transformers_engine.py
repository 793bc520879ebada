"""The second engine: transformers' generate, for machines without vLLM, and to check vLLM by.

A text's random numbers are its own here too: they are Gumbel noise from a generator of the
request's seed, added to the filtered logits, of which the largest is a draw from the softmax
(Gumbel, 1954). The logits depend on the batch in their last bits, as vLLM's do.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from flowllm.device import pick_device
from flowllm.errors import FlowllmError
from flowllm.llm.base_model import load_base_model
from flowllm.llm.engine import Draft, Request, Sampling

BATCH = 64
"""Texts at once; a batch goes on until its longest text ends."""


class GumbelNoise(LogitsProcessor):
    """Adds each row's own noise, so that the largest logit is a draw from the softmax."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        """Start one generator a row."""
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        """Add noise to scores (b, v)."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log()


class TransformersEngine:
    """transformers holding one model, on one GPU or the CPU."""

    def __init__(self, model: Path, *, sampling: Sampling, batch_size: int = BATCH) -> None:
        """Load the model.

        Args:
            model: a plain Hugging Face folder.
            sampling: how all texts are drawn; temperature 0 takes the likeliest token.
            batch_size: texts at once.
        """
        dtype = AutoConfig.from_pretrained(model).dtype
        self._model = load_base_model(
            str(model), dtype=dtype, quantization="none", device=pick_device()
        ).eval()
        self._sampling, self._batch_size = sampling, batch_size

    def generate(self, requests: Sequence[Request]) -> list[Draft]:
        """Write all texts, in the order of the requests.

        Raises:
            FlowllmError: a request asks for a form, which only vLLM holds to.
        """
        if any(request.regex for request in requests):
            raise FlowllmError("structured: true needs backend: vllm")
        return [
            draft
            for start in range(0, len(requests), self._batch_size)
            for draft in self._generate_batch(requests[start : start + self._batch_size])
        ]

    def close(self) -> None:
        """Give back the model's memory."""
        del self._model

    @torch.inference_mode()
    def _generate_batch(self, requests: Sequence[Request]) -> list[Draft]:
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
            logits_processor=self._processors(requests, device),
            eos_token_id=end,
            pad_token_id=end,
        )
        return [self._draft(row) for row in written[:, longest:].tolist()]

    def _processors(self, requests: Sequence[Request], device: torch.device) -> LogitsProcessorList:
        sampling = self._sampling
        if sampling.temperature == 0:
            return LogitsProcessorList()
        return LogitsProcessorList(
            [
                TemperatureLogitsWarper(sampling.temperature),
                TopPLogitsWarper(sampling.top_p),
                GumbelNoise([request.seed for request in requests], device),
            ]
        )

    def _draft(self, tokens: Sequence[int]) -> Draft:
        """Cut a row behind its end token; what stands there is padding."""
        end = self._sampling.end_token_id
        if end not in tokens:
            return Draft(tuple(tokens), truncated=True)
        return Draft(tuple(tokens[: tokens.index(end) + 1]), truncated=False)
