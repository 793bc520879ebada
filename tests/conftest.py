"""One run of the tiny configuration for all tests that need one, and how tests share workers."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tiny_run import ROOT, TINY, snakemake

NEED_FINISHED_RUN = (
    *("test_workflow.py", "test_reruns.py", "test_slurm.py"),
    *("test_generate_chain.py", "test_commands.py"),
)

# How long an example takes says little on a machine that runs other things too.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Path:
    """Working directory of one whole run of the tiny configuration; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("workflow with space")
    subprocess.run(
        [sys.executable, str(ROOT / "tests" / "helpers" / "tiny_llm.py"), "tiny-llm"],
        cwd=folder,
        check=True,
    )
    snakemake("--cores", "2", *TINY, cwd=folder)
    return folder


SLOW = set((ROOT / "tests" / "slow.txt").read_text().split())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and put the files that need the finished run first: they take longest.

    tests/helpers/slow_tests.py writes the list of the slow tests from measured durations.
    """
    for item in items:
        name = item.nodeid.partition("[")[0].removeprefix("tests/")
        if name in SLOW or "finished_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name not in NEED_FINISHED_RUN)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give whole files to the workers, in order; those with the finished run all to one worker."""
    from xdist.scheduler import LoadFileScheduling

    class OneFinishedRun(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "finished_run" if Path(file).name in NEED_FINISHED_RUN else file

    config.option.loadscopereorder = False
    return OneFinishedRun(config, log)
