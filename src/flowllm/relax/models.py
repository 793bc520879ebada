"""Machine-learned potentials by name, all behind torch-sim's model interface."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch_sim.models.interface import ModelInterface

from flowllm.errors import FlowllmError


@dataclass(frozen=True)
class Fault:
    """Why a crystal has no energy.

    Attributes:
        reason: short name, the row's status.
        detail: the same in full.
    """

    reason: str
    detail: str


def _chgnet(device: torch.device) -> ModelInterface:
    from flowllm.relax.chgnet import CHGNetModel

    return CHGNetModel(device)


MODELS: dict[str, Callable[[torch.device], ModelInterface]] = {"chgnet": _chgnet}
"""How each potential is loaded; its packages are imported only then."""

LABELS = {"chgnet": "CHGNet 0.3.0"}
"""What a potential's energies are called in tables and reports."""


def load_model(name: str, device: torch.device) -> ModelInterface:
    """Load the potential of a name.

    Returns:
        A torch-sim model with an attribute `max_atomic_number`; its output may hold `faults`, a
        `Fault` by place in the batch for each crystal it cannot evaluate.

    Raises:
        FlowllmError: there is no such potential.
    """
    if name not in MODELS:
        raise FlowllmError(f"potential.name: no potential {name!r}; there are {sorted(MODELS)}")
    return MODELS[name](device)
