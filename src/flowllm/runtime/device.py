"""Choice of device and precision, and copies to a device."""

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device() -> torch.device:
    """Return the first CUDA GPU that is visible to this process, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: Precision) -> torch.dtype:
    """Return the torch dtype of a precision's name in the configuration."""
    return _DTYPES[precision]


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on another device; only from pinned memory a GPU copies in the background."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
