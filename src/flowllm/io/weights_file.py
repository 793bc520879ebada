"""Checks of safetensors files before a library reads them."""

import json
import math
from pathlib import Path
from typing import Any

from flowllm.errors import FlowllmError

_LENGTH_BYTES = 8
_MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""


def check_safetensors(path: Path, cure: str) -> None:
    """Check that a safetensors file is complete, by its header and its size; read no weights.

    The file begins with the header's length (8 bytes, little endian) and the header (JSON: type,
    shape and position of each tensor in the bytes after it). Source: the format's specification,
    https://github.com/huggingface/safetensors.

    Args:
        path: the file.
        cure: what to do if the file is not complete, e.g. "fetch the model again".

    Raises:
        FlowllmError: the file is missing, truncated, too long, or of another format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(_LENGTH_BYTES), "little")
            text = handle.read(length) if length <= min(size, _MAX_HEADER) else b""
    except OSError as error:
        raise FlowllmError(f"{path}: {error.strerror}; {cure}") from error
    header = _parsed(text)
    if header is None:
        raise FlowllmError(f"{path}: not a whole safetensors file (no readable header); {cure}")
    expected = _LENGTH_BYTES + length + _data_bytes(header)
    if size != expected:
        raise FlowllmError(
            f"{path}: not a whole safetensors file ({size} bytes, its header says {expected}); "
            f"{cure}"
        )


def count_numbers(path: Path) -> int:
    """Return how many numbers the tensors of a checked safetensors file have."""
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(_LENGTH_BYTES), "little")
        header = json.loads(handle.read(length))
    return sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _data_bytes(header: dict[str, Any]) -> int:
    """Return where the last tensor ends; -1 where the header does not say it."""
    try:
        ends = [
            int(tensor["data_offsets"][1])
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
    except (TypeError, KeyError, IndexError, ValueError):
        return -1
    return max(ends, default=0)
