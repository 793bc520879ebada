"""Train language models for equal CPU time, sample and relax drafts: one cell per model and text.

python benchmarks/ablation_models.py --data data/mp_20_large --out runs/ablation \
    --model scratch-3m --text symmetric
python benchmarks/ablation_table.py --write docs/language_model.md

DATA has train.csv, val.csv and test.csv in MP-20's format. A cell is a run folder OUT/MODEL-TEXT.
Everything runs on one thread, and the budget is CPU time of the training process, so that other
work beside it does not change a cell; 60 CPU minutes are 30 minutes on two cores. The CPU time of a
step is measured first, so that the cosine of the learning rate ends with the budget. A finished
cell is written to RESULTS/MODEL-TEXT.json. A killed script resumes: give the same command again.
Without --model and --text all cells are made. With --hull, the table of entries of a run's
reference hull by the same potential, the energies above that hull are measured, too.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import yaml
from ablation_cell import MODELS, TEXTS, measure
from bench_training import prepared, train_for

from flowllm.config.load import load_config
from flowllm.config.stage_settings import StageSettings
from flowllm.io.files import write_text
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import read_table

CONFIGS = [
    Path("config.yaml"),
    Path("workflow/config/smollm2.yaml"),
    Path(__file__).with_suffix(".yaml"),
]

RESULTS = Path(__file__).parent / "results" / "ablation"

CALIBRATION_SECONDS = 60.0
"""Most CPU seconds for which the steps are timed; at most a tenth of the budget."""

CALIBRATION_ROWS = 512
"""Training crystals of the calibration, spread over all, since describing each takes time."""


def main() -> None:
    """Run the cells."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--cpu-minutes", type=float, default=60.0)
    parser.add_argument("--drafts", type=int, default=500, help="with, and without a formula")
    parser.add_argument("--relaxed", type=int, default=100, help="the first drafts without one")
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--text", action="append", choices=TEXTS)
    parser.add_argument("--hull", type=Path, help="hull/potential.parquet of a run")
    given = parser.parse_args()
    if given.drafts % given.relaxed:
        parser.error("--drafts must be a multiple of --relaxed")
    os.environ["OMP_NUM_THREADS"] = "1"
    for text in given.text or TEXTS:
        for model in given.model or MODELS:
            run_cell(given, model, text)


def run_cell(given: argparse.Namespace, model: str, text: str) -> None:
    """Run one cell up to the relaxed drafts, and write its result."""
    cell = f"{model}-{text}"
    overlay = write_overlay(given, model, text)
    snakemake([overlay], "crystals/train.parquet", "crystals/val.parquet", "crystals/test.parquet")
    steps = write_steps(given, cell, overlay)
    shards = [f"base/free/shard-{i:05d}.parquet" for i in range(given.drafts // given.relaxed)]
    targets = [*shards, "base/formula/shard-00000.parquet", "relaxed/free/shard-00000.parquet"]
    snakemake([overlay, steps], *targets)
    found = {"cpu_minutes": given.cpu_minutes, **measure(given.out / cell, model, text, given.hull)}
    path = given.results / f"{cell}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(found, indent=1) + "\n")
    print(f"{cell}: {path}", flush=True)


def write_overlay(given: argparse.Namespace, model: str, text: str) -> Path:
    """Write the overlay of a cell's run folder."""
    path = given.out / f"{model}-{text}.yaml"
    values = {
        "run_dir": str(given.out / f"{model}-{text}"),
        "data": {"source": str(given.data)},
        "sizes": {
            **{"num_samples": given.drafts, "samples_per_shard": given.relaxed},
            **{"num_csp_crystals": given.drafts, "csp_crystals_per_shard": given.drafts},
        },
        "finetune_llm": MODELS[model],
        **TEXTS[text],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def write_steps(given: argparse.Namespace, cell: str, overlay: Path) -> Path:
    """Write the overlay with the number of steps, which is measured once per cell."""
    timed, path = given.out / f"{cell}-step.json", given.out / f"{cell}-steps.yaml"
    if not timed.exists():
        most = min(CALIBRATION_SECONDS, 6 * given.cpu_minutes)
        # A process of its own, whose memory and CPU time are the training's alone.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            seconds = pool.submit(seconds_per_step, overlay, most).result()
        write_text(timed, json.dumps({"cpu_seconds_per_step": seconds}) + "\n")
    seconds = json.loads(timed.read_text())["cpu_seconds_per_step"]
    count = max(1, int(60 * given.cpu_minutes / seconds))
    values = {"max_steps": count, "eval_steps": count, "save_steps": max(1, count // 10)}
    path.write_text(yaml.safe_dump({"finetune_llm": values}))
    return path


def seconds_per_step(overlay: Path, most: float) -> float:
    """Return the CPU seconds of a training step on one thread.

    Args:
        overlay: overlay of the cell, whose crystals are prepared.
        most: CPU seconds after which the measurement ends.
    """
    config = load_config([*CONFIGS, overlay])
    crystals = Path(config.run_dir) / "crystals"
    paths = {name: crystals / f"{name}.parquet" for name in ("train", "val")}
    rows = {name: read_table(path, CRYSTALS).to_pylist() for name, path in paths.items()}
    rows["train"] = rows["train"][:: max(1, len(rows["train"]) // CALIBRATION_ROWS)]
    rows["val"] = rows["val"][:1]
    training = prepared(StageSettings.from_config("finetune_llm", config), rows, paths)
    train_for(training, 0.0)  # the first step allocates memory
    before = training.state.step
    return train_for(training, most) / (training.state.step - before)


def snakemake(overlays: list[Path], *targets: str) -> None:
    """Make some files of a run folder on one core."""
    files = [str(path) for path in [*CONFIGS[1:], *overlays]]
    run_dir = load_config([*CONFIGS, *overlays]).run_dir
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    command += ["--rerun-incomplete", "--configfile", *files, "--"]
    subprocess.run([*command, *(f"{run_dir}/{target}" for target in targets)], check=True)


if __name__ == "__main__":
    main()
