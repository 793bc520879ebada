"""Settings and processes of small trainings, for the tests of the flow."""

import json
import subprocess
import sys

from flow_pairs import LLM_FLOW
from flowllm.config.load import load_config
from flowllm.config.stage_settings import StageSettings

SMALL = {
    "hidden_dim": 16,
    "num_layers": 2,
    "time_dim": 8,
    "num_frequencies": 4,
    "epochs": 1000,
    "max_steps": 12,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "val_steps": 4,
    "patience": None,
}


def small_settings(config_path, flow=LLM_FLOW, **changes) -> StageSettings:
    config = load_config([config_path])
    section = config.train_rfm.model_dump(mode="json") | SMALL | changes
    values = {"seed": 7, "version": 1, "train_rfm": section, "flow": flow}
    return StageSettings("train_rfm", values)


def start_training(settings, shards, out, env):
    words = [sys.executable, "-m", "flowllm.cli", "train_rfm", "--out", str(out)]
    for name, paths in shards.items():
        for path in paths:
            words += ["--" + name.replace("_", "-"), str(path)]
    values = {"seed": settings.seed, "version": settings.version, **settings.values}
    return subprocess.Popen([*words, "--settings", json.dumps(values)], env=env)
