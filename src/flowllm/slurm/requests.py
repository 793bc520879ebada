"""What a job requests from SLURM, and the options of sbatch that Snakemake's plugin makes of it.

The plugin's own functions choose the partition and write the options, so that the preflight tests
what is submitted later.
"""

import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowllm.config.model import Config
from flowllm.config.site import Site, slurm_resources
from flowllm.errors import FlowllmError
from flowllm.slurm.attempts import memory_and_minutes
from flowllm.slurm.partitions import fitting_partitions

LOCAL_RULES = frozenset({"download", "fetch_model", "dft_hull", "report"})
"""Stages that run where snakemake runs (`localrules` of the Snakefile)."""

_QUIET = logging.Logger("quiet", level=logging.CRITICAL + 1)
"""Receives what the plugin would log for each partition."""


class _Resources(dict[str, Any]):
    """Resources by key and by attribute, as the plugin reads those of a job."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


@dataclass(frozen=True)
class Request:
    """What one attempt of a rule's jobs requests.

    The names of the attributes are those of Snakemake's jobs, which the plugin reads.

    Attributes:
        name: the rule, or the group of several jobs.
        attempt: 1 for the first.
        threads: cores.
        resources: all resources of the attempt.
    """

    name: str
    attempt: int
    threads: int
    resources: Mapping[str, Any] = field(repr=False)

    @property
    def rule(self) -> str:
        """Return the rule's name, which errors of the plugin contain."""
        return self.name


@dataclass(frozen=True)
class SubmitSettings:
    """SubmitSettings of the profile or the command line that concern every submission.

    Attributes:
        partition_file: file with the partitions; None: SLURM's default partition.
        jobs: jobs that are queued or running at once.
        status_command: sacct or squeue.
        options: options of sbatch that the plugin adds to each submission.
    """

    partition_file: Path | None
    jobs: int | None
    status_command: str | None
    options: tuple[str, ...] = ()


def requests_of_jobs(jobs: Iterable[Any]) -> list[Request]:
    """Return the requests of Snakemake's jobs: every attempt of one job per rule or group.

    Args:
        jobs: the planned jobs, without those that run locally.
    """
    first = {job.name: job for job in reversed(list(jobs))}
    found = []
    for name, job in sorted(first.items()):
        for attempt in range(1, job.restart_times + 2):
            job.attempt = attempt
            resources = {
                key: value
                for key, value in job.resources.items()
                if isinstance(value, int) or type(value) is str
            }
            found.append(Request(name, attempt, job.threads, _Resources(resources)))
        job.attempt = 1
    return found


def requests_of_config(
    config: Config, site: Site, stages: Iterable[str], retries: int
) -> Iterator[Request]:
    """Yield the requests of stages from the configuration alone."""
    for stage in stages:
        if stage in LOCAL_RULES:
            continue
        asked, nodes = config.resources[stage], getattr(config.nodes, stage, 1)
        of_site = slurm_resources(site, stage, asked, nodes)
        several = {"nodes": nodes, "tasks": nodes, "mpi": "srun"} if nodes > 1 else {}
        for attempt in range(1, retries + 2):
            memory, minutes = memory_and_minutes(site, stage, asked, attempt)
            growing = {"mem_mb": memory, "runtime": minutes}
            merged = {**of_site, **several, **growing}
            given = {key: value for key, value in merged.items() if value is not None}
            yield Request(stage, attempt, asked.cpus, _Resources(given))


def read_partitions(path: Path) -> list[Any]:
    """Read the partitions of a site's file.

    Raises:
        FlowllmError: the file is missing, or a limit in it has another name.
    """
    from snakemake_executor_plugin_slurm.partitions import WorkflowError, read_partition_file

    try:
        partitions: list[Any] = read_partition_file(path)
    except (WorkflowError, TypeError, KeyError, AttributeError) as error:
        raise FlowllmError(f"{path}: partitions: {error}") from error
    return partitions


def chosen_partition(request: Request, partitions: Sequence[Any]) -> str | None:
    """Return the partition that the plugin would submit to, None where the request fits none."""
    from snakemake_executor_plugin_slurm.partitions import get_best_partition

    given: str | None = request.resources.get("slurm_partition")
    if given or not partitions:
        return given
    best: str | None = get_best_partition(fitting_partitions(partitions, request), request, _QUIET)
    return best


def exceeded(request: Request, partition: Any) -> list[str]:
    """Return what a request has more of than a partition allows, in words."""
    asked, limits = request.resources, partition.limits
    gpus = asked.get("gpu") or _gpus_of_gres(asked.get("gres") or "")
    compared = [
        (asked.get("runtime") or 0, limits.max_runtime, "minutes"),
        (asked.get("mem_mb") or 0, limits.max_mem_mb, "MB of memory"),
        (request.threads, limits.max_threads, "cores"),
        (gpus, limits.max_gpu, "GPUs"),
        (asked.get("nodes") or 1, limits.max_nodes, "nodes"),
    ]
    return [f"{value} {unit}, limit {limit}" for value, limit, unit in compared if value > limit]


def _gpus_of_gres(gres: str) -> int:
    words = gres.split(":")
    return int(words[-1]) if len(words) > 1 and words[-1].isdigit() else 0


def sbatch_words(request: Request, partition: str | None, settings: SubmitSettings) -> list[str]:
    """Return the options of sbatch that decide whether SLURM accepts a request.

    Raises:
        FlowllmError: the plugin refuses a resource.
    """
    from snakemake_executor_plugin_slurm.submit_string import WorkflowError, get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string
    from snakemake_executor_plugin_slurm.validation import validate_slurm_extra

    account = request.resources.get("slurm_account")
    parts = {
        "run_uuid": "flowllm-preflight",
        "slurm_logfile": "/dev/null",
        "comment_str": "preflight",
        "account": f"-A {shlex.quote(str(account))}" if account else "",
        "partition": f"-p {shlex.quote(partition)}" if partition else "",
        "workdir": "",
    }
    try:
        validate_slurm_extra(request)
        call = get_submit_command(request, parts) + set_gres_string(request)
    except (WorkflowError, AssertionError) as error:
        raise FlowllmError(str(error)) from error
    return [*shlex.split(call)[1:], *settings.options]
