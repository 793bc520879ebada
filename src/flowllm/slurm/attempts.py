"""Memory and run time of a job's attempts."""

from collections.abc import Iterator
from math import inf

from flowllm.config.sections.cluster import Resources
from flowllm.config.site import Site


def memory_and_minutes(site: Site, stage: str, asked: Resources, attempt: int) -> tuple[int, int]:
    """Return the memory in MB and the minutes of an attempt: those of the first times its number.

    They grow up to the limits of a partition that the first attempt fits, so that a later attempt
    fits, too: a training at the longest time limit of the site resumes with the same limit.
    The memory is 0 where the site requests none.
    """
    wanted = asked.mem_mb * attempt, asked.runtime * attempt
    limits = list(_limits(site, stage, asked))
    if not asked.gpus:  # as `fitting_partitions`
        limits = [one for one in limits if not one[2]] or limits
    capped = [
        (min(wanted[0], int(most)), min(wanted[1], int(longest))) for most, longest, _ in limits
    ]
    memory, minutes = max(
        capped, key=lambda one: one[0] / wanted[0] + one[1] / wanted[1], default=wanted
    )
    return (0 if requests_no_memory(site, stage, asked) else memory), minutes


def requests_no_memory(site: Site, stage: str, asked: Resources) -> bool:
    """Return whether the site's jobs of a stage request no memory."""
    return site.options(stage, gpus=asked.gpus > 0).memory is False


def _limits(site: Site, stage: str, asked: Resources) -> Iterator[tuple[float, float, int]]:
    """Yield memory, minutes and GPUs of the partitions that a stage's first attempt fits."""
    from snakemake_executor_plugin_slurm.utils import parse_time_to_minutes

    given = site.options(stage, gpus=asked.gpus > 0).partition
    memory = 0 if requests_no_memory(site, stage, asked) else asked.mem_mb
    for name, limits in site.partitions.items():
        longest = parse_time_to_minutes(limits.get("max_runtime", 10**9))
        most = limits.get("max_mem_mb", 10**12)
        fits = (
            given in (None, name)
            and asked.runtime <= longest
            and memory <= most
            and asked.cpus <= limits.get("max_threads", inf)
            and asked.gpus <= limits.get("max_gpu", inf if given else 0)
        )
        if fits:
            yield most, longest, limits.get("max_gpu", 0)
