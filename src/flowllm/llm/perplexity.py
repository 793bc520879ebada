"""Perplexity of crystal texts, and its increase under transformations of the crystal."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from flowllm.llm.prompts import UNCONDITIONAL, PromptTokens
from flowllm.llm.token_loss import token_losses
from flowllm.llm.training_texts import IGNORED, collate


@torch.no_grad()
def perplexities(
    model: PreTrainedModel, prompts: PromptTokens, texts: Sequence[str], batch_size: int
) -> np.ndarray:
    """Return the perplexity of each text after the unconditional prompt, float64 (n,).

    The perplexity is 2 to the power of the cross entropy in bits per token (paper, below equation
    9), which equals e to the power of the cross entropy in nats. The end token is included.

    Args:
        model: model in evaluation mode.
        prompts: the prompts and the model's tokenizer.
        texts: crystal texts.
        batch_size: texts per batch.
    """
    values = []
    for start in range(0, len(texts), batch_size):
        examples = [
            prompts.example(UNCONDITIONAL, text) for text in texts[start : start + batch_size]
        ]
        batch = collate(examples, loss_on_prompt=False, pad_token_id=prompts.end_token_id)
        losses = token_losses(model, batch, model.device).double().cpu()
        lengths = (batch.labels != IGNORED).sum(dim=1).tolist()
        values += [float(torch.exp(part.mean())) for part in losses.split(lengths)]
    return np.asarray(values)


def increase_under_transformation(plain: float, transformed: np.ndarray) -> float:
    """Return the increase in perplexity under transformation of one crystal (equation 9).

    Args:
        plain: perplexity of the text of the untransformed crystal.
        transformed: perplexities (k,) under random transformations.

    Returns:
        The mean over the transformations minus the lowest value of all. The untransformed crystal
        is included in the minimum, because a random sample rarely contains the best transformation,
        which for a model trained without augmentation is the identity.
    """
    return float(transformed.mean() - min(plain, transformed.min()))
