"""The tutorial runs as it is written."""

import subprocess
import sys
from pathlib import Path

import pytest

from pages import TUTORIAL, blocks
from tiny_run import ROOT, environment


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with links to the files of the clone, so that the tutorial writes none there."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("Snakefile", "config.yaml", "workflow", "envs", "data"):
        (folder / name).symlink_to(ROOT / name)
    return folder


INTERPRETERS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


def test_every_block_of_the_tutorial_succeeds_in_its_order(clone):
    run = [block for block in blocks(TUTORIAL) if block.language in INTERPRETERS]
    assert len(run) > 8
    printed = ""
    for block in run:
        command = [*INTERPRETERS[block.language], block.text]
        done = subprocess.run(
            command,
            cwd=clone,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, f"{block.place}\n{done.stdout[-8000:]}"
        printed += done.stdout
    assert (clone / "runs" / "tutorial" / "report" / "index.html").exists()
    assert "FlowLLM-10-steps" not in {path.name for path in (clone / "runs").rglob("*")}
    assert "refine: 1 job" in printed  # of flowllm why, for the third method
    assert (clone / "tutorial_salts" / "index.html").exists()
