"""`flowllm status` on a real SLURM: jobs without any file yet are known by their comments.

Skipped, with the reason, where `test_slurm.py` is.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm_cluster import missing_programs, slurm_cluster
from stub_run import make_stub, stub_snakemake
from tiny_llm import write_tiny_llm
from tiny_run import SNAKEMAKE, TINY, environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {missing_programs()}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd needs root"),
]

SLEEPER = '#!/bin/sh\n[ "$3" = sample_pairs ] && exec sleep 600\nexec {stub} "$@"\n'


def status(folder: Path, env: dict[str, str]) -> str:
    command = [sys.executable, "-m", "flowllm", "status", str(folder / "run")]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def pairs_line(said: str) -> list[str]:
    """Done, running, failed and waiting jobs of sample_pairs."""
    return re.search(r"^sample_pairs +(.*)$", said, re.MULTILINE)[1].split()[:4]


def test_running_and_waiting_jobs_are_told_apart(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    write_tiny_llm(folder / "tiny-llm")
    stub = make_stub(tmp_path / "stub")
    stub_snakemake(stub, "--cores", "2", cwd=folder)
    assert pairs_line(status(folder, environment())) == ["3/3", "-", "-", "-"]
    for shard in (folder / "run" / "pairs").rglob("*.parquet"):
        shard.unlink()
    sleeper = tmp_path / "bin" / "python"
    sleeper.parent.mkdir()
    sleeper.write_text(SLEEPER.format(stub=stub / "python"))
    sleeper.chmod(0o755)
    with slurm_cluster(tmp_path / "cluster") as conf:
        env = {**environment(), "SLURM_CONF": str(conf)}
        env["PATH"] = f"{sleeper.parent}{os.pathsep}{env['PATH']}"
        # Two nodes, each with the memory of one of the three jobs.
        words = ["--executor", "slurm", "--jobs", "9", "--default-resources", "slurm_partition=cpu"]
        words += ["--set-resources", "sample_pairs:mem_mb=15000", *TINY]
        with (tmp_path / "said").open("wb") as said:
            started = subprocess.Popen(
                [*SNAKEMAKE, *words], cwd=folder, env=env, stdout=said, stderr=said
            )
        try:
            deadline = time.monotonic() + 120
            found = ""
            while time.monotonic() < deadline and pairs_line(found or status(folder, env)) != [
                *["0/3", "2", "-", "1"]
            ]:
                time.sleep(2)
                found = status(folder, env)
            assert pairs_line(found) == ["0/3", "2", "-", "1"], (tmp_path / "said").read_text()
            assert re.search(r"by SLURM's reason: 1 \w+", found)
        finally:
            started.send_signal(signal.SIGKILL)
            started.wait()
            subprocess.run(["scancel", "--me"], env=env, check=False)
            time.sleep(2)
