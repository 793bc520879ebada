"""Processes of one job: one for each GPU of each of its nodes, or a single one on the CPU."""

import logging
import os
import sys
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.plugins import Precision as PrecisionPlugin
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy

from flowllm.runtime.device import Precision, pick_device
from flowllm.runtime.log import log

MAX_WAIT = timedelta(hours=6)
"""How long processes wait for one another; the default half hour is less than one core takes to
prepare the paper's 3.3 million pairs, for which all others wait."""


class _Autocast(MixedPrecision):
    """Products in bfloat16 of inputs in float32.

    Lightning rounds the inputs too: a coordinate would be off by up to 1/512 of the cell, of which
    sin(2 pi 128 x) knows nothing any more, and so would what is to be learned.
    """

    def convert_input(self, data: Any) -> Any:
        """Leave the inputs as they are."""
        return data


def make_fabric(precision: Precision) -> Fabric:
    """All GPUs of this job, or one CPU process on each of its nodes.

    In a SLURM job of several nodes the command first starts itself again on each of them, so that
    nothing slow belongs before this call.

    Args:
        precision: of what runs in the fabric's autocast.
    """
    num_nodes = _start_on_every_node()
    device = pick_device()
    gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    plugins: list[Any] = [_precision_plugin(precision, device)]
    strategy: str | DDPStrategy = "auto"
    if gpus * num_nodes > 1:
        # A node's processes are started here; the default would look for tasks that SLURM started.
        plugins.append(LightningEnvironment())
        strategy = DDPStrategy(timeout=MAX_WAIT)
    return Fabric(
        accelerator=device.type,
        devices=gpus,
        num_nodes=num_nodes,
        strategy=strategy,
        plugins=plugins,
    )


def _precision_plugin(precision: Precision, device: torch.device) -> PrecisionPlugin:
    return _Autocast("bf16-mixed", device.type) if precision == "bf16" else PrecisionPlugin()


def launch(fabric: Fabric) -> None:
    """Start the other processes: all run the same command from its start, one tells of it."""
    fabric.launch()
    if not fabric.is_global_zero:
        log.setLevel(logging.WARNING)


def _start_on_every_node() -> int:
    """Become `srun` of this command where a job has several nodes; return the number of nodes.

    SLURM runs a job's script on the first node only. The processes meet at the address of that
    node from which SLURM's own tasks are reached.
    """
    if int(os.getenv("SLURM_STEP_NUM_NODES", "1")) > 1:
        os.environ.setdefault("MASTER_ADDR", os.environ["SLURM_LAUNCH_NODE_IPADDR"])
        os.environ.setdefault("MASTER_PORT", _port())
        os.environ["NODE_RANK"] = os.environ["SLURM_NODEID"]
        return int(os.environ["SLURM_STEP_NUM_NODES"])
    nodes = os.getenv("SLURM_JOB_NUM_NODES", "1")
    if int(nodes) > 1 and "SLURM_STEP_ID" not in os.environ:
        cores = os.getenv("SLURM_CPUS_PER_TASK", "1")
        # The first process that fails ends all: the others would wait for it.
        spread = ["--ntasks-per-node=1", f"--cpus-per-task={cores}", "--kill-on-bad-exit=1"]
        command = [sys.executable, "-m", "flowllm", *sys.argv[1:]]
        log.info("starting on %s nodes", nodes)
        os.execvp("srun", ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", *spread, *command])
    return 1


def _port() -> str:
    """A port that all processes of a job know, and that other jobs on the node hardly have."""
    return str(15000 + int(os.environ["SLURM_JOB_ID"]) % 10000)
