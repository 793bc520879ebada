"""Sampling engine based on transformers' `generate`, for machines without vLLM and for tests.

Tokens are sampled with the same random numbers as in vLLM (`llm.engines.top_p`), so that both
engines generate the same text from the same seed. Exceptions come from the last bits of the logits,
which depend on the batch here too.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from flowllm.errors import FlowllmError
from flowllm.llm.base_model import dtype_of, load_base_model, load_config
from flowllm.llm.engines.base import Draft, DraftRequest, SamplingOptions
from flowllm.llm.engines.random_numbers import RandomNumbers, on_device
from flowllm.llm.engines.top_p import draw_tokens
from flowllm.llm.masks import MaskedText, mask_logits
from flowllm.llm.model_files import MERGE_AGAIN
from flowllm.runtime.device import pick_device

BATCH = 64
"""Texts per batch; a batch ends when its longest text ends."""


class SampledToken(LogitsProcessor):
    """Logits processor that keeps only the token sampled with the row's own random numbers."""

    def __init__(
        self,
        requests: Sequence[DraftRequest],
        sampling: SamplingOptions,
        prompt_length: int,
        device: torch.device,
    ) -> None:
        """Generate the random numbers of each row.

        Args:
            requests: requests of the batch.
            sampling: options of the token sampling.
            prompt_length: number of tokens of the padded prompts.
            device: device of the model.
        """
        numbers = RandomNumbers(sampling.max_tokens, device)
        rows = on_device([numbers.add(request.seed) for request in requests], device)
        self._numbers, self._rows = numbers, rows
        allowed = sampling.allowed_tokens
        self._allowed = None if allowed is None else torch.tensor(allowed, device=device)
        self._masked = [_masked(request, sampling) for request in requests]
        self._sampling, self._prompt_length = sampling, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (b, v) that are -inf except for the sampled token of each row.

        Args:
            input_ids: (b, t), padded prompts and the tokens generated so far.
            scores: (b, v), logits of the next token.
        """
        written = input_ids.shape[1] - self._prompt_length
        if any(self._masked):
            # The scores are those of the model, which other processors do not read.
            scores = scores.clone()
            mask_logits(scores, self._masked, input_ids[:, self._prompt_length :].tolist())
        drawn = draw_tokens(
            scores if self._allowed is None else scores[:, self._allowed],
            self._numbers.take(self._rows, [written] * len(self._rows)),
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
        )
        tokens = drawn if self._allowed is None else self._allowed[drawn]
        return torch.full_like(scores, -torch.inf).scatter_(-1, tokens.unsqueeze(-1), 0.0)


def _masked(request: DraftRequest, sampling: SamplingOptions) -> MaskedText | None:
    """Return the mask of a request, None if it has none."""
    if request.masked == "none":
        return None
    assert sampling.masks is not None
    return MaskedText(sampling.masks, request.kept, request.masked)


class EndedByRequest(StoppingCriteria):
    """Criterion that ends rows where their requests say so, or at their maximum number of tokens.

    Attributes:
        lengths: largest number of sampled tokens of each row; the end token may come before.
    """

    def __init__(
        self,
        requests: Sequence[DraftRequest],
        sampling: SamplingOptions,
        prompt_length: int,
        device: torch.device,
    ) -> None:
        """Start with no row ended.

        Args:
            requests: requests of the batch.
            sampling: options of the token sampling.
            prompt_length: number of tokens of the padded prompts.
            device: device of the model.
        """
        self.lengths = [sampling.max_tokens - len(request.kept) for request in requests]
        self._end, self._prompt_length = sampling.end_token_id, prompt_length
        self._most = on_device(self.lengths, device)
        # Rows whose requests are given each token; the others end without a look at their tokens.
        self._asked = {row: one.stops for row, one in enumerate(requests) if one.stops is not None}

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:  # noqa: ARG002
        """Return which rows end with their last token (b,).

        Args:
            input_ids: (b, t), padded prompts and the tokens generated so far.
            scores: not used.
        """
        written = input_ids.shape[1] - self._prompt_length
        if self._asked:
            self._ask(input_ids[:, -1].tolist(), written)
        return (input_ids[:, -1] == self._end) | (self._most <= written)

    def _ask(self, tokens: Sequence[int], written: int) -> None:
        """Give the requests their last tokens, until their rows end."""
        for row, stops in list(self._asked.items()):
            token = tokens[row]
            stopped = token != self._end and stops([token])
            if stopped:
                self.lengths[row] = written
                self._most[row] = written
            if stopped or token == self._end or written >= self.lengths[row]:
                del self._asked[row]


class TransformersEngine:
    """An `Engine` that runs one model with transformers, on one GPU or the CPU.

    Attributes:
        cached_prompt_tokens: always 0, since every prompt is computed.
    """

    def __init__(self, model: Path, *, sampling: SamplingOptions, batch_size: int = BATCH) -> None:
        """Load the model.

        Args:
            model: Hugging Face folder of a model without adapter or quantization.
            sampling: options of the token sampling.
            batch_size: texts per batch.

        Raises:
            FlowllmError: the folder is rejected by `check_model_folder`, or cannot be loaded.
        """
        dtype = dtype_of(load_config(str(model)))
        self._model = load_base_model(
            str(model), dtype=dtype, quantization="none", device=pick_device(), cure=MERGE_AGAIN
        ).eval()
        self._sampling, self._batch_size = sampling, batch_size
        self.cached_prompt_tokens = 0
        self._waiting: list[tuple[int, DraftRequest]] = []

    def submit(self, key: int, request: DraftRequest) -> None:
        """Queue a text; see `Engine.submit`.

        Raises:
            FlowllmError: the request has a regular expression, which only vLLM supports.
        """
        if request.regex:
            raise FlowllmError(
                "structured: true requires backend: vllm, since transformers does not support "
                "structured decoding. Set structured: false or backend: vllm."
            )
        self._waiting.append((key, request))

    def finished(self) -> list[tuple[int, Draft]]:
        """Generate the next batch of texts; see `Engine.finished`."""
        batch = self._waiting[: self._batch_size]
        del self._waiting[: self._batch_size]
        keys, requests = zip(*batch, strict=True)
        return list(zip(keys, self._write(requests), strict=True))

    def close(self) -> None:
        """Release the model's memory."""
        del self._model

    @torch.inference_mode()
    def _write(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        """Generate the texts of one batch, its prompts padded on the left."""
        end, device = self._sampling.end_token_id, self._model.device
        longest = max(len(request.start) for request in requests)
        input_ids = torch.full((len(requests), longest), end)
        attention_mask = torch.zeros_like(input_ids)
        for i, request in enumerate(requests):
            input_ids[i, longest - len(request.start) :] = torch.tensor(request.start)
            attention_mask[i, longest - len(request.start) :] = 1
        sampled = SampledToken(requests, self._sampling, longest, device)
        ended = EndedByRequest(requests, self._sampling, longest, device)
        written = self._model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            max_new_tokens=self._sampling.max_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([sampled]),
            stopping_criteria=StoppingCriteriaList([ended]),
            eos_token_id=end,
            pad_token_id=end,
        )
        rows = written[:, longest:].tolist()
        return [self._draft(row, end) for row, end in zip(rows, ended.lengths, strict=True)]

    def _draft(self, tokens: Sequence[int], length: int) -> Draft:
        """Return a row's tokens up to its end token or its largest length; padding follows."""
        end, tokens = self._sampling.end_token_id, tokens[:length]
        if end not in tokens:
            return Draft(tuple(tokens), truncated=True)
        return Draft(tuple(tokens[: tokens.index(end) + 1]), truncated=False)
