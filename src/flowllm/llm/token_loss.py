"""Cross entropy of texts under a language model, summed over the tokens that count."""

from collections.abc import Sequence

import torch
from lightning.fabric import Fabric
from torch import Tensor
from transformers import PreTrainedModel

from flowllm.llm.training_texts import IGNORED, MicroBatch


def summed_loss(model: PreTrainedModel, batch: MicroBatch, device: torch.device) -> Tensor:
    """Return the sum of the cross entropies of all labelled tokens, in nats."""
    return token_losses(model, batch, device).sum()


def token_losses(model: PreTrainedModel, batch: MicroBatch, device: torch.device) -> Tensor:
    """Return the cross entropies of the labelled tokens in nats, float32 (n,), text after text.

    The output layer, a quarter of a small model's work, sees the labelled positions alone. The
    padding needs no mask: it stands behind the text, where no token of a causal model looks.
    """
    # The token at position t is predicted at position t - 1; nothing predicts the first.
    labels = batch.labels.to(device)[:, 1:]
    labelled = labels != IGNORED
    choose = model.get_output_embeddings().register_forward_pre_hook(
        # A model laid over several GPUs ends on another one than it begins on.
        lambda _, hidden: (hidden[0][:, :-1][labelled.to(hidden[0].device)],)
    )
    with choose:
        logits = model(input_ids=batch.input_ids.to(device)).logits
    return torch.nn.functional.cross_entropy(logits.float(), labels[labelled], reduction="none")


@torch.no_grad()
def mean_loss(model: PreTrainedModel, batches: Sequence[MicroBatch], fabric: Fabric) -> float:
    """Return the mean loss a token over all processes' batches, in nats, without dropout."""
    model.eval()
    total = 0.0
    for number, weight in shares(len(batches), fabric):
        total += weight * summed_loss(model, batches[number], fabric.device).item()
    model.train()
    return sum_over_processes(total, fabric) / sum(batch.num_targets for batch in batches)


@torch.no_grad()
def loss_per_token(model: PreTrainedModel, batches: Sequence[MicroBatch]) -> float:
    """Return the mean loss per token of one process's model in evaluation mode, in nats."""
    total = sum(summed_loss(model, batch, model.device).item() for batch in batches)
    return total / sum(batch.num_targets for batch in batches)


def shares(count: int, fabric: Fabric) -> list[tuple[int, float]]:
    """Return the numbers of this process's batches of `count`, each with its weight 1.

    Filled up with the last batch at weight 0: all processes run the model equally often, as they
    must where each holds a part of it.
    """
    rounds = -(-count // fabric.world_size)
    mine = [fabric.global_rank + i * fabric.world_size for i in range(rounds)]
    return [(min(number, count - 1), float(number < count)) for number in mine]


def sum_over_processes(value: float, fabric: Fabric) -> float:
    """Return the sum of a number over all processes."""
    number = torch.tensor(value, dtype=torch.float64, device=fabric.device)
    return float(fabric.all_reduce(number, reduce_op="sum"))
