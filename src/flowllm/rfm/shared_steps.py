"""Training steps and validation of several processes, each with its share of every batch.

Times and noise are drawn for a whole batch, so results depend on the number of processes only by
the order of sums.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from flowllm.config.sections.flow import TrainRfm
from flowllm.rfm.loader import (
    Group,
    PairBatch,
    PreparedPairs,
    batches_per_epoch,
    plan_epoch,
    size_groups,
)
from flowllm.rfm.loss import FlowLoss
from flowllm.runtime.device import copied
from flowllm.seeds import generator

Share = tuple[tuple[list[PairBatch], list[Tensor]], int]
"""The groups of pairs of one process and their times, and the number of pairs of the batch."""


def planned_batches(
    pairs: PreparedPairs, settings: TrainRfm, seed: int, first_step: int, num_steps: int
) -> Iterator[tuple[int, list[Group]]]:
    """Yield the batch of every step from `first_step` on; the epoch's number sets its order."""
    steps_per_epoch = batches_per_epoch(pairs.num_atoms, settings.batch_size)
    step = first_step
    while step < num_steps:
        epoch, done = divmod(step, steps_per_epoch)
        rng = generator(seed, "train_rfm", "epoch", epoch)
        for batch in islice(plan_epoch(pairs.num_atoms, settings.batch_size, rng), done, None):
            if step == num_steps:
                return
            yield step, batch
            step += 1


def shares_of_batches(
    pairs: PreparedPairs, plan: Iterator[tuple[int, list[Group]]], seed: int, fabric: Fabric
) -> Iterator[tuple[int, Share]]:
    """Yield this process's share of every step's batch."""
    for step, batch in plan:
        yield step, share_of_batch(pairs, batch, seed, step, fabric)


def share_of_batch(
    pairs: PreparedPairs, batch: list[Group], seed: int, step: int, fabric: Fabric
) -> Share:
    """Return this process's pairs of a batch with their times, and the size of the whole batch.

    Times and noise depend on the step and not on the number of processes. A pair occurs once per
    epoch, so each epoch has its own times and noise. The pairs of all groups are assigned to the
    processes in turn, so the shares differ by at most one pair.
    """
    rng = generator(seed, "train_rfm", "times", step)
    *starts, total = np.cumsum([0, *map(len, batch)]).tolist()
    times = np.split(rng.random(total, dtype=np.float32), starts[1:])
    share_groups, share_times = [], []
    for index, (group, first) in enumerate(zip(batch, starts, strict=True)):
        mine = slice((fabric.global_rank - first) % fabric.world_size, None, fabric.world_size)
        if len(group[mine]):
            noise = generator(seed, "train_rfm", "noise", step, index)
            share_groups.append(pairs.draw(group, noise, mine).to(fabric.device))
            share_times.append(copied(torch.from_numpy(times[index][mine]), fabric.device))
    return (share_groups, share_times), total


@dataclass(frozen=True)
class Agreed:
    """Results of a step that are the same in all processes.

    Attributes:
        errors: mean squared errors of the whole batch (coordinates, lattice), float64 (2,).
        finite: whether the loss is finite in every process; if not, all skip the step.
        stopping: whether any process was asked to stop; if so, all stop after the step.
    """

    errors: Tensor
    finite: bool
    stopping: bool


def agree(errors: Tensor, loss: Tensor, stop: bool, fabric: Fabric) -> Agreed:
    """Combine the results of all processes in one message.

    Args:
        errors: errors of this process's share (2,), scaled so that their mean over the processes is
            the error of the batch.
        loss: loss of this process's share, a scalar.
        stop: whether this process was asked to stop.
        fabric: the processes.
    """
    finite = loss.detach().isfinite()
    flags = torch.stack([~finite, torch.full_like(finite, stop)])
    found = torch.cat([errors.detach().double() / fabric.world_size, flags.double()])
    # A mean of flags is not exact: NCCL may compute it as the sum of x (1 / n).
    summed = _summed(found, fabric)
    bad, stopping = summed[2:].tolist()
    return Agreed(summed[:2], bad == 0, stopping > 0)


def validation_errors(
    field: nn.Module, pairs: PreparedPairs, settings: TrainRfm, seed: int, fabric: Fabric
) -> list[float]:
    """Return mean squared errors (coordinates, lattice) over all pairs, each at one fixed time."""
    module = FlowLoss(field)
    rng = generator(seed, "train_rfm", "validation_times")
    sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    groups = list(size_groups(pairs.num_atoms, settings.batch_size))
    times = [torch.from_numpy(rng.random(len(group), dtype=np.float32)) for group in groups]
    mine = slice(fabric.global_rank, None, fabric.world_size)
    with torch.no_grad(), fabric.autocast():
        for index in range(len(groups))[mine]:
            noise = generator(seed, "train_rfm", "validation_noise", index)
            batch = pairs.draw(groups[index], noise).to(fabric.device)
            sums += module([batch], [times[index].to(fabric.device)]).double()
    errors: list[float] = (_summed(sums, fabric) / len(pairs)).tolist()
    return errors


def _summed(values: Tensor, fabric: Fabric) -> Tensor:
    """Return the sum of a tensor over all processes."""
    summed = fabric.all_reduce(values, reduce_op="sum")
    assert isinstance(summed, Tensor)  # all_reduce returns the type that it is given
    return summed
