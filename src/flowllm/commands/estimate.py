"""Estimate jobs, files, disk and hours of a configuration, for `flowllm estimate`.

Counts follow from the configuration alone and equal the workflow's (the tests compare them with a
dry run), and so do the bytes of the models. Hours and other bytes need costs: seconds and bytes per
item of a stage (pair, sample, text or crystal), from the records of an earlier run or from a YAML
file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from cyclopts.types import NonNegativeFloat

from flowllm.commands.costs import DFT_RUNS, ItemCost, costs_of_run, read_costs
from flowllm.commands.items import Crystals, count_items, split_sizes
from flowllm.commands.jobs import Target, count_jobs
from flowllm.commands.losses import Rates, Work, describe_losses, loss_of, saved_work
from flowllm.commands.model_sizes import ModelBytes, model_bytes
from flowllm.commands.options import DEFAULT_CONFIG, ConfigFiles
from flowllm.config.load import load_config
from flowllm.config.model import Config
from flowllm.config.stages import STAGES

JOB_FILES = 3
"""Files beside the output of each job: its log, its benchmark and its record."""

OUTPUT_FILES = {
    "prepare": 4,
    "download": 4,  # the manifest and MP-20's three splits
    # With TensorBoard's events, and the mark of its time that Snakemake leaves in a folder.
    "finetune_llm": 8,
    "train_rfm": 5,
    "merge_adapter": 8,  # with its identity, and one more per 5 GB of the weights
    "import_samples": 2,
    "prerelax": 2,  # the wall times of the crystals are in their own file
    "dft_inputs": 4,
    "metrics": 2,
    "match_csp": 2,
    "report": 62,  # with its figures and tables, about
}
"""Number of files in the output of a job, where it is not one."""

DFT_FILES = 4
"""INCAR, KPOINTS, POSCAR and POTCAR or POTCAR.spec, in one folder per crystal."""

_FIXED = ("fetch_model", "finetune_llm", "merge_adapter", "train_rfm")
"""Stages whose bytes follow from the sizes of the models, however many items there are."""


_LOCAL = ("download", "fetch_model", "dft_hull", "report")
"""Stages that run where `snakemake` does, and are not in the failure budget."""

_SHORT_HOURS = 0.1
"""Jobs that are shorter are not in the failure budget."""


@dataclass(frozen=True)
class StageEstimate:
    """The estimate of one stage; None where a value is unknown.

    Attributes:
        stage: name of the stage.
        jobs: jobs of the workflow.
        items: number of items of all jobs; the cost is per item.
        files: files of all jobs.
        folders: folders of all jobs, where a stage makes many.
        bytes: of all outputs.
        gpu_hours: GPUs times hours, of all jobs.
        cpu_hours: cores times hours, of all jobs; without `gpu_hours` those of a run on CPUs.
        job_hours: wall time of one job.
        limit_hours: wall time that the configuration gives a first attempt.
        scratch: most bytes of temporary files beside the outputs, where they are large.
        source: where the hours come from.
    """

    stage: str
    jobs: int
    items: int | None
    files: int
    folders: int
    bytes: float | None = None
    gpu_hours: float | None = None
    cpu_hours: float | None = None
    job_hours: float | None = None
    limit_hours: float | None = None
    scratch: int | None = 0
    source: str = ""


def run(
    *,
    config: ConfigFiles = None,
    target: Target = "all",
    from_run: Path | None = None,
    costs: Path | None = None,
    profile: str | None = None,
    node_failures: NonNegativeFloat = 0.0065,
    preemptions: NonNegativeFloat = 1.0,
) -> None:
    """Estimate jobs, files, disk and GPU/CPU hours before a run.

    Args:
        target: Target of the workflow; `all_dft` includes the DFT energies.
        from_run: Folder of an earlier run, from whose records costs per item are taken.
        costs: YAML file with costs per item. They take precedence over those of `--from-run`.
        profile: Folder of a SLURM profile, such as `slurm`. All attempts of all jobs are compared
            with its partitions and, where there is a SLURM, with `sbatch --test-only`.
        node_failures: Failures per node and day, for the failure budget. The default is that of a
            research cluster with 16,000 A100 (Kokolis et al., arXiv 2410.21680).
        preemptions: Preemptions per job and day, likewise. The default is an assumption.
        config: See `options.ConfigFiles`.

    Raises:
        FlowllmError: the configuration, the run or the file of costs cannot be read, or a job does
            not fit the SLURM of the profile.
    """
    known: dict[str, ItemCost] = {}
    crystals: dict[str, int] = {}
    if from_run is not None:
        known, crystals = costs_of_run(from_run)
    if costs is not None:
        known |= read_costs(costs)
    loaded = load_config(config or DEFAULT_CONFIG)
    # The sizes of MP-20 are known; those of other data are in the run's records.
    crystals |= split_sizes(loaded)
    lines = estimate(loaded, known, target, crystals)
    print("\n".join(describe(lines)))
    rates = Rates(node_failures, preemptions)
    losses = [loss_of(work, rates) for work in works(loaded, lines, known)]
    if losses:
        unknown = [line.stage for line in lines if line.jobs and line.job_hours is None]
        print("\n".join(["", *describe_losses(losses, rates, unknown)]))
    if profile is not None:
        _print_preflight(profile, loaded, [line.stage for line in lines if line.jobs])


def _print_preflight(profile: str, config: Config, stages: Sequence[str]) -> None:
    """Print the checks against a SLURM; a failed one is an error."""
    from flowllm.slurm.preflight import refuse_failed
    from flowllm.slurm.profile import check_profile

    findings = check_profile(profile, config, stages)
    print("\n".join(one.line() for one in findings))
    refuse_failed(findings)


def estimate(
    config: Config,
    costs: Mapping[str, ItemCost],
    target: Target,
    crystals: Crystals,
) -> list[StageEstimate]:
    """Return the estimates of the stages that have jobs, in the order of the pipeline.

    Args:
        config: the configuration.
        costs: costs per item, by stage.
        target: all, or all_dft with the stages for DFT energies.
        crystals: crystals in each split, where known.
    """
    jobs = count_jobs(config, target)
    items = count_items(config, crystals, target)
    models = model_bytes(config)
    lines = [
        _with_models(_stage_estimate(config, costs, stage, jobs[stage], items[stage]), models)
        for stage in STAGES
        if jobs[stage]
    ]
    if target == "all_dft":
        runs = items["dft_inputs"]
        lines.append(_with_costs(StageEstimate(DFT_RUNS, 0, runs, 0, 0), costs, None))
    return lines


def works(
    config: Config, lines: Sequence[StageEstimate], costs: Mapping[str, ItemCost]
) -> Iterator[Work]:
    """Yield the cluster's jobs of the stages whose hours are known, without the short ones."""
    for line in lines:
        if line.stage in _LOCAL or not line.items or (line.job_hours or 0) < _SHORT_HOURS:
            continue
        assert line.job_hours is not None
        assert line.limit_hours is not None
        per_item = line.job_hours * line.jobs / line.items * 3600
        yield Work(
            line.stage,
            line.jobs,
            line.job_hours,
            line.limit_hours,
            nodes=getattr(config.nodes, line.stage, 1),
            start_hours=costs[line.stage].start_seconds / 3600,
            **saved_work(config, line.stage, per_item),
        )


def _with_models(line: StageEstimate, models: ModelBytes) -> StageEstimate:
    """Set the bytes of a stage whose output is a model."""
    if line.stage not in _FIXED:
        return line
    size = {
        "fetch_model": models.downloaded,
        "finetune_llm": models.adapter,
        "merge_adapter": models.merged,
        "train_rfm": line.jobs * models.flow,
    }[line.stage]
    scratch = {
        "finetune_llm": models.llm_checkpoints,
        "train_rfm": line.jobs * models.flow_scratch,
    }
    return replace(line, bytes=size, scratch=scratch.get(line.stage, 0))


def _stage_estimate(
    config: Config, costs: Mapping[str, ItemCost], stage: str, jobs: int, items: int | None
) -> StageEstimate:
    trajectories = stage == "refine" and config.refine.trajectory_every is not None
    files = jobs * (JOB_FILES + OUTPUT_FILES.get(stage, 1) + trajectories)
    folders = 0
    if stage == "dft_inputs" and items is not None:
        files += items * DFT_FILES
        folders = items + ceil(items / config.dft_inputs.folders_per_directory)
    limit = config.resources[stage].runtime / 60
    line = StageEstimate(stage, jobs, items, files, folders, limit_hours=limit)
    asked, nodes = config.resources[stage], getattr(config.nodes, stage, 1)
    line = _with_costs(line, costs, (asked.gpus * nodes, asked.cpus * nodes))
    if trajectories and line.bytes is not None and items:
        # A snapshot of a crystal takes as many bytes as the final crystal.
        line = replace(line, bytes=line.bytes * (1 + _snapshots(config) / items))
    return line


def _snapshots(config: Config) -> int:
    """Return the number of snapshots in all trajectories: the first, the regular, the last ones."""
    every = config.refine.trajectory_every
    if every is None:
        return 0
    attempts = {base.name: base.attempts for base in config.csp_bases}
    sizes = config.sizes
    rows = [(method, sizes.num_samples) for method in config.methods]
    rows += [(row, attempts[row.base] * sizes.num_csp_crystals) for row in config.csp_methods]
    return sum(
        (ceil(method.num_steps / every) + 1) * crystals
        for method, crystals in rows
        if method.flow is not None
    )


def _with_costs(
    line: StageEstimate, costs: Mapping[str, ItemCost], asked: tuple[int, int] | None
) -> StageEstimate:
    """Add bytes and hours to a line, where its cost is known.

    The work is assumed to scale with the processors of a job: twice the GPUs take half the time. Of
    a job with GPUs whose cost was measured on a CPU, only the hours on CPUs are known.
    """
    cost, items = costs.get(line.stage), line.items
    if cost is None or items is None:
        return line
    if cost.bytes is not None:
        line = replace(line, bytes=cost.bytes * items)
    gpus, cpus = asked or (0, cost.cpus)
    # Seconds on a GPU do not predict seconds on a CPU, nor the reverse.
    if cost.seconds is None or (cost.gpus and not gpus):
        return line
    hours = cost.seconds * items / 3600
    if gpus and not cost.gpus:
        return replace(line, cpu_hours=hours * cost.cpus, source=f"on CPUs; {cost.source}")
    wall = hours * cost.gpus / gpus if gpus else hours * cost.cpus / cpus
    hours_per_job = wall / line.jobs if line.jobs else None
    return replace(
        line,
        gpu_hours=wall * gpus,
        cpu_hours=wall * cpus,
        job_hours=hours_per_job,
        source=cost.source,
    )


def describe(lines: Sequence[StageEstimate]) -> Iterator[str]:
    """Yield the lines of the estimate: a table with totals, then notes."""
    yield f"{'stage':20}{'jobs':>7}{'items':>13}{'files':>10}{'folders':>10}" + (
        f"{'disk':>10}{'GPU-hours':>12}{'CPU-hours':>12}"
    )
    for line in lines:
        counts = f"{line.stage:20}{line.jobs:7,}{_shown(line.items):>13}{line.files:10,}"
        hours = f"{_hours(line.gpu_hours):>12}{_hours(line.cpu_hours):>12}"
        yield f"{counts}{line.folders:10,}{_size(line.bytes):>10}{hours}"
    jobs, files = sum(line.jobs for line in lines), sum(line.files for line in lines)
    folders = sum(line.folders for line in lines)
    disk, gpu, cpu = (_total(lines, name) for name in ("bytes", "gpu_hours", "cpu_hours"))
    hours = f"{_hours(gpu):>12}{_hours(cpu):>12}"
    total = f"{'total':20}{jobs:7,}{'':13}{files:10,}{folders:10,}{_size(disk):>10}{hours}"
    yield total + _left_out(lines)
    yield f"Files and folders (inodes): {files + folders:,}, and Snakemake's own, one per job."
    yield from _notes(lines)


def _left_out(lines: Sequence[StageEstimate]) -> str:
    """Return what the totals lack, for the line of the totals."""
    disk = [line.stage for line in lines if line.bytes is None]
    time = [line.stage for line in lines if line.cpu_hours is None]
    gpu = [line.stage for line in lines if line.gpu_hours is None and line.stage not in time]
    parts = [f"disk of {', '.join(disk)}"] if disk else []
    parts += [f"hours of {', '.join(time)}"] if time else []
    parts += [f"GPU-hours of {', '.join(gpu)} (CPU-hours: on CPUs)"] if gpu else []
    return f"  at least; unknown (?): {'; '.join(parts)}" if parts else ""


def _notes(lines: Sequence[StageEstimate]) -> Iterator[str]:
    """Yield what the table does not show: the cache, temporary files, limits, sources."""
    for line in lines:
        if line.stage == "fetch_model" and line.bytes:
            yield (
                f"fetch_model: {_size(line.bytes)} are in Hugging Face's cache (HF_HOME), outside "
                "of the run's folder"
            )
        if line.scratch is None:
            yield f"{line.stage}: ? of temporary files while it runs (checkpoints)"
        elif line.scratch:
            yield (
                f"{line.stage}: up to {_size(line.scratch)} of temporary files while it runs "
                f"({'prepared pairs, ' if line.stage == 'train_rfm' else ''}checkpoints)"
            )
        if line.job_hours and line.limit_hours and line.job_hours > line.limit_hours:
            yield (
                f"{line.stage}: about {_hours(line.job_hours)} h per job, over its limit of "
                f"{_hours(line.limit_hours)} h (resources.{line.stage}.runtime)"
            )
    scratch, kept = (_total(lines, name) or 0 for name in ("scratch", "bytes"))
    yield f"Disk with all temporary files at once: {_size(kept + scratch)}{_left_out_disk(lines)}."
    sources: dict[str, list[str]] = {}
    for line in lines:
        if line.source:
            sources.setdefault(line.source, []).append(line.stage)
    for source, stages in sources.items():
        yield f"Hours of {', '.join(stages)}: {source}."


def _left_out_disk(lines: Sequence[StageEstimate]) -> str:
    unknown = [line.stage for line in lines if line.bytes is None or line.scratch is None]
    return f", without {', '.join(unknown)}" if unknown else ""


def _total(lines: Sequence[StageEstimate], name: str) -> float | None:
    known = [value for line in lines if (value := getattr(line, name)) is not None]
    return sum(known) if known else None


def _shown(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _hours(hours: float | None) -> str:
    return "?" if hours is None else f"{hours:,.1f}" if hours < 100 else f"{hours:,.0f}"


def _size(size: float | None) -> str:
    if size is None:
        return "?"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.2f} TB"
