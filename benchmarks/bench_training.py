"""Tokens per second of the fine-tuning, and the validation loss after equal CPU time.

python benchmarks/bench_training.py --train crystals/train.parquet --val crystals/val.parquet \
    --config config.yaml --config workflow/config/smollm2.yaml --cpu-seconds 60 \
    --model scratch-256x6

Each model is trained until it has used the CPU time, by the loop of `finetune_llm` without
checkpoints, at a constant learning rate after the warm-up. Give --model once per model.
"""

import argparse
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from flowllm.config.load import check_config, load_config, merge
from flowllm.config.stage_settings import StageSettings
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import read_table
from flowllm.llm.base_model import load_tokenizer, quiet_transformers
from flowllm.llm.finetuning import Finetuning
from flowllm.llm.prompts import PromptTokens
from flowllm.llm.start import folder_to_train
from flowllm.llm.token_loss import mean_loss
from flowllm.llm.training_texts import texts_of
from flowllm.runtime.distributed import make_fabric
from flowllm.stages import finetune_llm

LARGE = {"batch_size": 32, "micro_batch_size": 32, "learning_rate": 2e-3, "warmup_steps": 10}

MODELS = {
    "smollm2-lora": {"base_model": "smollm2-135m", "method": "lora", "batch_size": 4},
    "smollm2-full": {
        **{"base_model": "smollm2-135m", "method": "full", "batch_size": 4},
        "learning_rate": 1e-4,
    },
    "scratch-192x7": {"scratch": {"width": 192, "layers": 7, "heads": 3}, **LARGE},
    "scratch-256x6": {"scratch": {"width": 256, "layers": 6, "heads": 4}, **LARGE},
    "scratch-320x8": {"scratch": {"width": 320, "layers": 8, "heads": 5}, **LARGE},
}
"""Changes of `finetune_llm` by the name of the model."""


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--config", type=Path, action="append", required=True)
    parser.add_argument("--cpu-seconds", type=float, default=60.0)
    parser.add_argument("--model", action="append", choices=MODELS, required=True)
    parser.add_argument("--micro-batch-size", type=int)
    given = parser.parse_args()
    quiet_transformers()
    for name in given.model:
        changes = {"patience": None, "max_steps": None, "epochs": 1000, **MODELS[name]}
        if name.startswith("scratch"):
            changes |= {"base_model": "scratch", "method": "full"}
        if given.micro_batch_size:
            changes["micro_batch_size"] = given.micro_batch_size
        print(f"{name}: {measure(changes, given)}", flush=True)


def measure(changes: dict, given: argparse.Namespace) -> str:
    """Train one model, and return what was measured."""
    values = load_config(given.config).model_dump(mode="json")
    config = check_config(merge(values, {"finetune_llm": changes}))
    settings = StageSettings.from_config("finetune_llm", config)
    section = settings.finetune_llm
    paths = {"train": given.train, "val": given.val}
    rows = {name: read_table(path, CRYSTALS).to_pylist() for name, path in paths.items()}
    rows["val"] = rows["val"][: section.validation_rows]
    training = prepared(settings, rows, paths)
    clock = time.perf_counter()
    busy = train_for(training, given.cpu_seconds)
    seconds = time.perf_counter() - clock
    state = training.state
    loss = mean_loss(training._model, training._val_batches, training._fabric)
    targets = sum(batch.num_targets for batch in training._val_batches)
    weights = sum(parameter.numel() for parameter in training._parameters)
    return (
        f"{weights / 1e6:.2f} million trained weights, {state.step} steps, {state.tokens} tokens, "
        f"{state.tokens / state.step / section.batch_size:.0f} per text, {state.tokens / busy:.0f} "
        f"per CPU second, {state.tokens / seconds:.0f}/s; validation loss {loss:.4f} per token, "
        f"{loss * targets / len(rows['val']):.1f} per text"
    )


def prepared(
    settings: StageSettings, rows: Mapping[str, list], paths: Mapping[str, Path]
) -> Finetuning:
    """Return the training of a model before its first step.

    Args:
        settings: settings of finetune_llm.
        rows: rows of the training (train) and validation (val) crystals.
        paths: files of these.
    """
    section = settings.finetune_llm
    fabric = make_fabric("fp32")
    fabric.launch()
    with folder_to_train(section, settings.prompts, settings.seed) as source:
        prompts = PromptTokens(settings.prompts, load_tokenizer(source))
        texts = {
            name: texts_of(name, rows[name], paths[name], prompts, section, settings.seed)
            for name in rows
        }
        model = finetune_llm._model(source, settings, fabric)
    model.train()
    return Finetuning(
        model, texts["train"], texts["val"], section, settings.seed, prompts.end_token_id, fabric
    )


def train_for(training: Finetuning, cpu_seconds: float) -> float:
    """Train until the process has used the CPU time; return what it used, in seconds."""
    clock = time.process_time()
    left = training.num_steps - training.state.step
    for epoch, batch in islice(training._batches(), left):
        training._step(epoch, batch)
        if time.process_time() - clock > cpu_seconds:
            break
    return time.process_time() - clock


if __name__ == "__main__":
    main()
