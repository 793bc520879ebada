"""Choice of device and precision."""

from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pick_device() -> torch.device:
    """Return the first CUDA GPU that is visible to this process, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: Precision) -> torch.dtype:
    """Return the torch dtype of a precision's name in the configuration."""
    return _DTYPES[precision]
