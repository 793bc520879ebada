"""Training of the velocity field, resumable at the exact step."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flowllm.config.sections.flow import TrainRfm
from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_path
from flowllm.rfm.loader import PreparedPairs, batches_per_epoch, prefetched
from flowllm.rfm.loss import ConstantField, FlowLoss
from flowllm.rfm.model import build_field
from flowllm.rfm.network import NetworkSize, Standardization, VelocityField
from flowllm.rfm.shared_steps import (
    Share,
    agree,
    planned_batches,
    shares_of_batches,
    validation_errors,
)
from flowllm.runtime.checkpoints import load_checkpoint
from flowllm.runtime.early_stopping import BestWeights
from flowllm.runtime.log import Progress, log
from flowllm.runtime.signals import Stopped, noting_sigterm
from flowllm.runtime.tensorboard import event_log
from flowllm.seeds import derive

CHECKPOINT_SECONDS = 300.0
"""Longest time between two checkpoints; every validation saves one, too."""

Error = TypeVar("Error", float, Tensor)


@dataclass(frozen=True)
class Trained:
    """The result of training.

    Attributes:
        field: the velocity field, with its last weights.
        weights: averaged weights of the best validation.
        summary: steps, losses and counts, for `model.json`.
        curve: rows of the training curve.
    """

    field: VelocityField
    weights: dict[str, Tensor]
    summary: dict[str, Any]
    curve: list[dict[str, float]]


def learning_rate(step: int, num_steps: int, settings: TrainRfm) -> float:
    """Return the rate of a step: a cosine from `learning_rate` down to `min_learning_rate`."""
    low, high = settings.min_learning_rate, settings.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * step / num_steps)) / 2


def average_weights(
    average: Iterable[Tensor], current: Iterable[Tensor], step: int, decay: float
) -> None:
    """Update the exponential moving average of the weights, in place.

    The decay after n steps is min(decay, (1 + n) / (10 + n)), so that the average forgets the first
    weights.
    """
    update = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
    update(list(average), list(current), step)


def train(
    settings: TrainRfm,
    seed: int,
    pairs: PreparedPairs,
    val_pairs: PreparedPairs,
    standardization: Standardization,
    checkpoint: Path,
    events: Path,
    fabric: Fabric,
    start: VelocityField | None = None,
    on_save: Callable[[], None] = lambda: None,
) -> Trained:
    """Train the velocity field, and resume from the checkpoint if there is one.

    Args:
        settings: section `train_rfm` of the configuration.
        seed: seed of the configuration.
        pairs: training pairs.
        val_pairs: validation pairs.
        standardization: statistics of the training pairs, or of the start.
        checkpoint: file of the state, rewritten during training.
        events: folder of the TensorBoard event files.
        fabric: devices and precision.
        start: field whose weights training begins with, and which is kept if no validation loss
            is lower than its own; None for random weights.
        on_save: called after each checkpoint.

    Raises:
        FlowllmError: the validation loss is not finite, all steps before the first validation had
            a non-finite loss, or the checkpoint is damaged.
        Stopped: the process received SIGTERM; the state was saved.
    """
    training = FlowTraining(settings, seed, pairs, val_pairs, standardization, fabric, start)
    training.load(checkpoint)
    training.run(checkpoint, events, on_save)
    return training.result()


@dataclass
class State:
    """Progress of a training. A checkpoint also has the weights and the optimizer.

    Attributes:
        step: finished optimizer steps, skipped ones included.
        skipped: steps without an update, because their loss was not finite.
        seconds: wall time of training, over all runs that resumed it.
        curve: one row per validation.
    """

    step: int = 0
    skipped: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


class FlowTraining:
    """The training of one velocity field.

    Attributes:
        num_steps: optimizer steps; early stopping may end training before.
        state: progress.
        best: averaged weights of the lowest validation loss, that of the start included, and early
            stopping.
    """

    def __init__(
        self,
        settings: TrainRfm,
        seed: int,
        pairs: PreparedPairs,
        val_pairs: PreparedPairs,
        standardization: Standardization,
        fabric: Fabric,
        start: VelocityField | None,
    ) -> None:
        """Build the network, its average and the optimizer; for the arguments see `train`."""
        self._settings, self._seed, self._fabric = settings, seed, fabric
        self._pairs, self._val_pairs = pairs, val_pairs
        self._lambdas = (settings.lambda_f, settings.lambda_l)
        size = NetworkSize(
            settings.hidden_dim, settings.num_layers, settings.time_dim, settings.num_frequencies
        )
        weight_seed = derive(seed, "train_rfm", "weights")
        self._field = build_field(size, settings.angle_bounds, standardization, weight_seed)
        if start is not None:
            self._field.load_state_dict(start.state_dict())
        self._average = deepcopy(self._field).requires_grad_(False).to(fabric.device)
        if settings.compile:
            self._field.network.compile_layers()
        optimizer = torch.optim.AdamW(
            self._field.parameters(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self._loss_module, self._optimizer = fabric.setup(FlowLoss(self._field), optimizer)
        self._steps_per_epoch = batches_per_epoch(pairs.num_atoms, settings.batch_size)
        self.num_steps = settings.epochs * self._steps_per_epoch
        if settings.max_steps is not None:
            self.num_steps = min(self.num_steps, settings.max_steps)
        self.state, self.best = State(), BestWeights(settings.patience)
        # Sums of the errors (coordinates, lattice) since the last validation, and the step count.
        self._sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)
        constant = ConstantField(standardization).to(fabric.device)
        self._constant_loss = self._weighted(*self._validation_errors(constant))
        log.info("train_rfm: the best constant field has validation loss %.4g", self._constant_loss)
        if start is not None:
            # Few pairs may teach the network nothing; it then stays as it was.
            loss = self._weighted(*self._validation_errors(self._average))
            self.best.update(0, loss, self._average.state_dict)
            log.info("train_rfm: the start has validation loss %.4g", loss)

    def run(self, checkpoint: Path, events: Path, on_save: Callable[[], None]) -> None:
        """Take the remaining steps; for arguments and errors see `train`."""
        state, fabric = self.state, self._fabric
        progress = Progress("train_rfm: steps", self.num_steps, state.step)
        clock = _Clock(state.seconds)
        plan = planned_batches(self._pairs, self._settings, self._seed, state.step, self.num_steps)
        with (
            noting_sigterm() as asked_to_stop,
            event_log(events, state.step, writes=fabric.is_global_zero) as write_events,
            closing(prefetched(shares_of_batches(self._pairs, plan, self._seed, fabric))) as shares,
        ):
            for _, share in shares:
                if self.best.is_patience_over:
                    break
                stopping = self._step(share, asked_to_stop())
                state.seconds = clock.total()
                is_last = state.step == self.num_steps
                is_validated = is_last or state.step % self._settings.val_steps == 0
                if is_validated:
                    self._validate()
                    write_events(state.curve[-1])
                    self._keep_best_weights()
                if is_validated or stopping or clock.is_save_due():
                    state.seconds = clock.total()
                    self.save(checkpoint)
                    on_save()
                    clock.note_save()
                progress.advance()
                if stopping:
                    fabric.barrier()
                    raise Stopped(
                        f"train_rfm: stopped by SIGTERM, saved after step {state.step} of "
                        f"{self.num_steps}; run the same command again to resume"
                    )

    def _step(self, share: Share, stop: bool) -> bool:
        """Take one optimizer step, or skip it if the loss is not finite.

        Args:
            share: this process's part of the batch.
            stop: whether this process was asked to stop.

        Returns:
            Whether any process was asked to stop.
        """
        parts, total = share
        state, settings, fabric = self.state, self._settings, self._fabric
        rate = learning_rate(state.step, self.num_steps, settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        errors = self._loss_module(*parts) * (fabric.world_size / total)
        loss = self._weighted(errors[0], errors[1])
        agreed = agree(errors, loss, stop, fabric)
        if agreed.finite:
            # The public code divides the loss by lambda_f + lambda_l, and the clip value is that of
            # the public code. The reported loss is equation 8 without this division.
            fabric.backward(loss / sum(self._lambdas))
            fabric.clip_gradients(self._loss_module, self._optimizer, clip_val=settings.clip_value)
            self._optimizer.step()
            current = self._field.parameters()
            average_weights(self._average.parameters(), current, state.step, settings.ema_decay)
            self._sums += torch.cat([agreed.errors, self._sums.new_ones(1)])
        else:
            state.skipped += 1
        self._optimizer.zero_grad()
        state.step += 1
        return agreed.stopping

    def _validate(self) -> None:
        """Add a row to the training curve.

        Raises:
            FlowllmError: every step so far was skipped.
        """
        state = self.state
        if state.skipped == state.step:
            raise FlowllmError(
                f"train_rfm: all {state.step} steps were skipped, because their loss is not "
                "finite; lower train_rfm.learning_rate or check the pairs for NaN"
            )
        errors = self._validation_errors(self._average)
        trained = (self._sums[:2] / self._sums[2]).tolist()  # NaN if all steps were skipped
        self._sums.zero_()
        state.curve.append(
            {
                "step": state.step,
                "epoch": state.step / self._steps_per_epoch,
                "train_loss": self._weighted(*trained),
                "train_coords_error": trained[0],
                "train_lattice_error": trained[1],
                "val_loss": self._weighted(*errors),
                "val_coords_error": errors[0],
                "val_lattice_error": errors[1],
                "learning_rate": learning_rate(state.step - 1, self.num_steps, self._settings),
                "seconds": state.seconds,
            }
        )

    def _keep_best_weights(self) -> None:
        """Keep the averaged weights if the last validation loss is the lowest so far.

        Raises:
            FlowllmError: the last validation loss is not finite.
        """
        state, row = self.state, self.state.curve[-1]
        if not math.isfinite(row["val_loss"]):
            raise FlowllmError(
                f"train_rfm: the validation loss is {row['val_loss']} at step {state.step} "
                f"({state.skipped} steps were skipped, because their loss is not finite); "
                "lower train_rfm.learning_rate"
            )
        self.best.update(state.step, row["val_loss"], self._average.state_dict)
        log.info(
            "train_rfm: step %d, train loss %.4g, validation loss %.4g (best %.4g)",
            state.step,
            row["train_loss"],
            row["val_loss"],
            self.best.loss,
        )

    def _weighted(self, coords_error: Error, lattice_error: Error) -> Error:
        """Return the loss, equation 8: the weighted sum of both errors."""
        return self._lambdas[0] * coords_error + self._lambdas[1] * lattice_error

    def _validation_errors(self, field: nn.Module) -> list[float]:
        """Return mean squared errors (coordinates, lattice) over the validation pairs."""
        return validation_errors(field, self._val_pairs, self._settings, self._seed, self._fabric)

    def save(self, checkpoint: Path) -> None:
        """Write the checkpoint, in the first process only."""
        if not self._fabric.is_global_zero:
            return
        state, best = self.state, self.best
        content = {
            "state": {
                "step": state.step,
                "skipped": state.skipped,
                "seconds": state.seconds,
                "best_step": best.step,
                "best_loss": best.loss,
                "stale": best.evaluations_without_gain,
            },
            "best": best.weights,
            "curve": state.curve,
            "field": self._field.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "sums": self._sums,
        }
        with atomic_path(checkpoint) as temporary:
            torch.save(content, temporary)

    def load(self, checkpoint: Path) -> None:
        """Resume from a checkpoint if there is one.

        Raises:
            FlowllmError: the file is damaged.
        """
        if not checkpoint.exists():
            return
        saved = load_checkpoint(checkpoint, self._fabric.device)
        found = saved["state"]
        self.state = State(found["step"], found["skipped"], found["seconds"], saved["curve"])
        self.best = BestWeights(
            self._settings.patience,
            step=found.get("best_step", 0),
            loss=found["best_loss"],
            evaluations_without_gain=found["stale"],
            weights=saved["best"],
        )
        self._field.load_state_dict(saved["field"])
        self._average.load_state_dict(saved["average"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._sums = saved["sums"]
        log.info("train_rfm: resumed at step %d of %d", self.state.step, self.num_steps)

    def result(self) -> Trained:
        """Return the trained field, its best averaged weights and the summary."""
        summary = {
            "steps": self.state.step,
            "steps_per_epoch": self._steps_per_epoch,
            "skipped_steps": self.state.skipped,
            "best_step": self.best.step,
            "validation_loss": self.best.loss,
            "constant_field_loss": self._constant_loss,
            "stopped_early": self.state.step < self.num_steps,
            "num_parameters": sum(p.numel() for p in self._field.parameters()),
        }
        return Trained(self._field, self.best.weights, summary, self.state.curve)


class _Clock:
    """Wall time of a training over all runs that resumed it, and since the last checkpoint."""

    def __init__(self, seconds_before: float) -> None:
        self._start = self._last_save = time.perf_counter()
        self._before = seconds_before

    def total(self) -> float:
        return self._before + time.perf_counter() - self._start

    def is_save_due(self) -> bool:
        return time.perf_counter() - self._last_save > CHECKPOINT_SECONDS

    def note_save(self) -> None:
        self._last_save = time.perf_counter()
