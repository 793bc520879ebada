"""Estimate jobs, files, disk and hours of a configuration, for `flowllm estimate`.

Counts follow from the configuration alone and equal the workflow's (the tests compare them with a
dry run). Hours and bytes need costs: seconds and bytes per item of a stage (pair, sample, text or
crystal), from the records of an earlier run or from a YAML file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from flowllm.commands.costs import DFT_RUNS, ItemCost, costs_of_run, read_costs
from flowllm.commands.jobs import Target, count_jobs
from flowllm.commands.options import DEFAULT_CONFIG, ConfigFiles
from flowllm.config.load import load_config
from flowllm.config.model import Config
from flowllm.config.sections.flow import TRAIN_COMPOSITIONS
from flowllm.config.stages import STAGES
from flowllm.data.sources import catalogue

JOB_FILES = 3
"""Files beside the output of each job: its log, its benchmark and its record."""

OUTPUT_FILES = {
    "prepare": 4,
    "download": 4,  # the manifest and MP-20's three splits
    # With TensorBoard's events, and the mark of its time that Snakemake leaves in a folder.
    "finetune_llm": 8,
    "train_rfm": 5,
    "merge_adapter": 7,  # and one more per 5 GB of the weights
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

_STATES = 5
"""Values per weight in a checkpoint: it, its average, the best average, AdamW's two moments."""


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
        cpu_hours: cores times hours, of all jobs.
        job_hours: wall time of one job.
        limit_hours: wall time that the configuration gives a first attempt.
        scratch: most bytes of temporary files beside the outputs, where they are larger than the
            outputs.
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
    scratch: int = 0


def run(
    *,
    config: ConfigFiles = None,
    target: Target = "all",
    from_run: Path | None = None,
    costs: Path | None = None,
    profile: str | None = None,
) -> None:
    """Estimate jobs, files, disk and GPU/CPU hours before a run.

    Args:
        target: Target of the workflow; `all_dft` includes the DFT energies.
        from_run: Folder of an earlier run, from whose records costs per item are taken.
        costs: YAML file with costs per item. They take precedence over those of `--from-run`.
        profile: Folder of a SLURM profile, such as `slurm`. All attempts of all jobs are compared
            with its partitions and, where there is a SLURM, with `sbatch --test-only`.
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
    crystals: Mapping[str, int],
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
    lines = [_stage_estimate(config, costs, stage, jobs[stage], items[stage]) for stage in STAGES]
    lines = [line for line in lines if line.jobs]
    if target == "all_dft":
        runs = items["dft_inputs"]
        lines.append(_with_costs(StageEstimate(DFT_RUNS, 0, runs, 0, 0), costs, None))
    return lines


def count_items(
    config: Config, crystals: Mapping[str, int], target: Target
) -> dict[str, int | None]:
    """Return the number of items of every stage, None where it depends on unknown data."""
    sizes, llm, flow = config.sizes, config.finetune_llm, config.train_rfm
    train, test, every = crystals.get("train"), crystals.get("test"), crystals.get("rows")
    bases = {method.base for method in config.methods}
    flows = _flows(config)
    samples = None if config.external_samples else len(config.methods) * sizes.num_samples
    texts = llm.max_steps * llm.batch_size if llm.max_steps else _times(train, llm.epochs)
    pairs = flow.max_steps * flow.batch_size if flow.max_steps else sizes.num_pairs * flow.epochs
    selected = len(config.methods) * min(sizes.num_samples, config.dft_inputs.max_crystals)
    chosen = samples if config.dft_inputs.selection == "all" else selected
    kinds = 2 if target == "all_dft" else 1
    predictions = {base.name: base.attempts * sizes.num_csp_crystals for base in config.csp_bases}
    items = dict.fromkeys(STAGES, samples)
    return items | {
        "download": every,
        "prepare": every,
        "finetune_llm": texts,
        "fetch_model": 1,
        "merge_adapter": 1,
        "invariance": config.invariance.num_crystals if config.asks_llm else 0,
        "sample_pairs": sizes.num_pairs + sizes.num_val_pairs if flows else 0,
        "train_rfm": len(flows) * pairs,
        "sample_base": len(config.sampled_bases) * sizes.num_samples,
        "sample_compositions": len(bases & {TRAIN_COMPOSITIONS}) * sizes.num_samples,
        "sample_csp": sum(predictions[base] for base in {one.base for one in config.csp_methods}),
        "refine": None
        if config.given_bases
        else len(config.methods) * sizes.num_samples
        + sum(predictions[method.base] for method in config.csp_methods),
        "match_csp": len(config.csp_methods) * sizes.num_csp_crystals,
        "import_samples": None,
        "reference_hull": train,
        "stability": _times(samples, kinds),
        "dft_inputs": chosen,
        "dft_collect": chosen,
        "dft_hull": 1,
        "fingerprints": None if samples is None or test is None else samples + test,
        "metrics": _times(samples, kinds),
        "report": 1,
    }


def _flows(config: Config) -> set[str]:
    """Return the flows that a method uses; no other is trained."""
    rows = (*config.methods, *config.csp_methods)
    return {method.flow for method in rows if method.flow is not None}


def split_sizes(config: Config) -> dict[str, int]:
    """Return the rows per split and in total of a data set of the catalogue, {} for other data."""
    source = catalogue().get(config.data.source)
    if source is None:
        return {}
    limit = config.prepare.max_rows
    rows = {split: file.rows for split, file in source.files.items()}
    sizes = {split: min(n, limit) if limit else n for split, n in rows.items()}
    return sizes | {"rows": sum(sizes.values())}


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
    scratch = jobs * _flow_scratch(config) if stage == "train_rfm" and jobs else 0
    line = StageEstimate(stage, jobs, items, files, folders, limit_hours=limit, scratch=scratch)
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


def _flow_scratch(config: Config) -> int:
    """Return the bytes of a flow's prepared pairs and of two checkpoints, old and new."""
    import torch  # imported here, since it takes seconds

    from flowllm.rfm.network import NetworkSize, VelocityNetwork

    flow, sizes = config.train_rfm, config.sizes
    size = NetworkSize(flow.hidden_dim, flow.num_layers, flow.time_dim, flow.num_frequencies)
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in VelocityNetwork(size).parameters())
    pairs = sizes.num_pairs + sizes.num_val_pairs
    return pairs * prepared_bytes(config.prepare.max_atoms) + 2 * 4 * _STATES * weights


def prepared_bytes(num_atoms: int) -> int:
    """Return the bytes of a pair of cells with `num_atoms` atoms, as in `rfm.pairs.PREPARED`.

    Per atom: its element and two times three coordinates. Per pair: two lattices of six numbers,
    the offsets of three lists, and one validity bit per column.
    """
    return num_atoms * (1 + 2 * 3 * 4) + 2 * 6 * 4 + 3 * 4 + 1


def _with_costs(
    line: StageEstimate, costs: Mapping[str, ItemCost], asked: tuple[int, int] | None
) -> StageEstimate:
    """Add bytes and hours to a line, where its cost is known for the job's type of processor.

    The work is assumed to scale with the processors of a job: twice the GPUs take half the time.
    """
    cost, items = costs.get(line.stage), line.items
    if cost is None or items is None:
        return line
    if cost.bytes is not None:
        line = replace(line, bytes=cost.bytes * items)
    gpus, cpus = asked or (0, cost.cpus)
    # Seconds on a CPU do not predict seconds on a GPU, nor the reverse.
    if cost.seconds is None or bool(cost.gpus) != bool(gpus):
        return line
    hours = cost.seconds * items / 3600
    wall = hours * cost.gpus / gpus if gpus else hours * cost.cpus / cpus
    hours_per_job = wall / line.jobs if line.jobs else None
    return replace(line, gpu_hours=wall * gpus, cpu_hours=wall * cpus, job_hours=hours_per_job)


def _times(count: int | None, factor: int) -> int | None:
    return None if count is None else count * factor


def describe(lines: Sequence[StageEstimate]) -> Iterator[str]:
    """Yield the lines of the estimate: a table with totals, then notes."""
    yield f"{'stage':16}{'jobs':>7}{'items':>13}{'files':>10}{'folders':>10}" + (
        f"{'disk':>10}{'GPU-hours':>12}{'CPU-hours':>12}"
    )
    for line in lines:
        counts = f"{line.stage:16}{line.jobs:7,}{_shown(line.items):>13}{line.files:10,}"
        hours = f"{_hours(line.gpu_hours):>12}{_hours(line.cpu_hours):>12}"
        yield f"{counts}{line.folders:10,}{_size(line.bytes):>10}{hours}"
    jobs, files = sum(line.jobs for line in lines), sum(line.files for line in lines)
    folders = sum(line.folders for line in lines)
    disk, gpu, cpu = (_total(lines, name) for name in ("bytes", "gpu_hours", "cpu_hours"))
    hours = f"{_hours(gpu):>12}{_hours(cpu):>12}"
    yield f"{'total':16}{jobs:7,}{'':13}{files:10,}{folders:10,}{_size(disk):>10}{hours}"
    yield f"Files and folders (inodes): {files + folders:,}, and Snakemake's own, one per job."
    for line in lines:
        if line.scratch:
            yield (
                f"{line.stage}: up to {_size(line.scratch)} of temporary files while it runs "
                "(prepared pairs, checkpoints)"
            )
        if line.job_hours and line.limit_hours and line.job_hours > line.limit_hours:
            yield (
                f"{line.stage}: about {_hours(line.job_hours)} h per job, over its limit of "
                f"{_hours(line.limit_hours)} h (resources.{line.stage}.runtime)"
            )
    unknown = [line.stage for line in lines if line.cpu_hours is None]
    if unknown:
        yield f"? is unknown and not included in the totals. No hours for: {', '.join(unknown)}."


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
