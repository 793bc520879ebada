"""Reading torch checkpoints, which may be cut off or of another version."""

import pickle
from pathlib import Path
from typing import Any

import torch

from flowllm.errors import FlowllmError


def load_checkpoint(path: Path, device: torch.device) -> Any:
    """Load a checkpoint of our own as data; nothing in it is executed.

    Raises:
        FlowllmError: the file is damaged; the message says what to delete.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    # What torch raises depends on where the file ends.
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlowllmError(
            f"{path}: not a whole checkpoint ({said}); delete it and run the same again, "
            "which starts this training anew"
        ) from error
