"""The weights that a fine-tuning changes: those of an adapter, or all of them."""

from collections.abc import Mapping

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from flowllm.config.sections.llm import FinetuneLlm


def train_all_weights(model: PreTrainedModel, section: FinetuneLlm) -> PreTrainedModel:
    """Prepare a model for the training of all its weights.

    Args:
        model: model in float32, in which small updates are not lost to rounding.
        section: whether activations are computed again in the backward pass.
    """
    if section.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    return model.requires_grad_(True)


def trained_weights(model: PreTrainedModel | PeftModel) -> dict[str, Tensor]:
    """Return the weights of the adapter, or all weights of a model without one, by name.

    A weight that two layers share has one name.
    """
    if isinstance(model, PeftModel):
        adapter: dict[str, Tensor] = get_peft_model_state_dict(model)
        return adapter
    return {name: weight.detach() for name, weight in model.named_parameters()}


@torch.no_grad()
def set_trained_weights(model: PreTrainedModel | PeftModel, weights: Mapping[str, Tensor]) -> None:
    """Replace the values of `trained_weights`.

    Raises:
        KeyError: a weight is missing.
        RuntimeError: a weight has another shape.
    """
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, dict(weights))
        return
    for name, weight in model.named_parameters():
        weight.copy_(weights[name])
