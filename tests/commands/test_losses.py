"""The failure budget against simulated jobs, and against numbers computed by hand."""

import numpy as np
import pytest

from flowllm.commands.costs import read_costs
from flowllm.commands.losses import (
    PART_ITEMS,
    Rates,
    Work,
    describe_losses,
    loss_of,
    saved_work,
)
from flowllm.config.load import load_config
from flowllm.stages import fingerprints, invariance, second_energies
from tiny_run import ROOT


def simulated_loss(work: Work, per_hour: float, jobs: int) -> float:
    """Mean lost hours per job, event by event: a stop returns to the last saved state."""
    rng = np.random.default_rng(0)
    lost = 0.0
    for _ in range(jobs):
        done = 0.0
        while True:
            needed = work.start_hours + work.hours - done
            until = rng.exponential(1 / per_hour)
            if until >= needed:
                break
            worked = max(until - work.start_hours, 0.0)
            kept = worked // work.saved_hours * work.saved_hours
            lost += until - kept
            done += kept
    return lost / jobs


def test_the_expected_loss_is_that_of_simulated_jobs():
    work = Work("sample_pairs", 1, 20.0, 1000.0, start_hours=0.2, saved_hours=1.0)
    rates = Rates(node_failures=0.1, preemptions=0.38)  # 0.02 stops per hour
    loss = loss_of(work, rates)
    assert loss.hours == pytest.approx(0.4 * (0.5 + 0.2))
    assert loss.hours == pytest.approx(simulated_loss(work, 0.02, 40_000), rel=0.05)


def test_attempts_that_end_at_their_limit_lose_a_start_and_half_a_part():
    work = Work("sample_pairs", 1, 25.0, 10.0, start_hours=1.0, saved_hours=2.0)
    loss = loss_of(work, Rates(0, 0))
    assert loss.limits == 1  # 9 hours, then up to 19
    assert loss.hours == 1 + 1
    for hours, limits in ((60.0, 2), (61.0, None)):
        work = Work("sample_pairs", 1, hours, 10.0, saved_hours=2.0)
        assert loss_of(work, Rates(0, 0)).limits == limits


def test_attempts_that_save_nothing_begin_anew():
    for hours, limits in ((10.0, 0), (25.0, 2), (30.0, 2), (31.0, None)):
        loss = loss_of(Work("metrics", 1, hours, 10.0), Rates(0, 0))
        assert loss.limits == limits
    assert loss_of(Work("metrics", 1, 25.0, 10.0, start_hours=1.0), Rates(0, 0)).hours == 10 + 20


def test_the_parts_are_those_that_the_stages_save():
    assert PART_ITEMS == {
        "invariance": invariance.CRYSTALS_PER_PART,
        "second_energies": second_energies.PART_CRYSTALS,
        "fingerprints": fingerprints.ROWS_PER_PART,
    }
    config = load_config([ROOT / "config.yaml"])
    assert saved_work(config, "fingerprints", 36.0) == {"saved_hours": 5.0}


def test_a_training_that_saves_when_stopped_loses_its_start_alone():
    made = {"saved_hours": 4.0, "start_hours": 0.5, "saves_when_stopped": True}
    work = Work("train_rfm", 1, 24.0, 100.0, **made)
    assert loss_of(work, Rates(0, 2)).hours == 2 * 0.5
    assert loss_of(work, Rates(2, 0)).hours == 2 * (0.5 + 2.0)


def test_more_nodes_fail_more_often():
    loss = loss_of(Work("finetune_llm", 1, 12.0, 100.0, nodes=4), Rates(0.01, 0))
    assert loss.failures == pytest.approx(0.01 * 4 / 2)


def test_a_job_is_given_up_after_its_third_failure():
    loss = loss_of(Work("prerelax", 1, 24.0, 100.0), Rates(1.0, 0))
    assert loss.given_up == pytest.approx(1 - np.exp(-1) * (1 + 1 + 1 / 2))


def test_with_the_named_chunk_size_the_loss_is_two_percent():
    config = load_config([ROOT / "config.yaml"])
    rates = Rates(0.0065, 4.0)
    per_item = 20.0 * 3600 / 11_000

    def work(saved):
        return Work("sample_pairs", 300, 20.0, 100.0, start_hours=0.05, **saved)

    saved = saved_work(config, "sample_pairs", per_item)
    assert saved["saved_hours"] == pytest.approx(1000 * per_item / 3600)
    loss = loss_of(work(saved), rates)
    assert loss.share > 0.02
    line = list(describe_losses([loss], rates))[-1]
    most = int(line.split("at most ")[1].split()[0].replace(",", ""))
    assert "sample_pairs.chunk_size" in line
    smaller = saved | {"saved_hours": most * per_item / 3600}
    assert loss_of(work(smaller), rates).share == pytest.approx(0.02, rel=0.01)


@pytest.mark.parametrize(
    ("site", "gpus", "limit_hours", "preemptions"),
    [
        ("no preemption", 4, 24.0, 0.0),
        ("one preemption per job and day", 4, 24.0, 1.0),
        ("four per job and day", 4, 24.0, 4.0),
        ("one per day, one GPU per job (20 hours), limit of 12 hours", 1, 12.0, 1.0),
    ],
)
def test_the_page_has_the_losses_of_the_sampling_jobs(site, gpus, limit_hours, preemptions):
    cost = read_costs(ROOT / "workflow" / "costs" / "paper.yaml")["sample_pairs"]
    per_item = cost.seconds / gpus
    saved = saved_work(load_config([ROOT / "config.yaml"]), "sample_pairs", per_item)
    hours, start = 11_000 * per_item / 3600, cost.start_seconds / 3600
    work = Work("sample_pairs", 303, hours, limit_hours, start_hours=start, **saved)
    loss = loss_of(work, Rates(0.0065, preemptions))
    page = (ROOT / "docs" / "scale.md").read_text()
    [row] = [line for line in page.splitlines() if line.startswith(f"| {site} |")]
    failures, preempted, limits, lost = (cell.split()[0] for cell in row.split("|")[2:6])
    assert float(failures) == pytest.approx(303 * loss.failures, abs=0.005)
    assert int(preempted) == round(303 * loss.preemptions)
    assert int(limits) == 303 * loss.limits
    assert float(lost) == pytest.approx(100 * loss.share, rel=0.01, abs=0.005)
