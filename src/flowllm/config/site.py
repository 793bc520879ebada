"""The particulars of a SLURM site: `site.yaml` of the profile, and what they mean for each job.

No result depends on them. The SLURM plugin of Snakemake reads `partitions` of the same file.
"""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, NonNegativeInt, StringConstraints, ValidationError, model_validator

from flowllm.config.problems import list_problems
from flowllm.config.sections.base import Section
from flowllm.config.sections.cluster import Resources
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError

SLURM_RESOURCES = (
    *("gpu", "gpu_model", "gres", "tasks_per_gpu", "slurm_account", "slurm_partition"),
    *("qos", "constraint", "slurm_extra"),
)
"""Resources of Snakemake's SLURM plugin that depend on the site."""

GresName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$")]
GpuType = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+$")]
"""The letters that the SLURM plugin accepts in --gpus and --gres."""


class JobOptions(Section):
    """Options of sbatch for some jobs; null leaves what a more general entry gives."""

    account: str | None = Field(
        default=None, description="account; null: the user's default account"
    )
    partition: str | None = Field(
        default=None, description="partition; null: the one whose limits fit best"
    )
    qos: str | None = Field(
        default=None, description="quality of service; null: the account's default"
    )
    constraint: str | None = Field(default=None, description="feature that a node must have")
    exclusive: bool | None = Field(
        default=None, description="whether a job has its nodes for itself"
    )
    memory: bool | None = Field(
        default=None,
        description="whether memory is requested (--mem); null: true, where it is not given",
    )
    sbatch: str | None = Field(default=None, description="further options of sbatch, as one text")


class Site(Section):
    """The particulars of a site."""

    partitions: dict[str, dict[str, Any]] = Field(
        default={}, description="limits of each partition, for the SLURM plugin"
    )
    prologue: str = Field(
        default="", description="lines of bash that each job runs on its node before Python"
    )
    launcher: str = Field(
        default="", description="command in front of python, such as that of a container"
    )
    scratch: str | None = Field(
        default=None, description="node-local folder for temporary files; may contain variables"
    )
    gpu_gres: GresName | None = Field(
        default=None,
        description="name of the GPUs' GRES, to request them by --gres; null: by --gpus",
    )
    gpu_type: GpuType | None = Field(
        default=None, description="type of the GPUs, as sinfo -o %G shows it; null: any"
    )
    signal_seconds: NonNegativeInt = Field(
        default=120,
        description="seconds before the time limit at which SIGTERM is sent; 0: not",
    )
    all_jobs: JobOptions = Field(default=JobOptions(), description="options of all jobs")
    gpu_jobs: JobOptions = Field(default=JobOptions(), description="options of jobs with GPUs")
    rules: dict[str, JobOptions] = Field(default={}, description="options of single rules")

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if unknown := sorted(self.rules.keys() - STAGES.keys()):
            raise ValueError(f"rules: no rule {', '.join(unknown)}; there are {', '.join(STAGES)}")
        if self.gpu_gres and "gpu" not in self.gpu_gres and not self.gpu_jobs.partition:
            raise ValueError(
                f"gpu_gres is {self.gpu_gres}, which the SLURM plugin does not recognize as GPUs; "
                "name their partition in gpu_jobs.partition"
            )
        return self

    def options(self, stage: str, *, gpus: bool) -> JobOptions:
        """Return the options of a stage's jobs: of all jobs, of those with GPUs, of the rule."""
        layers = [self.all_jobs, self.gpu_jobs if gpus else JobOptions()]
        layers.append(self.rules.get(stage, JobOptions()))
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= layer.model_dump(exclude_none=True)
        return JobOptions(**merged)


def read_site(path: Path) -> Site:
    """Read the particulars of a site.

    Raises:
        FlowllmError: the file is missing or not YAML, or a key or a value is wrong.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlowllmError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise FlowllmError(f"{path}: not YAML: {error}") from error
    if not isinstance(loaded, Mapping):
        raise FlowllmError(f"{path}: expected keys such as partitions, as in slurm/site.yaml")
    try:
        return Site.model_validate(dict(loaded))
    except ValidationError as error:
        raise FlowllmError(f"{path}:\n{list_problems(error)}") from error


def slurm_resources(
    site: Site, stage: str, asked: Resources, nodes: int
) -> dict[str, int | str | None]:
    """Return the resources of Snakemake's SLURM plugin for a stage, beside memory and run time.

    Args:
        site: the site.
        stage: the stage, which is also the rule.
        asked: what the configuration requests.
        nodes: nodes per job.
    """
    options = site.options(stage, gpus=asked.gpus > 0)
    extra = [f"--signal=TERM@{site.signal_seconds}"] if site.signal_seconds else []
    extra += ["--exclusive"] if options.exclusive else []
    extra += [options.sbatch] if options.sbatch else []
    return {
        **_gpus(site, asked.gpus, nodes),
        # One task per job: the stage itself starts one process per GPU.
        "tasks_per_gpu": 0,
        "slurm_account": options.account,
        "slurm_partition": options.partition,
        "qos": options.qos,
        "constraint": options.constraint,
        "slurm_extra": " ".join(extra) or None,
    }


def _gpus(site: Site, gpus: int, nodes: int) -> dict[str, int | str | None]:
    """Return the request of GPUs: --gpus counts those of a job, --gres those of a node."""
    if not gpus:
        return {"gpu": 0}
    if nodes == 1 and site.gpu_gres is None:
        return {"gpu": gpus, "gpu_model": site.gpu_type}
    words = [site.gpu_gres or "gpu", site.gpu_type, str(gpus)]
    return {"gres": ":".join(word for word in words if word)}


def job_prefix(site: Site, source: Path) -> str:
    """Return the lines of bash before a job's command on its node, which replaces the shell.

    A failing line fails the job. Variables may be undefined, which scripts of modules often test.
    The package is put on Python's search path last: modules may set this path, and Snakemake
    removes it from jobs in an environment of conda.

    Args:
        site: the site.
        source: folder of the package.
    """
    lines = ["set -e"]
    if site.prologue.strip():
        lines.append(site.prologue.strip())
    if site.scratch:
        lines += [f'export TMPDIR="{site.scratch}"', 'mkdir -p "$TMPDIR"']
    lines.append(f'export PYTHONPATH={quote(str(source))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    start = f"exec {site.launcher.strip()} " if site.launcher.strip() else "exec "
    return "\n".join([*lines, start])
