"""Changes of the SLURM plugin that need no cluster: states of jobs, and partitions without GPUs."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_slurm.partitions import get_best_partition

from flowllm.config.load import load_config
from flowllm.config.site import Site
from flowllm.slurm import jobs, plugin
from flowllm.slurm.attempts import memory_and_minutes
from flowllm.slurm.requests import chosen_partition, read_partitions, requests_of_config
from tiny_run import ROOT

CONFIG = load_config([ROOT / "config.yaml"])


def states(*answers: dict[str, str] | None) -> dict[str, str]:
    """What the plugin is told where SLURM gives these answers, one after another."""
    left = list(answers)

    async def query(*_words: object) -> tuple[dict[str, str] | None, float | None]:
        answered = left.pop(0)
        return answered, None if answered is None else 0.1

    changed = SimpleNamespace(query_job_status=query)
    plugin._read_states(changed)
    return asyncio.run(changed.query_job_status("sacct", logging.getLogger()))[0]


def test_a_question_without_answer_is_repeated_and_then_left_to_the_next_round(monkeypatch):
    """With None the plugin forgets its jobs and waits forever."""
    monkeypatch.setattr(plugin, "_SECONDS_BETWEEN_QUESTIONS", 0.0)
    assert states(None, None, {"8": "RUNNING"}) == {"8": "RUNNING"}
    assert states(None, None, None, {"8": "RUNNING"}) == {}


def in_plugin(monkeypatch: pytest.MonkeyPatch, *, requeue: bool) -> None:
    """Let the plugin have an executor that has submitted to another cluster."""
    workflow = SimpleNamespace(executor_settings=SimpleNamespace(requeue=requeue))
    executor = SimpleNamespace(_submitted_job_clusters={"other"}, workflow=workflow)
    monkeypatch.setattr(plugin, "_CURRENT", [executor])


def test_without_requeue_the_plugin_ends_a_job_of_a_failed_node_and_excludes_the_node(monkeypatch):
    in_plugin(monkeypatch, requeue=False)
    assert states({"7": "NODE_FAIL"}) == {"7": "NODE_FAIL"}


@pytest.mark.parametrize("state", ["PREEMPTED", "NODE_FAIL"])
@pytest.mark.parametrize(
    ("ok", "lines", "error", "has_ended"),
    [
        (True, ["7|PENDING"], "", False),  # queued again
        (True, ["7|COMPLETING"], "", False),
        (True, ["CLUSTER: other", "7|{state}"], "", True),
        (True, [], "", True),
        (False, [], "slurm_load_jobs error: Invalid job id specified", True),
        (False, [], "Unable to contact slurm controller", False),
    ],
)
def test_a_job_that_is_not_queued_again_has_ended(monkeypatch, state, ok, lines, error, has_ended):
    asked = []
    lines = [line.format(state=state) for line in lines]

    def ask(words: list[str]) -> SimpleNamespace:
        asked.append(words)
        return SimpleNamespace(ok=ok, lines=lines, error=error)

    monkeypatch.setattr(jobs, "ask", ask)
    monkeypatch.setattr(plugin, "_ENDED", {})
    in_plugin(monkeypatch, requeue=True)
    found = states({"7": state, "8": "RUNNING", "9": "CANCELLED by 1000"})
    assert found == {"7": "CANCELLED" if has_ended else state, "8": "RUNNING", "9": "CANCELLED"}
    assert ({"7": state} if has_ended else {}) == plugin._ENDED
    assert asked[0][:3] == ["squeue", "--clusters=other", "--jobs=7"]


LONG = {"max_mem_mb": 500_000, "max_threads": 128, "max_runtime": 10_080}
SHORT = {"max_mem_mb": 1_000_000, "max_threads": 128, "max_runtime": 4320, "max_gpu": 8}


@pytest.fixture
def chosen(tmp_path):
    """Function from the partitions of a site to that of each stage."""

    def choose(partitions: dict) -> dict[str, str | None]:
        site = Site(partitions=partitions)
        path = tmp_path / "site.yaml"
        path.write_text(site.model_dump_json())
        requests = requests_of_config(CONFIG, site, list(CONFIG.resources), retries=0)
        read = read_partitions(path)
        changed = SimpleNamespace(get_best_partition=get_best_partition)
        plugin._prefer_partitions_without_gpus(changed)
        found = {}
        for one in requests:
            found[one.name] = changed.get_best_partition(read, one, logging.getLogger())
            assert found[one.name] == chosen_partition(one, read)
        return found

    return choose


def test_jobs_without_gpus_go_to_nodes_without_gpus(chosen):
    """Also where the limits of the others are tighter, which the plugin prefers."""
    for stage, partition in chosen({"cpu": LONG, "gpu": SHORT}).items():
        assert partition == ("gpu" if CONFIG.resources[stage].gpus else "cpu"), stage


def test_they_go_to_nodes_with_gpus_where_they_fit_no_other(chosen):
    assert set(chosen({"cpu": LONG | {"max_runtime": 1}, "gpu": SHORT}).values()) == {"gpu"}
    assert set(chosen({"gpu": SHORT}).values()) == {"gpu"}


def test_later_attempts_grow_up_to_the_limits_of_nodes_without_gpus():
    site = Site(partitions={"cpu": {"max_runtime": 100}, "gpu": {"max_runtime": 900, "max_gpu": 1}})
    asked = CONFIG.resources["prerelax"].model_copy(update={"gpus": 0, "runtime": 60})
    assert memory_and_minutes(site, "prerelax", asked, 3)[1] == 100
