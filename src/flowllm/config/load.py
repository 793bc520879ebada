"""Loading and checking of configuration files and overlays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flowllm.config.model import Config
from flowllm.config.problems import list_problems
from flowllm.config.renamed import renamed_keys
from flowllm.errors import FlowllmError
from flowllm.plain_text import redacted


def load_config(paths: Sequence[Path]) -> Config:
    """Load a configuration file and the overlays after it.

    Raises:
        FlowllmError: a file is missing or not YAML, a key is unknown or missing, or a value is
            not allowed; the message gives the key's path.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise FlowllmError(f"{path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise FlowllmError(f"{path}: not YAML: {redacted(str(error))}") from error
        if not isinstance(loaded, Mapping):
            raise FlowllmError(f"{path}: expected sections with keys, as in config.yaml")
        merged = merge(merged, loaded)
    return check_config(merged, " + ".join(str(path) for path in paths))


def check_config(values: Mapping[str, Any], where: str = "configuration") -> Config:
    """Check a merged configuration.

    Raises:
        FlowllmError: every problem on its own line, with the key's path.
    """
    if renamed := renamed_keys(values):
        raise FlowllmError("\n".join([f"{where}:", *renamed]))
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        raise FlowllmError(f"{where}:\n{list_problems(error)}") from error


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return one mapping with another over it; mappings merge, lists and values replace."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(under, value)
        else:
            merged[key] = value
    return merged
