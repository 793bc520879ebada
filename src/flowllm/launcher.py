"""Processes of one job: one for each of its GPUs, or a single one on the CPU."""

import logging

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment

from flowllm.device import Precision, pick_device
from flowllm.runlog import log

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def make_fabric(precision: Precision) -> Fabric:
    """All visible GPUs of this job, or one CPU process.

    Args:
        precision: of what runs in the fabric's autocast.
    """
    device = pick_device()
    gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    # One job starts its own processes; the default would look for tasks that SLURM started.
    plugins = [LightningEnvironment()] if gpus > 1 else None
    return Fabric(
        accelerator=device.type,
        devices=gpus,
        precision=_PRECISIONS[precision],
        plugins=plugins,
    )


def launch(fabric: Fabric) -> None:
    """Start the other processes: all run the same command from its start, one tells of it."""
    fabric.launch()
    if not fabric.is_global_zero:
        log.setLevel(logging.WARNING)
