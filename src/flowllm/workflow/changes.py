"""How functions of Snakemake are changed, and the versions for which this is known to be right."""

from collections.abc import Callable
from functools import wraps
from importlib.metadata import version
from typing import Any

from flowllm.errors import FlowllmError

SNAKEMAKE = "snakemake"
SLURM_PLUGIN = "snakemake-executor-plugin-slurm"

SERIES = {SNAKEMAKE: "9.27", SLURM_PLUGIN: "2.5"}
"""Series of versions whose functions are changed; `pyproject.toml` has the same bounds.

2.5 is the newest series of the plugin that can be used (docs/extending.md says why).
"""


def check_version(package: str) -> None:
    """Refuse another version of a changed package.

    With it, Snakemake would delete finished outputs of failed jobs, and repeat finished work.

    Raises:
        FlowllmError: another series is installed.
    """
    installed, series = version(package), SERIES[package]
    if not installed.startswith(f"{series}."):
        raise FlowllmError(
            f"{package} {installed} is installed, but FlowLLM needs {series}.x, of which it "
            f"changes functions (docs/extending.md): pip install '{package}=={series}.*'"
        )


def change_method(of: Any, name: str, changed: Callable[..., Any]) -> None:
    """Replace a method by a function that is given the original as its first argument."""
    original = getattr(of, name)

    @wraps(original)
    def method(*given: Any, **words: Any) -> Any:
        return changed(original, *given, **words)

    setattr(of, name, method)
