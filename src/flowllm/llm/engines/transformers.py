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
from flowllm.llm.engines.top_p import draw_tokens, uniforms_of
from flowllm.llm.masks import MaskedText, mask_logits
from flowllm.llm.model_files import MERGE_AGAIN
from flowllm.runtime.device import pick_device

BATCH = 64
"""Texts per batch; a batch ends when its longest text ends."""


class SampledToken(LogitsProcessor):
    """Logits processor that keeps only the token sampled with the row's own random numbers."""

    def __init__(
        self, requests: Sequence[DraftRequest], sampling: SamplingOptions, prompt_length: int
    ) -> None:
        """Generate the random numbers of each row.

        Args:
            requests: requests of the batch.
            sampling: options of the token sampling.
            prompt_length: number of tokens of the padded prompts.
        """
        rows = [uniforms_of(request.seed, sampling.max_tokens) for request in requests]
        self._uniforms = torch.stack(rows)
        self._masked = [_masked(request, sampling) for request in requests]
        self._sampling, self._prompt_length = sampling, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (b, v) that are -inf except for the sampled token of each row.

        Args:
            input_ids: (b, t), padded prompts and the tokens generated so far.
            scores: (b, v), logits of the next token.
        """
        allowed = self._sampling.allowed_tokens
        tokens = torch.arange(scores.shape[-1]) if allowed is None else torch.tensor(allowed)
        tokens = tokens.to(scores.device)
        written = input_ids.shape[1] - self._prompt_length
        # The scores are those of the model, which other processors do not read.
        scores = scores.clone()
        mask_logits(scores, self._masked, input_ids[:, self._prompt_length :].tolist())
        drawn = draw_tokens(
            scores[:, tokens],
            self._uniforms[:, written].to(scores.device),
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
        )
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(-1, tokens[drawn].unsqueeze(-1), 0.0)


def _masked(request: DraftRequest, sampling: SamplingOptions) -> MaskedText | None:
    """Return the mask of a request, None if it has none."""
    if request.masked == "none":
        return None
    assert sampling.masks is not None
    return MaskedText(sampling.masks, request.kept, request.masked)


class EndedByRequest(StoppingCriteria):
    """Criterion that ends rows where their requests say so, or at their maximum number of tokens.

    Attributes:
        lengths: number of sampled tokens of each row that ended here, None for other rows.
    """

    def __init__(
        self, requests: Sequence[DraftRequest], sampling: SamplingOptions, prompt_length: int
    ) -> None:
        """Start with no row ended.

        Args:
            requests: requests of the batch.
            sampling: options of the token sampling.
            prompt_length: number of tokens of the padded prompts.
        """
        self._requests, self._sampling, self._prompt_length = requests, sampling, prompt_length
        self.lengths: list[int | None] = [None] * len(requests)
        self._finished = [False] * len(requests)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:  # noqa: ARG002
        """Return which rows end with their last token (b,).

        Args:
            input_ids: (b, t), padded prompts and the tokens generated so far.
            scores: not used.
        """
        written = input_ids.shape[1] - self._prompt_length
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._finished[row]:
                self._finished[row] = self._ends(row, token, written)
        return torch.tensor(self._finished, device=input_ids.device)

    def _ends(self, row: int, token: int, written: int) -> bool:
        """Return whether a row ends with its last token; note its length unless it is the end."""
        request = self._requests[row]
        if token == self._sampling.end_token_id:
            return True
        stopped = request.stops is not None and request.stops([token])
        if stopped or len(request.kept) + written == self._sampling.max_tokens:
            self.lengths[row] = written
            return True
        return False


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
        ended = EndedByRequest(requests, self._sampling, longest)
        written = self._model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            max_new_tokens=self._sampling.max_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([SampledToken(requests, self._sampling, longest)]),
            stopping_criteria=StoppingCriteriaList([ended]),
            eos_token_id=end,
            pad_token_id=end,
        )
        rows = written[:, longest:].tolist()
        return [self._draft(row, end) for row, end in zip(rows, ended.lengths, strict=True)]

    def _draft(self, tokens: Sequence[int], length: int | None) -> Draft:
        """Return a row's tokens up to its end token or its length; padding follows them."""
        end, tokens = self._sampling.end_token_id, tokens[:length]
        if end not in tokens:
            return Draft(tuple(tokens), truncated=True)
        return Draft(tuple(tokens[: tokens.index(end) + 1]), truncated=False)
