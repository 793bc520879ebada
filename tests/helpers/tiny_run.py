"""The tiny configuration and how tests call snakemake on it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
TINY = ["--configfile", str(ROOT / "config.yaml"), str(ROOT / "tests" / "tiny.yaml")]


def environment() -> dict[str, str]:
    """The tests' own environment, in which `python` is this one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path}


def snakemake(*arguments: str, cwd: Path = ROOT, check: bool = True, search: str = "") -> str:
    """Run snakemake and return both its streams; `search` replaces its search path."""
    done = subprocess.run(
        [*SNAKEMAKE, *arguments],
        cwd=cwd,
        env=environment() | ({"PATH": search} if search else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert not check or done.returncode == 0, done.stdout[-8000:]
    return done.stdout


def dry_runs(requests: list[tuple[str, list[str]]]) -> list[str]:
    """What dry runs print, each given by its folder and the words of its command line."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "dry_runs.py")],
        input=json.dumps(requests),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def planned(output: str) -> dict[str, int]:
    """Number of jobs a rule from a dry run's table."""
    table = re.search(r"Job stats:\n.*?\n-[- ]*\n(.*?)\ntotal", output, re.DOTALL)
    if table is None:
        assert "Nothing to be done" in output, output[-3000:]
        return {}
    return {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()}
