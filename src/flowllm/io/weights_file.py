"""Safetensors files, checked before a library reads them: whole, and no pickle of that name."""

import json
from pathlib import Path
from typing import Any

from flowllm.errors import FlowllmError

_LENGTH_BYTES = 8
_MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""


def check_safetensors(path: Path, cure: str) -> None:
    """Check that a safetensors file is whole, by its header and its size; no weight is read.

    The file begins with the header's length (8 bytes, little endian) and the header (JSON: of each
    tensor the type, the shape and the place in the bytes after it), as the format's specification
    says (https://github.com/huggingface/safetensors).

    Args:
        path: the file.
        cure: what to do where it is not whole, e.g. "fetch the model again".

    Raises:
        FlowllmError: it is missing, cut off, longer than it should be, or of another format.
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


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _data_bytes(header: dict[str, Any]) -> int:
    """Return where the last tensor ends; -1 where the header tells no such place."""
    try:
        ends = [
            int(tensor["data_offsets"][1])
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
    except (TypeError, KeyError, IndexError, ValueError):
        return -1
    return max(ends, default=0)
