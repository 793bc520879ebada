"""The list of a run's outputs that `flowllm archive` has moved away (`archive.json`).

The workflow reads it: an output that is listed there counts as present, so that nothing is planned
because of its absence.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from flowllm.io.file_errors import check_form, read_json
from flowllm.io.files import write_text

INDEX = "archive.json"
"""Name of the list in the run's folder."""

TIMESTAMP = ".snakemake_timestamp"
"""File in which Snakemake keeps the time of a folder."""

INDEX_CURE = "bring the moved files back by hand, then delete this list"


@dataclass(frozen=True)
class Archived:
    """An output that was moved away.

    Attributes:
        place: absolute path that it was moved to.
        mtime: modification time, by which Snakemake compares it with what was made from it.
        size: bytes of its files.
    """

    place: str
    mtime: float
    size: int


def read_index(run_dir: Path) -> dict[str, Archived]:
    """Return the archived outputs by their paths within the run's folder.

    Raises:
        FlowllmError: the list cannot be read or has another form.
    """
    path = run_dir / INDEX
    if not path.exists():
        return {}
    values = read_json(path, INDEX_CURE)
    check_form(values, dict[str, Archived], path, INDEX_CURE)
    return {name: Archived(**one) for name, one in values.items()}


def write_index(run_dir: Path, archived: Mapping[str, Archived]) -> None:
    """Write the list, or remove it if nothing is archived."""
    path = run_dir / INDEX
    if archived:
        values = {name: asdict(one) for name, one in sorted(archived.items())}
        write_text(path, json.dumps(values, indent=1) + "\n")
    else:
        path.unlink(missing_ok=True)


def output_time(path: Path) -> float:
    """Return the modification time of a file or folder as Snakemake reads it."""
    stamp = path / TIMESTAMP
    return (stamp if stamp.exists() else path).stat().st_mtime
