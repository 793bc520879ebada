"""How often a step waits for a GPU, counted on the CPU by the benchmark of round trips."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_round_trips.py"


def waits(tmp_path, part: str, *sizes: int) -> list[dict[str, float]]:
    """Return the waits per step by package, for each size."""
    out = tmp_path / "found.json"
    words = ["--part", part, "--steps", "3", "--json", str(out)]
    words += [word for size in sizes for word in ("--size", str(size))]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True)
    prefix = "waits of "
    return [
        {name.removeprefix(prefix): n for name, n in one.items() if name.startswith(prefix)}
        for one in json.loads(out.read_text())
    ]


def test_the_waits_of_a_relaxations_step_do_not_depend_on_the_number_of_crystals(tmp_path):
    pytest.importorskip("chgnet")
    few, many = waits(tmp_path, "relaxation", 2, 5)
    assert few == many
    assert few["chgnet"] > 0
    assert few.get("torch_sim", 0) == 0


def test_a_step_of_fine_tuning_waits_once(tmp_path):
    """transformers waits once more per micro-batch, of which there are two."""
    pytest.importorskip("peft")
    assert waits(tmp_path, "finetune_llm", 4, 8) == [{"flowllm": 1.0, "transformers": 2.0}] * 2


def test_a_step_of_the_flows_training_waits_once(tmp_path):
    pytest.importorskip("lightning")
    assert waits(tmp_path, "train_rfm", 8) == [{"flowllm": 1.0}]
