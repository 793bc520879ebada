"""Training steps that several processes take together: each process's share of every batch.

Times and noise are drawn for a whole batch, so that no result depends on the number of processes
other than by the order of sums.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor

from flowllm.config.sections.flow import TrainRfm
from flowllm.rfm.loader import Group, PairBatch, PreparedPairs, batches_per_epoch, plan_epoch
from flowllm.seeds import generator

Share = tuple[tuple[list[PairBatch], list[Tensor]], int]
"""A process's groups of pairs and their times, and the number of pairs of the whole batch."""


def planned_batches(
    pairs: PreparedPairs, settings: TrainRfm, seed: int, first_step: int, num_steps: int
) -> Iterator[tuple[int, list[Group]]]:
    """The plan of every step from `first_step` on; an epoch's order depends on its number only."""
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
    """This process's share of every step's batch."""
    for step, batch in plan:
        yield step, share_of_batch(pairs, batch, seed, step, fabric)


def share_of_batch(
    pairs: PreparedPairs, batch: list[Group], seed: int, step: int, fabric: Fabric
) -> Share:
    """This process's pairs of a batch with their times, and the size of the whole batch.

    Times and noise are drawn for the whole batch, so they do not depend on the number of processes.
    A pair comes once an epoch, so each epoch has times and noise of its own. Pairs are dealt in
    turn through all groups: no process has more than one pair more than another.
    """
    rng = generator(seed, "train_rfm", "times", step)
    *starts, total = np.cumsum([0, *map(len, batch)]).tolist()
    times = np.split(rng.random(total, dtype=np.float32), starts[1:])
    groups, moments = [], []
    for index, (group, first) in enumerate(zip(batch, starts, strict=True)):
        mine = slice((fabric.global_rank - first) % fabric.world_size, None, fabric.world_size)
        if len(group[mine]):
            noise = generator(seed, "train_rfm", "noise", step, index)
            groups.append(pairs.draw(group, noise, mine).to(fabric.device))
            moments.append(torch.from_numpy(times[index][mine]).to(fabric.device))
    return (groups, moments), total


@dataclass(frozen=True)
class Agreed:
    """What all processes know of a step, the same in each.

    Attributes:
        errors: the whole batch's mean squared errors (coordinates, lattice), float64 (2,).
        finite: whether the loss is a number in every process: all skip a step or none does.
        stopping: whether any process was asked to stop: all stop after the same step.
    """

    errors: Tensor
    finite: bool
    stopping: bool


def agree(errors: Tensor, loss: Tensor, stop: bool, fabric: Fabric) -> Agreed:
    """Put together what the processes found, in one message.

    Args:
        errors: of this process's share (2,), so scaled that the processes' mean is the batch's.
        loss: of this process's share, a scalar.
        stop: whether this process was asked to stop.
        fabric: the processes.
    """
    flags = torch.stack([~loss.detach().isfinite(), torch.tensor(stop, device=loss.device)])
    found = torch.cat([errors.detach().double() / fabric.world_size, flags.double()])
    # Sums and no means: NCCL may make a mean as the sum of x (1 / n), and ten tenths are not 1.
    summed = fabric.all_reduce(found, reduce_op="sum")
    bad, stopping = summed[2:].tolist()
    return Agreed(summed[:2], bad == 0, stopping > 0)
