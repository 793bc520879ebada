"""The training loop of the velocity field: straight, resumable at the exact step."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from flowllm.checkpoints import load_checkpoint
from flowllm.config import TrainRfm
from flowllm.errors import FlowllmError
from flowllm.event_log import event_log
from flowllm.rfm.loader import (
    Group,
    PairBatch,
    PreparedPairs,
    batches_per_epoch,
    plan_epoch,
    prefetched,
    size_groups,
)
from flowllm.rfm.loss import ConstantField, FlowLoss
from flowllm.rfm.model import build_field
from flowllm.rfm.network import NetworkSize, Standardization, VelocityField
from flowllm.runlog import Progress, log
from flowllm.seeds import derive, generator
from flowllm.stopping import Stopped, noting_sigterm
from flowllm.tables import atomic_path

CHECKPOINT_SECONDS = 300.0
"""A checkpoint at least this often, besides the one of every validation."""

Share = tuple[tuple[list[PairBatch], list[Tensor]], int]
"""A process's groups of pairs and their times, and the number of pairs of the whole batch."""


@dataclass(frozen=True)
class Trained:
    """The result of training.

    Attributes:
        field: the velocity field, with its last weights.
        weights: averaged weights of the best validation.
        summary: steps, epochs, losses and counts, for the model's description.
        curve: rows of the training curve.
    """

    field: VelocityField
    weights: dict[str, Tensor]
    summary: dict[str, Any]
    curve: list[dict[str, Any]]


def learning_rate(step: int, num_steps: int, settings: TrainRfm) -> float:
    """Cosine from `learning_rate` at the first step to `min_learning_rate` at the end."""
    low, high = settings.min_learning_rate, settings.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * step / num_steps)) / 2


def average_weights(
    average: Iterable[Tensor], current: Iterable[Tensor], step: int, decay: float
) -> None:
    """Move averaged weights towards the current ones; decay min(decay, (1 + n) / (10 + n))."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for kept, new in zip(average, current, strict=True):
            kept.lerp_(new, weight)


def train(
    settings: TrainRfm,
    seed: int,
    pairs: PreparedPairs,
    val_pairs: PreparedPairs,
    standardization: Standardization,
    checkpoint: Path,
    events: Path,
    fabric: Fabric,
) -> Trained:
    """Train the velocity field on the pairs; go on from the checkpoint where there is one.

    Args:
        settings: the configuration's `train_rfm`.
        seed: the configuration's seed.
        pairs: training pairs.
        val_pairs: pairs of the validation loss.
        standardization: statistics of the training pairs.
        checkpoint: file of the state, rewritten as training goes on.
        events: folder of TensorBoard's event files.
        fabric: devices and precision.

    Raises:
        FlowllmError: the validation loss is not a number any more, or by the first validation no
            step's loss was one, or the checkpoint is damaged.
        Stopped: SIGTERM came; the state was saved.
    """
    # --- what is trained, and for how long
    size = NetworkSize(
        settings.hidden_dim, settings.num_layers, settings.time_dim, settings.num_frequencies
    )
    weight_seed = derive(seed, "train_rfm", "weights")
    field = build_field(size, settings.angle_bounds, standardization, weight_seed)
    average = deepcopy(field).requires_grad_(False).to(fabric.device)
    if settings.compile:
        field.network.compile_layers()
    optimizer = torch.optim.AdamW(
        field.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    loss_module, optimizer = fabric.setup(FlowLoss(field), optimizer)
    steps_per_epoch = batches_per_epoch(pairs.num_atoms, settings.batch_size)
    num_steps = settings.epochs * steps_per_epoch
    if settings.max_steps is not None:
        num_steps = min(num_steps, settings.max_steps)

    constant = ConstantField(standardization).to(fabric.device)
    constant_errors = validation_errors(constant, val_pairs, seed, settings, fabric)
    constant_loss = settings.lambda_f * constant_errors[0] + settings.lambda_l * constant_errors[1]
    log.info("train_rfm: validation loss %.4g of the best constant field", constant_loss)

    # --- state, fresh or from the checkpoint
    state = {"step": 0, "skipped": 0, "stale": 0, "seconds": 0.0, "best_loss": math.inf}
    best: dict[str, Tensor] = {}
    curve: list[dict[str, Any]] = []
    if checkpoint.exists():
        saved = load_checkpoint(checkpoint, fabric.device)
        state, best, curve = saved["state"], saved["best"], saved["curve"]
        field.load_state_dict(saved["field"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        sums = saved["sums"]
        log.info("train_rfm: resumed at step %d of %d", state["step"], num_steps)
    else:
        sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
    resumed_seconds, clock = state["seconds"], time.perf_counter()
    progress = Progress("train_rfm: steps", num_steps, state["step"])
    last_save = clock

    def save() -> None:
        if fabric.is_global_zero:
            content = {
                "state": state,
                "best": best,
                "curve": curve,
                "field": field.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "sums": sums,
            }
            with atomic_path(checkpoint) as temporary:
                torch.save(content, temporary)

    # --- the loop
    weights = (settings.lambda_f, settings.lambda_l)
    plan = _batches(pairs, settings, seed, state["step"], num_steps)
    with (
        noting_sigterm() as asked_to_stop,
        event_log(events, state["step"], writes=fabric.is_global_zero) as write_events,
        closing(prefetched(_shares(pairs, plan, seed, fabric))) as shares,
    ):
        for step, (parts, total) in shares:
            if _patience_is_over(state, settings):
                break
            rate = learning_rate(step, num_steps, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            errors = loss_module(*parts) * (fabric.world_size / total)
            loss = weights[0] * errors[0] + weights[1] * errors[1]
            agreed = agree(errors, loss, asked_to_stop(), fabric)
            if agreed.finite:
                # The weights' sum divides the gradient, as in the public code, whose clip value
                # this is; the loss that is reported stays equation 8.
                fabric.backward(loss / sum(weights))
                fabric.clip_gradients(loss_module, optimizer, clip_val=settings.clip_value)
                optimizer.step()
                average_weights(average.parameters(), field.parameters(), step, settings.ema_decay)
                sums += torch.cat([agreed.errors, sums.new_ones(1)])
            else:
                state["skipped"] += 1
            optimizer.zero_grad()
            state["step"] = step + 1

            validate = (step + 1) % settings.val_steps == 0 or step + 1 == num_steps
            if validate:
                if state["skipped"] == step + 1:
                    raise FlowllmError(
                        f"train_rfm: all {step + 1} steps were skipped, since their loss is no "
                        "number; lower train_rfm.learning_rate, or look for what is no number in "
                        "the pairs"
                    )
                val_errors = validation_errors(average, val_pairs, seed, settings, fabric)
                val_loss = weights[0] * val_errors[0] + weights[1] * val_errors[1]
                state["seconds"] = resumed_seconds + time.perf_counter() - clock
                trained = (sums[:2] / sums[2]).tolist()  # no number where all steps were skipped
                curve.append(
                    {
                        "step": step + 1,
                        "epoch": (step + 1) / steps_per_epoch,
                        "train_loss": weights[0] * trained[0] + weights[1] * trained[1],
                        "train_coords_error": trained[0],
                        "train_lattice_error": trained[1],
                        "val_loss": val_loss,
                        "val_coords_error": val_errors[0],
                        "val_lattice_error": val_errors[1],
                        "learning_rate": rate,
                        "seconds": state["seconds"],
                    }
                )
                write_events(curve[-1])
                sums.zero_()
                if not math.isfinite(val_loss):
                    raise FlowllmError(
                        f"train_rfm: the validation loss is {val_loss} at step {step + 1} "
                        f"({state['skipped']} steps skipped for a loss that is no number); "
                        "lower train_rfm.learning_rate"
                    )
                if val_loss < state["best_loss"]:
                    state["best_loss"], state["best_step"], state["stale"] = val_loss, step + 1, 0
                    best = {name: value.clone() for name, value in average.state_dict().items()}
                else:
                    state["stale"] += 1
                log.info(
                    "train_rfm: step %d, train loss %.4g, validation loss %.4g (best %.4g)",
                    *(step + 1, curve[-1]["train_loss"], val_loss, state["best_loss"]),
                )
            if validate or time.perf_counter() - last_save > CHECKPOINT_SECONDS:
                state["seconds"] = resumed_seconds + time.perf_counter() - clock
                save()
                last_save = time.perf_counter()
            progress.advance()
            if agreed.stopping:
                state["seconds"] = resumed_seconds + time.perf_counter() - clock
                save()
                fabric.barrier()
                raise Stopped(
                    f"train_rfm: stopped by SIGTERM, saved after step {step + 1} of {num_steps}; "
                    "run the same again to go on"
                )

    summary = {
        "steps": state["step"],
        "steps_per_epoch": steps_per_epoch,
        "skipped_steps": state["skipped"],
        "best_step": state["best_step"],
        "validation_loss": state["best_loss"],
        "constant_field_loss": constant_loss,
        "stopped_early": state["step"] < num_steps,
        "num_parameters": sum(p.numel() for p in field.parameters()),
    }
    return Trained(field, best, summary, curve)


def validation_errors(
    field: nn.Module,
    pairs: PreparedPairs,
    seed: int,
    settings: TrainRfm,
    fabric: Fabric,
) -> list[float]:
    """Mean squared errors (coordinates, lattice) over all pairs, each at one fixed time."""
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
    return (fabric.all_reduce(sums, reduce_op="sum") / len(pairs)).tolist()


def _batches(
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


def _shares(
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


def _patience_is_over(state: dict[str, Any], settings: TrainRfm) -> bool:
    return settings.patience is not None and state["stale"] >= settings.patience


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
