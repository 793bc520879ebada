"""A SLURM profile of Snakemake, as far as the preflight needs it without Snakemake."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from flowllm.config.model import Config
from flowllm.config.site import Site, read_site
from flowllm.errors import FlowllmError
from flowllm.slurm.preflight import Finding, needed_folders, preflight
from flowllm.slurm.requests import SubmitSettings, requests_of_config


def check_profile(name: str, config: Config, stages: Collection[str]) -> list[Finding]:
    """Make the checks of the preflight for stages of a configuration.

    Args:
        name: folder of the profile, as for snakemake's --profile.
        config: the configuration.
        stages: stages that have jobs.

    Raises:
        FlowllmError: a file of the profile cannot be read, or the SLURM plugin is not installed.
    """
    try:
        import snakemake_executor_plugin_slurm  # noqa: F401
    except ImportError as error:
        raise FlowllmError(
            "--profile needs snakemake-executor-plugin-slurm: pip install '.[workflow]'"
        ) from error
    profile = _read_profile(Path(name))
    given = profile.get("slurm-partition-config")
    path = Path(given) if given else None
    site = read_site(path) if path else Site()
    options = {"qos": profile.get("slurm-qos"), "reservation": profile.get("slurm-reservation")}
    settings = SubmitSettings(
        path,
        profile.get("jobs"),
        profile.get("slurm-status-command"),
        tuple(f"--{key}={value}" for key, value in options.items() if value),
    )
    requests = list(requests_of_config(config, site, stages, profile.get("retries", 0)))
    return list(preflight(requests, settings, needed_folders(Path(config.run_dir), Path.cwd())))


def _read_profile(folder: Path) -> Mapping[str, Any]:
    """Read the newest version of a profile's settings, as snakemake does."""
    paths = sorted(folder.glob("config.v*.yaml")) or [folder / "config.yaml"]
    try:
        loaded = yaml.safe_load(paths[-1].read_text(encoding="utf-8"))
    except OSError as error:
        raise FlowllmError(
            f"{paths[-1]}: {error.strerror}; give the folder of a profile, such as slurm, in the "
            "root of the clone"
        ) from error
    except yaml.YAMLError as error:
        raise FlowllmError(f"{paths[-1]}: not YAML: {error}") from error
    if not isinstance(loaded, Mapping):
        raise FlowllmError(f"{paths[-1]}: expected keys, as in slurm/config.yaml")
    return loaded
