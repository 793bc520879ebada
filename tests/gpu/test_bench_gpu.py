"""The benchmark of a GPU runs through all its sections, in tiny sizes; the prepared session."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPT = BENCHMARKS / "bench_gpu.py"


def test_every_section_measures_something(tmp_path):
    out = tmp_path / "found.json"
    subprocess.run([sys.executable, str(SCRIPT), "--smoke", "--json", str(out)], check=True)
    record = json.loads(out.read_text())
    sections = record["sections"]
    assert len(sections) == 7
    fastest = max(case["crystals/s"] for case in sections["flow training"].values())
    slowest = min(case["pairs/s"] for case in sections["loader"].values())
    lead = record["loader, times the fastest flow training"]
    assert lead == pytest.approx(slowest / fastest)
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


def test_the_sections_share_the_whole_time(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_gpu

    assert set(bench_gpu.SHARES) == set(bench_gpu.SECTIONS)
    assert sum(bench_gpu.SHARES.values()) == pytest.approx(1)


def test_a_section_is_ended_and_what_it_has_measured_is_kept(monkeypatch, tmp_path, capfd):
    """One second does not suffice for the section's process to start."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_gpu

    monkeypatch.setattr(bench_gpu, "GRACE", 0.0)
    assert bench_gpu.measure_in_process("loader", 0.1, True) == {"ended": "killed after 0.1 s"}

    def endless(_given):
        yield "first", {"rate": 1.0}
        while True:
            pass

    monkeypatch.setitem(bench_gpu.SECTIONS, "loader", endless)
    bench_gpu.measure("loader", None, 0.2, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == {"first": {"rate": 1.0}, "ended": "TimeoutError: over after 0.2 s"}
    assert "loader | first | 1 rate" in capfd.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="the session would run on the GPU")
def test_the_prepared_session_says_what_is_missing(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    words = ["bash", str(BENCHMARKS / "gpu_session.sh"), "run", str(tmp_path / "results")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    results = tmp_path / "results"
    machine = (results / "machine.txt").read_text()
    assert f"torch {torch.__version__}" in machine
    assert "skipped" in (results / "tests.log").read_text().splitlines()[-1]
    assert 'failures="0"' in (results / "tests.xml").read_text()
    assert "no CUDA GPU is visible" in (results / "bench.log").read_text()
    assert "finished after" in done.stdout
