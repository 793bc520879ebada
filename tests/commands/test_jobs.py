"""The listed jobs against those of the workflow, from a dry run with shell commands."""

import re
import shlex
from pathlib import Path

import pytest

from every_stage import every_stage
from flowllm.commands.jobs import jobs_of
from flowllm.config.load import load_config
from tiny_run import TINY, snakemake


@pytest.fixture(scope="module", params=["all", "all_dft"])
def both(request, tmp_path_factory):
    """The listed jobs, and the words of the workflow's commands."""
    folder = tmp_path_factory.mktemp("jobs")
    overlay = every_stage(folder)
    output = snakemake("-n", "-p", request.param, *TINY, str(overlay), cwd=folder)
    commands = [shlex.split(line) for line in re.findall(r"python -m flowllm (.*)", output)]
    config = load_config([*map(Path, TINY[1:]), overlay])
    return jobs_of(config, request.param), commands


def option(words, name):
    return words[words.index(name) + 1] if name in words else None


def test_stage_output_log_and_draws_are_the_workflows(both):
    jobs, commands = both
    found = [
        (
            words[0],
            option(words, "--out"),
            option(words, "--log"),
            option(words, "--first-draw"),
            option(words, "--count"),
        )
        for words in commands
    ]
    ours = [
        (
            job.stage,
            f"run/{job.output}",
            f"run/{job.log}",
            None if job.first is None else str(job.first),
            None if job.count is None else str(job.count),
        )
        for job in jobs
    ]
    assert sorted(map(str, ours)) == sorted(map(str, found))
