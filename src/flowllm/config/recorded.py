"""The configuration that a run was last started with, in the run's folder."""

from pathlib import Path

import yaml

from flowllm.config.load import load_config
from flowllm.config.model import Config
from flowllm.errors import FlowllmError

RECORDED_CONFIG = "config.yaml"
"""Name of the file in the run's folder; `--configfile` accepts it, too."""


def recorded_text(config: Config) -> str:
    """Return the whole configuration as YAML, in the order of its sections."""
    values = config.model_dump(mode="json")
    head = "# The configuration with which snakemake last started jobs of this run.\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def load_recorded(run_dir: Path) -> Config:
    """Load the configuration that a run was last started with.

    Raises:
        FlowllmError: the folder has none, or it is damaged or of another version of FlowLLM.
    """
    path = run_dir / RECORDED_CONFIG
    if not path.exists():
        raise FlowllmError(
            f"{path}: does not exist; snakemake writes it when it starts jobs. Name the folder of "
            "a run (run_dir), or give its configuration files with --config"
        )
    return load_config([path])
