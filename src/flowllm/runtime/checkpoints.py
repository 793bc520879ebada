"""Reading checkpoints, which may be cut off or of another version."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from flowllm.errors import FlowllmError
from flowllm.io.file_errors import explain, is_refusal

# What the libraries raise depends on where a file ends.
_DAMAGED = (
    *(EOFError, RuntimeError, ValueError, TypeError, KeyError),
    *(pickle.UnpicklingError, SafetensorError),
)


def load_checkpoint(path: Path, device: torch.device) -> Any:
    """Load a torch checkpoint of our own as data; nothing in it is executed.

    Raises:
        FlowllmError: the file is damaged; the message says what to delete.
    """
    with naming_damage(path):
        return torch.load(path, map_location=device, weights_only=True)


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Say of what is read within the block which checkpoint is damaged, and what to delete.

    Raises:
        FlowllmError: the checkpoint is damaged, or the system does not let it be read.
    """
    try:
        yield
    except (OSError, *_DAMAGED) as error:
        if isinstance(error, OSError) and is_refusal(error):
            raise FlowllmError(explain(error, path)) from error
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlowllmError(
            f"{path}: not a whole checkpoint ({said}); delete it and run the same again, "
            "which starts this training anew"
        ) from error
