"""Reading of checkpoints, which may be truncated or of another version."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from flowllm.errors import FlowllmError
from flowllm.io.file_errors import explain, is_refusal

# The exception depends on where a truncated file ends.
_DAMAGED = (
    *(EOFError, RuntimeError, ValueError, TypeError, KeyError),
    *(pickle.UnpicklingError, SafetensorError),
)


def load_checkpoint(path: Path, device: torch.device) -> Any:
    """Load a torch checkpoint as data; no code in it is executed.

    Raises:
        FlowllmError: the file is damaged; the message says what to delete.
    """
    with naming_damaged_checkpoint(path):
        return torch.load(path, map_location=device, weights_only=True)


@contextmanager
def naming_damaged_checkpoint(path: Path) -> Iterator[None]:
    """Convert errors of reading a checkpoint within the block into a message with a cure.

    Raises:
        FlowllmError: the checkpoint is damaged, or the system refuses to read it.
    """
    try:
        yield
    except (OSError, *_DAMAGED) as error:
        if isinstance(error, OSError) and is_refusal(error):
            raise FlowllmError(explain(error, path)) from error
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FlowllmError(
            f"{path}: not a whole checkpoint ({said}); delete it and run the same command again, "
            "which starts this training again from the beginning"
        ) from error
