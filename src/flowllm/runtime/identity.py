"""The identity of an output folder that is made again: what its content depends on, with a time.

Snakemake compares a folder by its time alone. A merged model that is made again from the same
adapter would rerun all stages that have read it. Its identity is a small file beside the folder,
which is replaced only if it changes: its time is the time of the content.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowllm.io.archive_index import output_time
from flowllm.io.files import write_text

IDENTITY_SUFFIX = ".identity.json"


def identity_path(output: Path) -> Path:
    """Return the path of an output's identity, beside the output."""
    return output.with_name(f"_{output.name}{IDENTITY_SUFFIX}")


@contextmanager
def with_identity(output: Path, facts: Mapping[str, Any]) -> Iterator[None]:
    """Write the identity of an output that is made within the block, unless it is the same.

    The block must end before the output is renamed to its place: an output never has the identity
    of its predecessor, and where the block fails, the predecessor keeps its own.

    Args:
        output: the output.
        facts: all that its content depends on, as plain values.
    """
    path, text = identity_path(output), _text(facts)
    yield
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def note_identity(output: Path, facts: Mapping[str, Any]) -> None:
    """Write the identity of an output that has none yet, with the time of the output."""
    path = identity_path(output)
    write_text(path, _text(facts))
    os.utime(path, (output_time(output), output_time(output)))


def content_time(output: Path, source: Path) -> float | None:
    """Return the time of an output's content.

    Args:
        output: a folder.
        source: the folder that it was made from.

    Returns:
        None if it has no identity, or if its source is newer: it is to be made again then.
    """
    path = identity_path(output)
    if not path.exists():
        return None
    made = path.stat().st_mtime
    return made if not source.exists() or output_time(source) <= made else None


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1, sort_keys=True) + "\n"
