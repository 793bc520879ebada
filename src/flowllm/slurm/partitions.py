"""Partitions that a job is sent to, by the limits in the site's file."""

from collections.abc import Sequence
from typing import Any


def fitting_partitions(partitions: Sequence[Any], job: Any) -> list[Any]:
    """Return the partitions among which the SLURM plugin chooses that of a job.

    It prefers the partition with the tightest limits, and for a job without GPUs that can be one of
    nodes with GPUs. Such a job has those without GPUs alone, if it fits one.

    Args:
        partitions: the plugin's `Partition`s.
        job: Snakemake's job, or a `Request`.
    """
    from snakemake_executor_plugin_slurm.partitions import parse_gpu_requirements

    if parse_gpu_requirements(job)[0]:
        return list(partitions)
    without = [one for one in partitions if not one.limits.max_gpu]
    fit = [one for one in without if (one.score_job_fit(job) or 0) > 0]
    return fit or list(partitions)
