"""The benchmark of a GPU runs through all its sections, in tiny sizes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_gpu.py"


def test_every_section_measures_something(tmp_path):
    out = tmp_path / "found.json"
    subprocess.run([sys.executable, str(SCRIPT), "--smoke", "--json", str(out)], check=True)
    sections = json.loads(out.read_text())["sections"]
    assert len(sections) == 7
    for name, cases in sections.items():
        reason = cases.pop("ended", None)
        assert reason is None or reason.startswith("ModuleNotFoundError"), name
        assert cases or reason, name
        assert all(number > 0 for case in cases.values() for number in case.values()), name


def test_a_machine_without_a_gpu_is_told_of_the_smoke_run():
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--smoke" in done.stderr
