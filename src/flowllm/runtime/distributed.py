"""Processes of one job: one per GPU on each of its nodes, or one per node on the CPU."""

import logging
import os
import platform
import sys
from datetime import timedelta
from itertools import takewhile
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.plugins import Precision as PrecisionPlugin
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy

from flowllm.errors import PassingError
from flowllm.runtime.device import Precision, pick_device
from flowllm.runtime.log import log
from flowllm.runtime.threads import share_threads

MAX_WAIT = timedelta(hours=6)
"""Longest wait of processes for each other. The default is half an hour, but one process prepares
the paper's 3.3 million pairs for longer while all others wait."""


class _Autocast(MixedPrecision):
    """Autocast to bfloat16 that leaves the inputs in float32.

    Lightning rounds the inputs too. A coordinate would change by up to 1/512 of the cell, which is
    a quarter of the period of sin(2 pi 128 x), and the targets would change likewise.
    """

    def convert_input(self, data: Any) -> Any:
        """Leave the inputs as they are."""
        return data


def make_fabric(precision: Precision) -> Fabric:
    """Return a fabric of all GPUs of this job, or of one CPU process per node.

    In a SLURM job of several nodes the command first starts itself again on each of them, so call
    this before any slow work.

    Args:
        precision: precision of the fabric's autocast.
    """
    num_nodes = _start_on_every_node()
    device = pick_device()
    gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    check_gpus(torch.cuda.device_count())
    share_threads(gpus)
    plugins: list[Any] = [_precision_plugin(precision, device)]
    strategy: str | DDPStrategy = "auto"
    if gpus * num_nodes > 1:
        # Lightning starts the processes of a node; its default expects tasks that SLURM started.
        plugins.append(LightningEnvironment())
        strategy = DDPStrategy(timeout=MAX_WAIT)
    return Fabric(
        accelerator=device.type,
        devices=gpus,
        num_nodes=num_nodes,
        strategy=strategy,
        plugins=plugins,
    )


def check_gpus(visible: int) -> None:
    """Refuse a SLURM job on a node where not all of its GPUs can be used.

    It would train on the CPU, or wait for processes that other nodes start for theirs. A CPU build
    of PyTorch is only warned of. GPUs that the user hides are not expected.

    Args:
        visible: number of GPUs that PyTorch sees.

    Raises:
        PassingError: PyTorch sees fewer GPUs than SLURM has given to the job on this node.
    """
    given = os.environ.get("SLURM_GPUS_ON_NODE", "")
    number = int(given) if given.isdecimal() else 0
    if visible >= _not_hidden(number):
        return
    if not torch.backends.cuda.is_built():
        log.warning("%d GPUs were requested, but PyTorch is the CPU build: on the CPU", number)
        return
    raise PassingError(
        f"node {platform.node()}: SLURM gives this job {number} GPUs, but PyTorch sees {visible}; "
        "look at nvidia-smi on that node, or exclude it (`sbatch: --exclude=NODE` in site.yaml). "
        "Where it sees none on any node, a container may lack --nv, or the driver may be older "
        "than PyTorch's CUDA"
    )


def _not_hidden(number: int) -> int:
    """Return how many of the GPUs on this node `CUDA_VISIBLE_DEVICES` shows at most."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return number
    # CUDA reads the list up to its first entry that is no device.
    shown = takewhile(lambda one: one and one != "-1", listed.split(","))
    return min(number, len(list(shown)))


def _precision_plugin(precision: Precision, device: torch.device) -> PrecisionPlugin:
    return _Autocast("bf16-mixed", device.type) if precision == "bf16" else PrecisionPlugin()


def launch(fabric: Fabric) -> None:
    """Start the other processes, which run the same command; only the first one logs."""
    fabric.launch()
    if not fabric.is_global_zero:
        log.setLevel(logging.WARNING)


def _start_on_every_node() -> int:
    """Replace this process by `srun` of its command in a job of several nodes.

    SLURM runs a job's script on the first node only. The processes connect to the address of the
    node that launches SLURM's step.

    Returns:
        The number of nodes.
    """
    if int(os.getenv("SLURM_STEP_NUM_NODES", "1")) > 1:
        os.environ.setdefault("MASTER_ADDR", os.environ["SLURM_LAUNCH_NODE_IPADDR"])
        os.environ.setdefault("MASTER_PORT", _port())
        os.environ["NODE_RANK"] = os.environ["SLURM_NODEID"]
        return int(os.environ["SLURM_STEP_NUM_NODES"])
    nodes = os.getenv("SLURM_JOB_NUM_NODES", "1")
    if int(nodes) > 1 and "SLURM_STEP_ID" not in os.environ:
        cores = os.getenv("SLURM_CPUS_PER_TASK", "1")
        # A failed process ends all others, which would wait for it.
        spread = ["--ntasks-per-node=1", f"--cpus-per-task={cores}", "--kill-on-bad-exit=1"]
        command = [sys.executable, "-m", "flowllm", *sys.argv[1:]]
        log.info("starting on %s nodes", nodes)
        os.execvp("srun", ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", *spread, *command])
    return 1


def _port() -> str:
    """Return a port by the job's number, unlikely to be that of another job on the node."""
    return str(15000 + int(os.environ["SLURM_JOB_ID"]) % 10000)
