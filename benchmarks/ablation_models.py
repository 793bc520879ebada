"""Train language models for equal times, sample and relax drafts: one cell per model and text.

python benchmarks/ablation_models.py --data data/mp_20_large --out runs/ablation
python benchmarks/ablation_models.py --data data/mp_20_large --out runs/ablation --hull
python benchmarks/ablation_table.py runs/ablation

DATA has train.csv, val.csv and test.csv in MP-20's format. Each cell is a run folder OUT/CELL. Its
number of steps is measured first, so that the cosine of the learning rate ends with the time. A
killed script resumes: give the same command again. --hull relaxes the training crystals once, for
the energies above their hull (hours). Nothing else may run at the same time, since the time is wall
time.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import yaml

from flowllm.config.load import load_config
from flowllm.config.stage_settings import stage_json
from flowllm.runtime.provenance import read_provenance

CONFIGS = [
    Path("config.yaml"),
    Path("workflow/config/smollm2.yaml"),
    Path(__file__).with_suffix(".yaml"),
]

LARGE = {
    **{"base_model": "scratch", "method": "full"},
    **{"batch_size": 32, "micro_batch_size": 32, "learning_rate": 2e-3, "warmup_steps": 50},
}

MODELS = {
    "smollm2-lora": {"learning_rate": 1e-3, "warmup_steps": 10},
    "smollm2-full": {"method": "full", "learning_rate": 1e-4, "warmup_steps": 10},
    "scratch-3m": {**LARGE, "scratch": {"width": 192, "layers": 7, "heads": 3}},
    "scratch-10m": {**LARGE, "scratch": {"width": 320, "layers": 8, "heads": 5}},
}
"""Changes of `finetune_llm` by the name of the model."""

TEXTS = {
    "coordinates": {},
    "symmetric": {"prompts": {"crystal_text": "symmetric"}, "prepare": {"cell": "standard"}},
}
"""Changes of the configuration by the name of the text."""

CALIBRATION_STEPS = {"smollm2-lora": 12, "smollm2-full": 8, "scratch-3m": 60, "scratch-10m": 25}
"""Steps of about a minute on two cores, by which the time of a step is measured."""


def main() -> None:
    """Run the cells, or relax the training crystals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--text", action="append", choices=TEXTS)
    parser.add_argument("--hull", action="store_true")
    given = parser.parse_args()
    if given.hull:
        overlay = write_overlay(given, "hull", {})
        snakemake(given, [overlay], "hull/potential.parquet")
        return
    for text in given.text or TEXTS:
        for model in given.model or MODELS:
            run_cell(given, model, text)


def run_cell(given: argparse.Namespace, model: str, text: str) -> None:
    """Run one cell up to the relaxed drafts."""
    name = f"{model}-{text}"
    changes = {**TEXTS[text], "finetune_llm": MODELS[model]}
    overlay = write_overlay(given, name, changes)
    snakemake(given, [overlay], "crystals/train.parquet", "crystals/val.parquet")
    steps = given.out / f"{name}-steps.yaml"
    if not steps.exists():
        count = int(60 * given.minutes / seconds_per_step(given, overlay, model))
        values = {"max_steps": count, "eval_steps": count, "save_steps": max(1, count // 10)}
        steps.write_text(yaml.safe_dump({"finetune_llm": values}))
    drafts = [f"base/{base}/shard-00000.parquet" for base in ("free", "formula")]
    snakemake(given, [overlay, steps], *drafts, "relaxed/free/shard-00000.parquet")


def write_overlay(given: argparse.Namespace, name: str, changes: dict) -> Path:
    """Write the overlay of a run folder."""
    path = given.out / f"{name}.yaml"
    values = {"run_dir": str(given.out / name), "data": {"source": str(given.data)}, **changes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def seconds_per_step(given: argparse.Namespace, overlay: Path, model: str) -> float:
    """Return the wall time of a step, from a training of some steps with one validation crystal."""
    steps = CALIBRATION_STEPS[model]
    short = given.out / "calibration.yaml"
    few = {"max_steps": steps, "warmup_steps": 1, "validation_rows": 1, "eval_steps": steps}
    short.write_text(yaml.safe_dump({"finetune_llm": few}))
    config = load_config([*CONFIGS, overlay, short])
    out = given.out / "calibration" / overlay.stem
    crystals = Path(config.run_dir) / "crystals"
    words = ["--train", crystals / "train.parquet", "--val", crystals / "val.parquet", "--out", out]
    words += ["--settings", stage_json(config, "finetune_llm")]
    subprocess.run([sys.executable, "-m", "flowllm", "finetune_llm", *words], check=True)
    seconds: float = read_provenance(out)["counts"]["training_seconds"]
    print(json.dumps({"cell": overlay.stem, "seconds_per_step": seconds / steps}), flush=True)
    return seconds / steps


def snakemake(given: argparse.Namespace, overlays: list[Path], *targets: str) -> None:
    """Make some files of a run folder."""
    files = [str(path) for path in [*CONFIGS[1:], *overlays]]
    run_dir = load_config([*CONFIGS, *overlays]).run_dir
    command = [sys.executable, "-m", "snakemake", "--cores", str(given.cores)]
    command += ["--rerun-incomplete", "--configfile", *files, "--"]
    subprocess.run([*command, *(f"{run_dir}/{target}" for target in targets)], check=True)


if __name__ == "__main__":
    main()
