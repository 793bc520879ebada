"""The fine-tuning loop: LoRA on every linear layer, one straight loop, exact resume.

An own loop, rather than a trainer's, so that the order of the data, the random numbers of the
dropout and what counts in a loss are all visible and follow from the seed: a run that was killed
and resumed ends with the same adapter as an undisturbed one.
"""

import csv
import io
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from flowllm.checkpoints import load_checkpoint, naming_damage
from flowllm.config import FinetuneLlm
from flowllm.errors import FlowllmError
from flowllm.llm.prompts import Example
from flowllm.llm.training_texts import (
    IGNORED,
    MicroBatch,
    TrainingTexts,
    collate,
    order_of_epoch,
    padding_share,
)
from flowllm.runlog import Progress, log
from flowllm.seeds import derive, generator
from flowllm.stopping import Stopped, noting_sigterm
from flowllm.tables import atomic_folder

CURVE_COLUMNS = ("step", "epoch", "tokens", "learning_rate", "train_loss", "val_loss")


@dataclass
class State:
    """Where the loop stands; with the adapter and the optimiser all that a resume needs.

    Attributes:
        step: optimiser steps done.
        tokens: tokens of the texts seen, padding left out.
        curve: one row a step, columns `CURVE_COLUMNS`.
    """

    step: int = 0
    tokens: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)


def add_lora(model: PreTrainedModel, section: FinetuneLlm, seed: int) -> PeftModel:
    """Put a LoRA adapter on every linear layer but the output's.

    Args:
        model: the base model, its weights frozen from here on.
        section: rank, alpha, dropout, quantisation, gradient checkpointing.
        seed: of the adapter's first weights.
    """
    if section.quantization != "none":
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=section.gradient_checkpointing
        )
    elif section.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    model.config.use_cache = False
    torch.manual_seed(derive(seed, "finetune_llm", "adapter"))
    config = LoraConfig(
        r=section.lora_rank,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def train_adapter(
    model: PeftModel,
    train_texts: TrainingTexts,
    val_texts: TrainingTexts,
    section: FinetuneLlm,
    seed: int,
    folder: Path,
    pad_token_id: int,
    fabric: Fabric,
) -> State:
    """Train the adapter in place, from the last checkpoint where there is one.

    Args:
        model: base model with adapter.
        train_texts: at least one text.
        val_texts: at least one text.
        section: the settings.
        seed: the configuration's seed.
        folder: for checkpoints.
        pad_token_id: any token.
        fabric: the processes that share each batch; the result depends on their number only by
            the order of sums.

    Returns:
        The last state, with the training curve.

    Raises:
        FlowllmError: the loss is not a number, or the checkpoint is damaged.
        Stopped: SIGTERM came; the state was saved.
    """
    batch_size = min(section.batch_size, len(train_texts))
    steps_per_epoch = len(train_texts) // batch_size
    num_steps = section.epochs * steps_per_epoch
    if section.max_steps is not None:
        num_steps = min(num_steps, section.max_steps)
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=section.weight_decay)
    on_prompt = section.loss_on == "text"
    state = _load_checkpoint(folder, model, optimizer)
    val_batches = _in_micro_batches(
        val_texts.epoch(0), section.micro_batch_size, on_prompt, pad_token_id
    )
    progress = Progress("finetune_llm: steps", num_steps, state.step)
    clock, clock_tokens = time.perf_counter(), state.tokens

    model.train()
    with noting_sigterm() as asked_to_stop:
        while state.step < num_steps:
            epoch, first_batch = divmod(state.step, steps_per_epoch)
            examples = train_texts.epoch(epoch)
            lengths = [len(example.tokens) for example in examples]
            order = order_of_epoch(
                lengths, batch_size, generator(seed, "finetune_llm", "order", epoch)
            )
            _log_padding(epoch, order, lengths, section.micro_batch_size, seed)
            for batch in order[first_batch:]:
                rate = learning_rate(state.step, num_steps, section)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                chosen = [examples[i] for i in batch]
                micro_batches = _in_micro_batches(
                    chosen, section.micro_batch_size, on_prompt, pad_token_id
                )
                seeds = [
                    derive(seed, "finetune_llm", "dropout", state.step, number)
                    for number in range(len(micro_batches))
                ]
                train_loss = _accumulate(model, micro_batches, seeds, device, fabric)
                _add_up_gradients(parameters, fabric)
                if not math.isfinite(train_loss):
                    raise FlowllmError(
                        f"finetune_llm: the loss is {train_loss} at step {state.step + 1}; "
                        "lower finetune_llm.learning_rate"
                    )
                torch.nn.utils.clip_grad_norm_(parameters, section.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

                state.step += 1
                state.tokens += sum(len(example.tokens) for example in chosen)
                last = state.step == num_steps
                val_loss = None
                if state.step % section.eval_steps == 0 or last:
                    val_loss = mean_loss(model, val_batches, device, fabric)
                    log.info("finetune_llm: step %d, validation loss %.4f", state.step, val_loss)
                row = (state.step, epoch, state.tokens, rate, train_loss, val_loss)
                state.curve.append(dict(zip(CURVE_COLUMNS, row, strict=True)))
                stopping = not last and _any_process(asked_to_stop(), fabric)
                if stopping or (state.step % section.save_steps == 0 and not last):
                    if fabric.is_global_zero:
                        _save_checkpoint(folder, model, optimizer, state)
                    fabric.barrier()
                if stopping:
                    raise Stopped(
                        f"finetune_llm: stopped by SIGTERM, saved after step {state.step} of "
                        f"{num_steps}; run the same again to go on"
                    )
                speed = (state.tokens - clock_tokens) / (time.perf_counter() - clock)
                progress.advance(note=f"loss {train_loss:.3f}, {speed:.0f} tokens/s")
                if last:
                    break
    return state


def learning_rate(step: int, num_steps: int, section: FinetuneLlm) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine to zero.

    Args:
        step: steps done before this one.
        num_steps: steps in all.
        section: peak rate and warm-up steps.
    """
    warmup = min(section.warmup_steps, num_steps)
    if step < warmup:
        return section.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(num_steps - warmup, 1)
    return section.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def mean_loss(
    model: PeftModel, batches: Sequence[MicroBatch], device: torch.device, fabric: Fabric
) -> float:
    """Return the mean loss a token, in nats, without dropout."""
    model.eval()
    mine = batches[fabric.global_rank :: fabric.world_size]
    total = _sum(sum(summed_loss(model, batch, device).item() for batch in mine), fabric)
    model.train()
    return total / sum(batch.num_targets for batch in batches)


def summed_loss(model: PeftModel, batch: MicroBatch, device: torch.device) -> Tensor:
    """Return the sum of the cross entropies of all labelled tokens, in nats.

    The output layer, a quarter of a small model's work, sees the labelled positions alone. The
    padding needs no mask: it stands behind the text, where no token of a causal model looks.
    """
    # The token at position t is predicted at position t - 1; nothing predicts the first.
    labels = batch.labels.to(device)[:, 1:]
    labelled = labels != IGNORED
    choose = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, hidden: (hidden[0][:, :-1][labelled],)
    )
    with choose:
        logits = model(input_ids=batch.input_ids.to(device)).logits
    return torch.nn.functional.cross_entropy(logits.float(), labels[labelled], reduction="sum")


def curve_csv(curve: Sequence[Mapping[str, Any]]) -> str:
    """Return the training curve as CSV, empty where no validation was made.

    Times are left to the log and the provenance record: the folder's content repeats exactly.
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


def _accumulate(
    model: PeftModel,
    batches: Sequence[MicroBatch],
    seeds: Sequence[int],
    device: torch.device,
    fabric: Fabric,
) -> float:
    """Add up the gradients of this process's micro-batches; return the loss of all processes'.

    Each micro-batch has its own seed for the dropout, so that it does not matter whose it is.
    """
    num_targets = sum(batch.num_targets for batch in batches)
    mine = slice(fabric.global_rank, None, fabric.world_size)
    total = 0.0
    for batch, seed in zip(batches[mine], seeds[mine], strict=True):
        torch.manual_seed(seed)
        loss = summed_loss(model, batch, device) / num_targets
        loss.backward()
        total += loss.item()
    return _sum(total, fabric)


def _add_up_gradients(parameters: Sequence[Parameter], fabric: Fabric) -> None:
    """Give every process the sum of all processes' gradients: one message, the adapter is small."""
    if fabric.world_size == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:  # this process had no micro-batch
            parameter.grad = torch.zeros_like(parameter)
    joined = torch.cat([parameter.grad.flatten() for parameter in parameters])
    summed = fabric.all_reduce(joined, reduce_op="sum")
    for parameter, grad in zip(
        parameters, summed.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad.copy_(grad.view_as(parameter))


def _sum(value: float, fabric: Fabric) -> float:
    """Sum of a number over all processes."""
    number = torch.tensor(value, dtype=torch.float64, device=fabric.device)
    return float(fabric.all_reduce(number, reduce_op="sum"))


def _any_process(flag: bool, fabric: Fabric) -> bool:
    return _sum(float(flag), fabric) > 0


def _in_micro_batches(
    examples: Sequence[Example], size: int, on_prompt: bool, pad_token_id: int
) -> list[MicroBatch]:
    by_length = sorted(examples, key=lambda example: len(example.tokens))
    return [
        collate(by_length[start : start + size], on_prompt, pad_token_id)
        for start in range(0, len(by_length), size)
    ]


def _log_padding(
    epoch: int, order: np.ndarray, lengths: Sequence[int], micro_batch_size: int, seed: int
) -> None:
    shuffled = generator(seed, "finetune_llm", "padding", epoch).permutation(order.ravel())
    log.info(
        "finetune_llm: epoch %d, padding %.1f %% of all tokens (%.1f %% without grouping)",
        epoch,
        100 * padding_share(order, lengths, micro_batch_size),
        100 * padding_share(shuffled.reshape(order.shape), lengths, micro_batch_size),
    )


def _save_checkpoint(
    folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer, state: State
) -> None:
    """Write a checkpoint, then drop the older ones."""
    target = folder / f"checkpoint-{state.step:08d}"
    with atomic_folder(target) as temporary:
        save_file(get_peft_model_state_dict(model), temporary / "adapter.safetensors")
        torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
        (temporary / "state.json").write_text(json.dumps(asdict(state)))
    for older in folder.glob("checkpoint-*"):
        if older != target:
            shutil.rmtree(older)


def _load_checkpoint(folder: Path, model: PeftModel, optimizer: torch.optim.Optimizer) -> State:
    found = sorted(folder.glob("checkpoint-*"))
    if not found:
        return State()
    device = next(model.parameters()).device
    saved = load_checkpoint(found[-1] / "optimizer.pt", device)
    with naming_damage(found[-1]):
        weights = load_file(found[-1] / "adapter.safetensors")
        state = State(**json.loads((found[-1] / "state.json").read_text()))
    set_peft_model_state_dict(model, weights)
    optimizer.load_state_dict(saved)
    log.info("finetune_llm: resuming after step %d", state.step)
    return state
