"""Cross entropy of texts under a language model, summed over the labeled tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from lightning.fabric import Fabric
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from flowllm.llm.adapter import base_of
from flowllm.llm.training_texts import IGNORED, MicroBatch
from flowllm.runtime.device import copied

LanguageModel = PreTrainedModel | PeftModel


def summed_loss(model: LanguageModel, batch: MicroBatch, device: torch.device) -> Tensor:
    """Return the sum of the cross entropies of all labeled tokens, in nats."""
    return token_losses(model, batch, device).sum()


def token_losses(model: LanguageModel, batch: MicroBatch, device: torch.device) -> Tensor:
    """Return the cross entropies of the labeled tokens in nats, float32 (n,), text after text.

    The output layer, a quarter of a small model's work, is evaluated only at the labeled positions.
    The padding needs no mask: it follows the text, and a causal model's tokens depend only on
    earlier ones.

    Args:
        model: the model, with or without adapter.
        batch: padded texts and their labels.
        device: device of the model's first layer.
    """
    # The token at position t is predicted at position t - 1; the first token is not predicted.
    labels = batch.labels.numpy()
    rows, positions = np.nonzero(labels[:, 1:] != IGNORED)
    targets = copied(torch.from_numpy(labels[rows, positions + 1]), device)
    # Found in main memory: a mask on a GPU would be waited for, since it decides the result's size.
    labeled = copied(torch.from_numpy(rows * labels.shape[1] + positions), device)
    output_layer = base_of(model).get_output_embeddings()
    assert isinstance(output_layer, nn.Module)
    choose = output_layer.register_forward_pre_hook(
        # The last layer of a model distributed over several GPUs is not on the first layer's GPU.
        lambda _, hidden: (hidden[0].flatten(0, 1)[labeled.to(hidden[0].device)],)
    )
    with choose:
        logits = model(input_ids=copied(batch.input_ids, device)).logits
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


@torch.no_grad()
def mean_loss(model: LanguageModel, batches: Sequence[MicroBatch], fabric: Fabric) -> float:
    """Return the mean loss per token over all batches, in nats, without dropout.

    Args:
        model: the model, which is in training mode afterwards.
        batches: batches of all processes.
        fabric: processes that share the batches.
    """
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=fabric.device)
    for number, weight in shares(len(batches), fabric):
        loss = summed_loss(model, batches[number], fabric.device)
        total += weight * loss.double().to(total.device)
    model.train()
    return sum_tensors(total, fabric).item() / sum(batch.num_targets for batch in batches)


@torch.no_grad()
def loss_per_token(model: PreTrainedModel, batches: Sequence[MicroBatch]) -> float:
    """Return the mean loss per token of a model in evaluation mode on one process, in nats."""
    total = sum(summed_loss(model, batch, model.device).item() for batch in batches)
    return total / sum(batch.num_targets for batch in batches)


def shares(count: int, fabric: Fabric) -> list[tuple[int, float]]:
    """Return the indices of this process's batches, each with the weight 1.

    The last batch is repeated with the weight 0 until all processes have equally many batches: they
    must run the model equally often where each of them has a shard of it.

    Args:
        count: number of batches of all processes.
        fabric: processes that share the batches.
    """
    rounds = -(-count // fabric.world_size)
    mine = [fabric.global_rank + i * fabric.world_size for i in range(rounds)]
    return [(min(number, count - 1), float(number < count)) for number in mine]


def sum_over_processes(value: float, fabric: Fabric) -> float:
    """Return the sum of a number over all processes."""
    if fabric.world_size == 1:
        return value
    number = torch.tensor(value, dtype=torch.float64, device=fabric.device)
    return sum_tensors(number, fabric).item()


def sum_tensors(tensor: Tensor, fabric: Fabric) -> Tensor:
    """Return the elementwise sum of a tensor over all processes."""
    summed = fabric.all_reduce(tensor, reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed
