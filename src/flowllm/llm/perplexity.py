"""Perplexity of crystal texts, and its increase when a crystal is described otherwise."""

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
    """Return each text's perplexity after the prompt without condition, float64 (n,).

    2 to the cross entropy in bits a token (paper, below equation 9), and so e to that in nats. The
    tokens are the text's and the end token.

    Args:
        model: in evaluation mode.
        prompts: prompts as tokens.
        texts: crystal texts.
        batch_size: texts at once.
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
    """Return the increase in perplexity under transformation (equation 9) of one crystal.

    Args:
        plain: perplexity of the crystal's text as it stands.
        transformed: perplexities (k,) under random transformations.

    Returns:
        The mean over the transformations, less the lowest value of all: a random sample hardly
        holds the best transformation, which for a model trained without augmentation is none.
    """
    return float(transformed.mean() - min(plain, transformed.min()))
