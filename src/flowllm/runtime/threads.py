"""Number of threads of a process, and how OpenMP's threads wait for each other.

The number is the smallest of Snakemake's threads (`OMP_NUM_THREADS`), the cores that the process
may run on, and the quota of its control groups. A thread too many costs more than it computes: the
other threads wait for it at the end of every parallel loop.

OpenMP and BLAS read the environment when they are loaded, so `limit_threads` is called before numpy
or torch is imported. torch's wheels for Linux contain GNU's OpenMP (libgomp). Other runtimes do not
read `GOMP_SPINCOUNT` and keep their own policy.
"""

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath

_PROCESS = Path("/proc/self")

_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Variables with a number of threads, the same that Snakemake sets for a job."""

_POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables that say how long a thread spins for the others before it sleeps."""


_SPINS = 1000
"""Rounds that a thread of libgomp spins before it sleeps, some microseconds; by default 300,000.

Beside a busy process the default makes a training many times slower, since the thread that is
waited for does not run. Sleeping at once (OMP_WAIT_POLICY=PASSIVE) costs a small network half of
its rate on a quiet machine. docs/performance.md has the measurements."""


def limit_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the number of threads and the wait policy in the environment.

    A smaller number that is set stays, and so does a wait policy.

    Args:
        environment: variables to change, by default those of this process.
    """
    asked = _number(environment.get("OMP_NUM_THREADS"))
    count = min(filter(None, (asked, usable_cores())))
    for name in _COUNTS:
        environment[name] = str(min(count, _number(environment.get(name)) or count))
    if not any(name in environment for name in _POLICIES):
        environment["GOMP_SPINCOUNT"] = str(_SPINS)


def share_threads(num_processes: int) -> None:
    """Divide the threads of torch by the processes of this job on this node."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // num_processes))


def usable_cores() -> int:
    """Return how many cores this process can use at once: its affinity and its quota allow them.

    A quota of 2.5 cores is 2: a third thread would be suspended while the others wait for it.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return max(1, int(min([cores, *quotas(_PROCESS)])))


def quotas(process: Path) -> Iterator[float]:
    """Yield the quotas in cores of a process's control groups and of all groups above them.

    joblib and loky read the quota of the topmost group only, in which the quotas of systemd's
    slices and of nested containers are missing.

    Args:
        process: folder of the process in /proc; without its files there are no quotas.
    """
    try:
        groups = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, group = line.split(":", 2)
        version = 1 if "cpu" in controllers.split(",") else 2
        if version == 2 and controllers:
            continue
        for mount in mounts:
            place = _mounted(mount, version)
            if place is not None:
                yield from _quotas_up_to(*place, PurePosixPath(group), version)


def _mounted(mount: str, version: int) -> tuple[Path, PurePosixPath] | None:
    """Return where a line of mountinfo mounts which group, None if it is not of this hierarchy."""
    first, _, last = mount.partition(" - ")
    kind, _, options = last.split(" ", 2)
    is_cpu = "cpu" in options.split(",")
    if (version == 1 and kind == "cgroup" and is_cpu) or (version == 2 and kind == "cgroup2"):
        _, _, _, root, point, *_ = first.split(" ")
        return Path(point), PurePosixPath(root)
    return None


def _quotas_up_to(
    point: Path, root: PurePosixPath, group: PurePosixPath, version: int
) -> Iterator[float]:
    """Yield the quotas of a group and of those above it, up to the mounted one.

    A container may see the name that its group has outside, where its own group is mounted.
    """
    inner = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
    for name in (inner, *inner.parents):
        quota = _quota(point / name, version)
        if quota is not None:
            yield quota


def _quota(folder: Path, version: int) -> float | None:
    """Return the quota of one group in cores, None if it has none."""
    names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    try:
        quota, period = " ".join((folder / name).read_text() for name in names).split()
    except (OSError, ValueError):
        return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)


def _number(text: str | None) -> int | None:
    """Return the number of threads that a variable gives, None if it gives none.

    OpenMP accepts a list, whose first number is that of the outermost loop.
    """
    first = (text or "").partition(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else None
