"""What stopped jobs cost: the failure budget of `flowllm estimate`.

A job is stopped by the failure of a node, by preemption, or at its time limit. Stops of the first
two kinds are taken to be independent of each other and equally probable at all times. A stopped
job loses its start, and the part of its work since the last saved chunk or checkpoint: on average
half of one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, exp, factorial
from typing import Any

from flowllm.config.model import Config

TARGET = 0.02
"""Share of the work that may be lost."""

RETRIES = 2
"""Repetitions of a failed job, as in the SLURM profile; SLURM requeues a preempted one."""

_FLOW_CHECKPOINT_HOURS = 300 / 3600
"""Time between two checkpoints of train_rfm (`rfm.train.CHECKPOINT_SECONDS`)."""


PART_ITEMS = {"invariance": 10, "second_energies": 200, "fingerprints": 500}
"""Items per saved part of the stages that have no key for it."""


@dataclass(frozen=True)
class Rates:
    """How often jobs are stopped.

    Attributes:
        node_failures: failures per node and day.
        preemptions: preemptions per job and day.
    """

    node_failures: float
    preemptions: float


@dataclass(frozen=True)
class Work:
    """A stage's job.

    Attributes:
        stage: its name.
        jobs: number of jobs.
        hours: wall time without stops.
        limit_hours: time limit of the first attempt; later ones have two and three times as much.
        nodes: nodes per job.
        start_hours: time from a job's start until its first item.
        saved_hours: work between two saved states; None if nothing is saved before the end.
        saved_by: key of the configuration that decides it, None if none does.
        saved_items: value of that key.
        saves_when_stopped: whether the stage saves its state at preemption and at the time limit.
    """

    stage: str
    jobs: int
    hours: float
    limit_hours: float
    nodes: int = 1
    start_hours: float = 0.0
    saved_hours: float | None = None
    saved_by: str | None = None
    saved_items: int = 0
    saves_when_stopped: bool = False


@dataclass(frozen=True)
class Loss:
    """What stops cost a stage.

    Attributes:
        work: its job.
        failures: expected node failures per job.
        preemptions: expected preemptions per job.
        limits: attempts per job that end at their time limit; None if all attempts do.
        hours: expected lost hours per job.
        most_saved_hours: work between two saved states with which the loss is `TARGET`; None if
            the starts alone exceed it.
    """

    work: Work
    failures: float
    preemptions: float
    limits: int | None
    hours: float
    most_saved_hours: float | None

    @property
    def share(self) -> float:
        """Lost share of the work."""
        return self.hours / self.work.hours

    @property
    def given_up(self) -> float:
        """Probability that a job uses up all its attempts, and needs another start."""
        if self.limits is None:
            return 1.0
        left = RETRIES - self.limits
        return 1 - sum(_poisson(count, self.failures) for count in range(left + 1))


def _poisson(count: int, mean: float) -> float:
    return exp(-mean) * mean**count / factorial(count)


def loss_of(work: Work, rates: Rates) -> Loss:
    """Return the expected loss of a stage, to first order in the number of stops."""
    failures = rates.node_failures * work.nodes * work.hours / 24
    preemptions = rates.preemptions * work.hours / 24
    limits = _limits_reached(work)
    stops = failures + preemptions + (limits or 0)
    losing = failures if work.saves_when_stopped else stops
    starts = stops * work.start_hours
    left = TARGET * work.hours - starts
    most = None if left <= 0 else 2 * left / losing if losing else work.hours
    if work.saved_hours is not None:
        lost = losing * min(work.saved_hours, work.hours) / 2
    else:
        whole = sum(_useful(work, attempt) for attempt in range(limits or 0))
        lost = (failures + preemptions) * work.hours / 2 + whole
    return Loss(work, failures, preemptions, limits, starts + lost, most)


def _useful(work: Work, attempt: int) -> float:
    """Return the hours of work in an attempt that ends at its time limit."""
    return max((attempt + 1) * work.limit_hours - work.start_hours, 0.0)


def _limits_reached(work: Work) -> int | None:
    """Return how many attempts end at their time limit before one finishes."""
    left = work.hours
    for attempt in range(RETRIES + 1):
        useful = _useful(work, attempt)
        if left <= useful:
            return attempt
        if work.saved_hours is not None:
            left -= useful
    return None


def saved_work(config: Config, stage: str, seconds_per_item: float) -> dict[str, Any]:
    """Return the fields of `Work` that say what a stage saves before its end.

    Args:
        config: the configuration.
        stage: the stage.
        seconds_per_item: wall time of one job per item.
    """
    llm = config.finetune_llm
    if stage == "train_rfm":
        return {"saved_hours": _FLOW_CHECKPOINT_HOURS, "saves_when_stopped": True}
    if stage == "finetune_llm":
        hours = llm.save_steps * llm.batch_size * seconds_per_item / 3600
        name = "finetune_llm.save_steps"
        made = {"saved_hours": hours, "saved_by": name, "saved_items": llm.save_steps}
        return made | {"saves_when_stopped": True}
    section = "sample_base" if stage == "sample_csp" else stage
    if stage in PART_ITEMS:
        return {"saved_hours": PART_ITEMS[stage] * seconds_per_item / 3600}
    chunk = getattr(getattr(config, section, None), "chunk_size", None)
    if chunk is None:
        return {}
    hours = chunk * seconds_per_item / 3600
    return {"saved_hours": hours, "saved_by": f"{section}.chunk_size", "saved_items": chunk}


def describe_losses(
    losses: Sequence[Loss], rates: Rates, unknown: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the lines of the failure budget: a table, then what to change.

    Args:
        losses: losses of the stages.
        rates: rates of the stops.
        unknown: stages whose losses are unknown, since their hours are.
    """
    yield (
        f"Failure budget of jobs of 6 minutes or more. Node failures per node and day: "
        f"{rates.node_failures:g}; preemptions per job and day: {rates.preemptions:g}; retries: "
        f"{RETRIES}"
    )
    yield (
        f"{'stage':20}{'jobs':>7}{'h per job':>11}{'h saved':>9}{'h start':>9}{'failures':>10}"
        f"{'preempted':>11}{'at limit':>10}{'lost h':>9}{'lost':>8}{'given up':>10}"
    )
    for loss in losses:
        work = loss.work
        saved = "end" if work.saved_hours is None else f"{work.saved_hours:.2f}"
        limits = "all" if loss.limits is None else f"{loss.limits * work.jobs}"
        yield (
            f"{work.stage:20}{work.jobs:7,}{work.hours:11.2f}{saved:>9}{work.start_hours:9.2f}"
            f"{loss.failures * work.jobs:10.2f}{loss.preemptions * work.jobs:11.1f}{limits:>10}"
            f"{loss.hours * work.jobs:9.1f}{loss.share:8.2%}{loss.given_up * work.jobs:10.2g}"
        )
    whole = sum(loss.work.hours * loss.work.jobs for loss in losses)
    lost = sum(loss.hours * loss.work.jobs for loss in losses)
    without = f"; unknown: {', '.join(unknown)}" if unknown else ""
    yield (
        f"All together: {lost:,.1f} of {whole:,.0f} job-hours are lost, {lost / whole:.2%}{without}"
    )
    for loss in losses:
        yield from _advice(loss)


def _advice(loss: Loss) -> Iterator[str]:
    work = loss.work
    if loss.limits is None:
        yield f"{work.stage}: no attempt is long enough; raise resources.{work.stage}.runtime"
        return
    if loss.limits:
        yield (
            f"{work.stage}: {loss.limits} of a job's attempts end at their time limit; "
            f"resources.{work.stage}.runtime of {ceil(60 * (work.hours + work.start_hours)):,} or "
            "smaller shards prevent it"
        )
    elif loss.share > TARGET:
        if loss.most_saved_hours is None:
            yield (
                f"{work.stage}: the starts of stopped jobs alone cost more than {TARGET:.0%}; "
                "request a partition without preemption, or a longer time limit"
            )
        elif work.saved_by and work.saved_hours:
            most = int(work.saved_items * loss.most_saved_hours / work.saved_hours)
            yield (
                f"{work.stage}: {work.saved_by} of at most {max(most, 1):,} keeps the loss under "
                f"{TARGET:.0%}"
            )
        else:
            yield (
                f"{work.stage}: jobs of at most {loss.most_saved_hours:.2f} h keep the loss under "
                f"{TARGET:.0%}" + ("; nothing is saved before the end" * (work.saved_hours is None))
            )
