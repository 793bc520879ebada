"""The fine-tuning loop, which can be resumed exactly.

The project has its own loop rather than a library's trainer, so that the order of the texts, the
random numbers of the dropout and the tokens that count in the loss are explicit and follow from the
seed. A run that was killed and resumed ends with the same weights as an uninterrupted one.
"""

import csv
import io
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowllm.config.sections.llm import FinetuneLlm
from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_folder
from flowllm.llm.prompts import Example
from flowllm.llm.token_loss import (
    LanguageModel,
    mean_loss,
    shares,
    sum_over_processes,
    sum_tensors,
    summed_loss,
)
from flowllm.llm.trained_weights import set_trained_weights, trained_weights
from flowllm.llm.training_texts import (
    MicroBatch,
    TrainingTexts,
    lengths_of,
    micro_batches,
    order_of_epoch,
    padding_share,
)
from flowllm.runtime.checkpoints import load_checkpoint, naming_damaged_checkpoint
from flowllm.runtime.early_stopping import BestWeights
from flowllm.runtime.log import Progress, log
from flowllm.runtime.signals import Stopped, noting_sigterm
from flowllm.runtime.tensorboard import event_log
from flowllm.seeds import derive, generator

MESSAGE_NUMBERS = 1 << 26
"""Numbers of the gradient that processes sum in one message: 256 MB, the whole of an adapter's."""

CURVE_COLUMNS = ("step", "epoch", "tokens", "learning_rate", "train_loss", "val_loss")


@dataclass
class State:
    """Progress of the loop; a checkpoint also has the weights and the optimizer.

    Attributes:
        step: number of completed optimizer steps.
        tokens: number of tokens trained on, without padding.
        seconds: wall time of training, over all runs that resumed it.
        curve: one row per step with the columns `CURVE_COLUMNS`.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Finetuning:
    """Training of one adapter, or of all weights of a model.

    Attributes:
        batch_size: texts per optimizer step, over all processes.
        num_steps: number of optimizer steps without early stopping.
        state: progress of the training.
        best: lowest validation loss; with `patience` also the weights of that step.
    """

    def __init__(
        self,
        model: LanguageModel,
        train_texts: TrainingTexts,
        val_texts: TrainingTexts,
        section: FinetuneLlm,
        seed: int,
        pad_token_id: int,
        fabric: Fabric,
    ) -> None:
        """Prepare the optimizer and compute the number of steps.

        Args:
            model: base model with adapter, or model whose weights are all trained, in place.
            train_texts: training texts, at least one.
            val_texts: validation texts, at least one.
            section: configuration section `finetune_llm`.
            seed: seed of the configuration.
            pad_token_id: any token.
            fabric: processes that share each batch. Their number changes only the order of
                summation.
        """
        self.batch_size = min(section.batch_size, len(train_texts))
        self._steps_per_epoch = len(train_texts) // self.batch_size
        self.num_steps = section.epochs * self._steps_per_epoch
        if section.max_steps is not None:
            self.num_steps = min(self.num_steps, section.max_steps)
        self.state = State()
        self.best = BestWeights(section.patience)
        self._model, self._texts = model, train_texts
        self._section, self._seed, self._fabric = section, seed, fabric
        self._pad_token_id = pad_token_id
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, weight_decay=section.weight_decay)
        self._val_batches = self._in_micro_batches(val_texts.epoch(0))

    def padding_shares(self) -> tuple[float, float]:
        """Return the fractions of padding in the first epoch: as ordered, and in random order."""
        lengths = lengths_of(self._texts.epoch(0))
        order = self._order(0, lengths)
        rng = generator(self._seed, "finetune_llm", "padding")
        shuffled = rng.permutation(order.ravel()).reshape(order.shape)
        size = self._section.micro_batch_size
        return padding_share(order, lengths, size), padding_share(shuffled, lengths, size)

    def train(self, checkpoints: Path, events: Path, on_save: Callable[[], None]) -> State:
        """Train the weights, starting from the last checkpoint if there is one.

        With `patience`, the weights of the lowest validation loss is restored at the end.

        Args:
            checkpoints: folder of the checkpoints.
            events: folder of TensorBoard's event files.
            on_save: called after each checkpoint.

        Returns:
            The final state, including the training curve.

        Raises:
            FlowllmError: the loss is not finite, or the checkpoint is damaged.
            Stopped: the process received SIGTERM; the state was saved.
        """
        self._load(checkpoints)
        state, section, fabric = self.state, self._section, self._fabric
        progress = Progress("finetune_llm: steps", self.num_steps, state.step)
        clock, clock_tokens, clock_seconds = time.perf_counter(), state.tokens, state.seconds
        self._model.train()
        with (
            noting_sigterm() as asked_to_stop,
            event_log(events, state.step, writes=fabric.is_global_zero) as write_events,
        ):
            for epoch, batch in self._batches():
                row = self._step(epoch, batch)
                over = state.step == self.num_steps
                if state.step % section.eval_steps == 0 or over:
                    row["val_loss"] = self._validate()
                    over = over or self.best.is_patience_over
                state.curve.append(row)
                write_events(row)
                spent = time.perf_counter() - clock
                state.seconds = clock_seconds + spent
                stopping = not over and self._any_process(asked_to_stop())
                if stopping or (state.step % section.save_steps == 0 and not over):
                    self._save(checkpoints)
                    on_save()
                if stopping:
                    raise Stopped(
                        f"finetune_llm: stopped by SIGTERM, saved after step {state.step} of "
                        f"{self.num_steps}; run the same command again to resume"
                    )
                speed = (state.tokens - clock_tokens) / spent
                progress.advance(note=f"loss {row['train_loss']:.3f}, {speed:.0f} tokens/s")
                if over:
                    break
        if self.best.weights:
            set_trained_weights(self._model, self.best.weights)
        return state

    def kept_val_loss(self) -> float:
        """Return the validation loss of the final weights in nats per token."""
        kept = self.best.loss if self.best.weights else self.state.curve[-1]["val_loss"]
        return round(float(kept), 6)

    def _batches(self) -> Iterator[tuple[int, list[Example]]]:
        """Yield the epoch and the texts of each step, from the current step on, without end.

        The order of the texts in an epoch depends only on the number of the epoch.
        """
        first_epoch, done = divmod(self.state.step, self._steps_per_epoch)
        for epoch in count(first_epoch):
            examples = self._texts.epoch(epoch)
            for batch in islice(self._order(epoch, lengths_of(examples)), done, None):
                yield epoch, [examples[i] for i in batch]
            done = 0

    def _order(self, epoch: int, lengths: Sequence[int]) -> np.ndarray:
        """Return the indices of an epoch's texts, int64 (batches, batch_size)."""
        rng = generator(self._seed, "finetune_llm", "order", epoch)
        return order_of_epoch(lengths, self.batch_size, rng)

    def _step(self, epoch: int, batch: Sequence[Example]) -> dict[str, Any]:
        """Take one optimizer step; return its row of the curve, without validation loss."""
        state, section = self.state, self._section
        rate = learning_rate(state.step, self.num_steps, section)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        train_loss = self._accumulate(self._in_micro_batches(batch))
        if not math.isfinite(train_loss):
            raise FlowllmError(
                f"finetune_llm: the loss is {train_loss} at step {state.step + 1}. "
                "Lower finetune_llm.learning_rate."
            )
        torch.nn.utils.clip_grad_norm_(self._parameters, section.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.tokens += sum(lengths_of(batch))
        row = (state.step, epoch, state.tokens, rate, train_loss, None)
        return dict(zip(CURVE_COLUMNS, row, strict=True))

    def _accumulate(self, batches: Sequence[MicroBatch]) -> float:
        """Sum the gradients of all micro-batches; return the mean loss per token.

        Each micro-batch has its own seed for the dropout, so that the result does not depend on
        which process evaluates it.
        """
        num_targets = sum(batch.num_targets for batch in batches)
        total = torch.zeros((), dtype=torch.float64, device=self._fabric.device)
        for number, weight in shares(len(batches), self._fabric):
            torch.manual_seed(
                derive(self._seed, "finetune_llm", "dropout", self.state.step, number)
            )
            with self._fabric.autocast():
                loss = summed_loss(self._model, batches[number], self._fabric.device)
            loss = loss * (weight / num_targets)
            loss.backward()
            total += loss.detach().to(total.device)
        self._sum_gradients()
        return sum_tensors(total, self._fabric).item()

    def _sum_gradients(self) -> None:
        """Sum the gradients over all processes, in few messages."""
        if self._fabric.world_size == 1:
            return
        for gradients in _in_messages([_gradient_of(one) for one in self._parameters]):
            joined = torch.cat([gradient.flatten() for gradient in gradients])
            summed = sum_tensors(joined, self._fabric)
            parts = summed.split([gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def _validate(self) -> float:
        """Return the validation loss and update the best weights."""
        state = self.state
        with self._fabric.autocast():
            loss = mean_loss(self._model, self._val_batches, self._fabric)
        log.info("finetune_llm: step %d, validation loss %.4f", state.step, loss)
        self.best.update(state.step, loss, self._kept_weights)
        return loss

    def _kept_weights(self) -> dict[str, Tensor]:
        """Return the trained weights; without early stopping they are not needed."""
        return {} if self._section.patience is None else trained_weights(self._model)

    def _any_process(self, flag: bool) -> bool:
        """Return whether the flag is set on any process."""
        return sum_over_processes(float(flag), self._fabric) > 0

    def _in_micro_batches(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """Divide texts into padded micro-batches."""
        size, on_prompt = self._section.micro_batch_size, self._section.loss_on == "text"
        return micro_batches(examples, size, on_prompt, self._pad_token_id)

    def _save(self, folder: Path) -> None:
        """Write a checkpoint, then delete older ones."""
        target = folder / f"checkpoint-{self.state.step:08d}"
        weights = trained_weights(self._model)
        if self._fabric.is_global_zero:
            with atomic_folder(target) as temporary:
                save_file(weights, temporary / "weights.safetensors")
                save_file(self.best.weights, temporary / "best.safetensors")
                torch.save(self._optimizer.state_dict(), temporary / "optimizer.pt")
                (temporary / "state.json").write_text(json.dumps(self._state()))
            for older in folder.glob("checkpoint-*"):
                if older != target:
                    shutil.rmtree(older)
        self._fabric.barrier()

    def _state(self) -> dict[str, Any]:
        """Return the progress as JSON values for a checkpoint."""
        best = {
            "best_step": self.best.step,
            "best_loss": self.best.loss,
            "stale": self.best.evaluations_without_gain,
        }
        return asdict(self.state) | best

    def _load(self, folder: Path) -> None:
        """Restore the last checkpoint if there is one.

        Raises:
            FlowllmError: the checkpoint is damaged.
        """
        found = sorted(folder.glob("checkpoint-*"))
        if not found:
            return
        optimizer = load_checkpoint(found[-1] / "optimizer.pt", self._fabric.device)
        with naming_damaged_checkpoint(found[-1]):
            weights = load_file(found[-1] / "weights.safetensors")
            best = load_file(found[-1] / "best.safetensors")
            state = json.loads((found[-1] / "state.json").read_text())
            seconds = state.get("seconds", 0.0)  # checkpoints of earlier versions have none
            self.state = State(state["step"], state["tokens"], seconds, state["curve"])
            self.best = BestWeights(
                self._section.patience,
                step=state["best_step"],
                loss=state["best_loss"],
                evaluations_without_gain=state["stale"],
                weights=best,
            )
            set_trained_weights(self._model, weights)
        self._optimizer.load_state_dict(optimizer)
        log.info("finetune_llm: resuming after step %d", self.state.step)


def _in_messages(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Divide gradients, in order, into messages of at most `MESSAGE_NUMBERS` (or one gradient)."""
    message: list[Tensor] = []
    for gradient in gradients:
        if message and sum(map(torch.numel, [*message, gradient])) > MESSAGE_NUMBERS:
            yield message
            message = []
        message.append(gradient)
    yield message


def _gradient_of(parameter: Tensor) -> Tensor:
    """Return a parameter's gradient, which every trained parameter has after a step."""
    assert parameter.grad is not None
    return parameter.grad


def learning_rate(step: int, num_steps: int, section: FinetuneLlm) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine decay to zero.

    Args:
        step: number of completed steps.
        num_steps: total number of steps.
        section: peak rate and warm-up steps.
    """
    warmup = min(section.warmup_steps, num_steps)
    if step < warmup:
        return section.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(num_steps - warmup, 1)
    return section.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def curve_csv(curve: Sequence[Mapping[str, Any]]) -> str:
    """Return the training curve as CSV text, with empty cells where no validation was done.

    Times are only in the log and the provenance record, so that the folder's content is exactly
    reproducible.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, CURVE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in curve:
        shown = {"learning_rate": ".6e", "train_loss": ".6f", "val_loss": ".6f"}
        writer.writerow(
            {
                name: "" if value is None else format(value, shown.get(name, "d"))
                for name, value in row.items()
            }
        )
    return text.getvalue()
