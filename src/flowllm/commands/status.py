"""Show what of a run is done, running, failed and waiting, for `flowllm status`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowllm.commands.job_states import Activity, JobState, find_activity, states_of
from flowllm.commands.jobs import Target, jobs_of
from flowllm.commands.options import RunConfigFiles
from flowllm.config.load import load_config
from flowllm.config.recorded import load_recorded
from flowllm.errors import FlowllmError

UNITS = {
    "finetune_llm": "steps",
    "train_rfm": "steps",
    "sample_pairs": "pairs",
}
"""Items of a stage, where they are not crystals."""


@dataclass(frozen=True)
class StageStatus:
    """The jobs of one stage.

    Attributes:
        stage: the stage's name.
        jobs: number of jobs.
        done: number of finished jobs.
        running: number of running jobs.
        failed: number of jobs whose last attempt ended without its output.
        waiting: number of all other jobs.
        rate: items per hour of the running jobs together; None without a running job, or if no job
            of the stage has counted its items yet.
        seconds_left: time until the remaining items are done at this rate, None if unknown.
    """

    stage: str
    jobs: int
    done: int
    running: int
    failed: int
    waiting: int
    rate: float | None
    seconds_left: float | None


def run(run_dir: Path, /, *, target: Target = "all", config: RunConfigFiles = None) -> None:
    """Show per stage of a run what is done, running, failed and waiting, and the time left.

    It can be called during the run, on any node that sees the run's folder.

    Args:
        run_dir: Folder of the run (`run_dir` of its configuration).
        target: Target of the workflow; `all_dft` includes the DFT energies.
        config: Configuration file of the run, by default the one that `snakemake` left in the run's
            folder. Repeat the option to overlay further files.

    Raises:
        FlowllmError: the folder does not exist, or has no configuration.
    """
    if not run_dir.is_dir():
        raise FlowllmError(f"{run_dir}: no such folder; name the folder of a run (run_dir)")
    loaded = load_config(config) if config else load_recorded(run_dir)
    activity = find_activity(run_dir, Path(loaded.run_dir))
    states = states_of(jobs_of(loaded, target), run_dir, activity, loaded)
    print("\n".join(describe(states, run_dir, activity)))


def summarize(states: Sequence[JobState]) -> list[StageStatus]:
    """Return the status of each stage, in the order of the states."""
    stages: dict[str, list[JobState]] = {}
    for state in states:
        stages.setdefault(state.job.stage, []).append(state)
    return [_summary(stage, members) for stage, members in stages.items()]


def _summary(stage: str, states: Sequence[JobState]) -> StageStatus:
    counts = Counter(state.state for state in states)
    rate = _rate(states)
    left = _items_left(states)
    seconds = left / rate if rate and left is not None else None
    return StageStatus(
        stage,
        len(states),
        counts["done"],
        counts["running"],
        counts["failed"],
        counts["waiting"],
        None if rate is None else rate * 3600,
        seconds,
    )


def _rate(states: Sequence[JobState]) -> float | None:
    """Return the items per second of the running jobs; one without a rate has the known mean."""
    running = [state.rate for state in states if state.state == "running"]
    known = [rate for rate in running if rate is not None]
    known = known or [state.rate for state in states if state.rate is not None]
    if not running or not known:
        return None
    mean = sum(known) / len(known)
    return sum(mean if rate is None else rate for rate in running)


def _items_left(states: Sequence[JobState]) -> float | None:
    """Return the items that remain; a job of unknown size has the mean of the known ones."""
    known = [state.total for state in states if state.total is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    return sum(
        (mean if state.total is None else state.total) - state.done
        for state in states
        if state.state != "done"
    )


def describe(states: Sequence[JobState], run_dir: Path, activity: Activity) -> Iterator[str]:
    """Yield the lines of the status: a table of the stages, failed jobs, SLURM's reasons."""
    yield f"{'stage':20}{'done':>8}{'running':>8}{'failed':>7}{'waiting':>8}" + (
        f"{'per hour':>16}{'left':>12}"
    )
    for line in summarize(states):
        counts = f"{_shown(line.running):>8}{_shown(line.failed):>7}{_shown(line.waiting):>8}"
        rate = "" if line.rate is None else f"{_number(line.rate)} {_unit(line.stage)}"
        left = "" if line.seconds_left is None else _duration(line.seconds_left)
        done = f"{line.done}/{line.jobs}"
        yield f"{line.stage:20}{done:>8}{counts}{rate:>16}{left:>12}".rstrip()
    for state in states:
        if state.state == "failed":
            where = f"{state.job.stage} {state.job.label}".rstrip()
            yield f"{where} failed: {state.error} ({run_dir / state.job.log})"
    comments = {state.job.comment for state in states if state.state == "waiting"}
    reasons = Counter(why for comment, why in activity.pending.items() if comment in comments)
    if reasons:
        listed = ", ".join(f"{count} {why}" for why, count in reasons.most_common())
        yield f"Jobs that wait in SLURM's queue, by SLURM's reason: {listed}"


def _unit(stage: str) -> str:
    return UNITS.get(stage, "crystals")


def _shown(count: int) -> str:
    return str(count) if count else "-"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float) -> str:
    """Return a time as minutes, hours and minutes, or days and hours."""
    minutes = round(seconds / 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    return f"{hours} h {minute:02d} min" if hours else f"{minute} min"
