"""Checks of the packages that a configuration needs beside those of each stage."""

import importlib.util
from collections.abc import Collection, Iterator

from flowllm.config.model import Config
from flowllm.errors import FlowllmError

_POTENTIAL_PACKAGES = {
    "chgnet": "torch_sim",
    "chgnet-0.2.0": "torch_sim",
    "mace": "mace",
    "mattersim": "mattersim",
    "sevennet": "sevenn",
    "orb": "orb_models",
}
"""Package of each potential."""

NEEDING_PACKAGES = (
    *("finetune_llm", "merge_adapter", "sample_pairs", "sample_base", "sample_csp"),
    *("prerelax", "reference_hull", "second_energies"),
)
"""Stages whose packages depend on the configuration."""


def check_packages(config: Config, stages: Collection[str]) -> str:
    """Check that the packages of engine, quantization and potential are installed.

    Args:
        config: the configuration.
        stages: stages that are to run.

    Raises:
        FlowllmError: some are not; the message names the settings that need them.
    """
    wanted = {}
    for stage, section in sampling_stages(config):
        if stage in stages and getattr(config, section).backend == "vllm":
            wanted["vllm"] = f"{section}.backend vllm"
    quantization = config.finetune_llm.quantization
    if quantization != "none" and {"finetune_llm", "merge_adapter"} & set(stages):
        wanted["bitsandbytes"] = f"finetune_llm.quantization {quantization}"
    if (second := config.potential.check) is not None and "second_energies" in stages:
        wanted[_POTENTIAL_PACKAGES[second]] = f"potential.check {second}"
    if {"prerelax", "reference_hull"} & set(stages):
        name = config.potential.name
        wanted[_POTENTIAL_PACKAGES[name]] = f"potential.name {name}"
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        said = ", ".join(f"{name} (for {wanted[name]})" for name in missing)
        raise FlowllmError(f"not installed: {said}; see README.md and docs/energies.md")
    return ", ".join(sorted(wanted)) or "none beside those of each stage"


def sampling_stages(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the stages that sample from the model, each with the section of its engine."""
    if config.used_flows:
        yield "sample_pairs", "sample_pairs"
    if config.sampled_bases:
        yield "sample_base", "sample_base"
    if config.csp_methods:
        yield "sample_csp", "sample_base"
