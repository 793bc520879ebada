"""Notes of the outputs of jobs before their start, which show later how a job has ended."""

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowllm.errors import FlowllmError
from flowllm.io.files import write_text
from flowllm.runtime.provenance import digest_role, provenance_path

_TIMESTAMP = ".snakemake_timestamp"


@dataclass(frozen=True)
class Note:
    """What is known of a job before its start.

    Attributes:
        outputs: state of each output (`state_of`), None for an output that does not exist.
        records: state of each record that the stage may write.
        settings: the stage's settings as JSON; None if the rule has no such parameter.
        metadata: Snakemake's record of the job; None in a process that does not write it.
    """

    outputs: dict[str, str | None]
    records: dict[str, str | None]
    settings: str | None
    metadata: dict[str, Any] | None

    def is_unchanged(self, output: str) -> bool:
        """Return whether an output existed before the job and is still the same."""
        before = self.outputs[output]
        return before is not None and state_of(Path(output)) == before

    def has_same_task(self, other: "Note") -> bool:
        """Return whether both jobs have the same settings, other parameters and input paths."""
        return self._task() == other._task()

    def _task(self) -> tuple[Any, ...]:
        metadata = self.metadata or {}
        return self.settings, metadata.get("params"), metadata.get("input")

    def is_finished(self) -> bool:
        """Return whether the stage has written all outputs and its record since the job's start.

        The record must have the job's settings, and the digests of the inputs as they are now.
        """
        for output, before in self.outputs.items():
            if (now := state_of(Path(output))) is None or now == before:
                return False
        return any(map(self._is_of_this_job, self._new_records()))

    def is_made_otherwise(self) -> bool:
        """Return whether new records are there, all of them with other settings or inputs."""
        found = [self._is_of_this_job(path) for path in self._new_records()]
        return bool(found) and all(is_ours is False for is_ours in found)

    def _new_records(self) -> Iterator[Path]:
        for path, before in self.records.items():
            if state_of(Path(path)) not in (None, before):
                yield Path(path)

    def _is_of_this_job(self, path: Path) -> bool | None:
        """Return whether a record has the job's settings and inputs; None if it is unreadable."""
        if self.settings is None:
            return False
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            made_with = {"seed": record["seed"], "version": record["stage_version"]}
            if made_with | record["settings"] != json.loads(self.settings):
                return False
            paths = {role: _as_paths(given) for role, given in record["input_paths"].items()}
            digests = {role: digest_role(given) for role, given in paths.items()}
            return bool(digests == record["inputs"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, FlowllmError):
            return None


def _as_paths(given: str | list[str]) -> Path | list[Path]:
    return Path(given) if isinstance(given, str) else [Path(path) for path in given]


def state_of(path: Path) -> str | None:
    """Return a digest that changes when a file or folder is replaced; None if there is none.

    It contains sizes and times of modification. The bytes are not read, since a model has 140 GB.
    """
    try:
        number = os.open(path, os.O_RDONLY)  # opening makes NFS ask its server
    except OSError:
        return None
    try:
        found = os.fstat(number)
    finally:
        os.close(number)
    lines = [f"{found.st_mtime_ns} {found.st_size}"]
    if stat.S_ISDIR(found.st_mode):
        # The times of a folder change with Snakemake's file in it.
        lines = sorted(_members(path)) or [str(found.st_ino)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _members(folder: Path) -> Iterator[str]:
    """Yield a line per member of a folder, without Snakemake's file."""
    for path in folder.rglob("*"):
        if path.name != _TIMESTAMP:
            found = path.lstat()
            times = "" if path.is_dir() else f"{found.st_mtime_ns} {found.st_size}"
            yield f"{path.relative_to(folder)} {times}"


def records_of(outputs: Iterable[str]) -> list[Path]:
    """Return where the stage may write its record: beside an output, or beside its folder."""
    found: dict[Path, None] = {}
    for output in map(Path, outputs):
        found[provenance_path(output)] = None
        if output.parent.name:
            found[provenance_path(output.parent)] = None
    return list(found)


def note_path(folder: Path, output: str) -> Path:
    """Return where the note of an output's job is.

    Args:
        folder: Snakemake's own folder, `.snakemake`.
        output: the output, as in the rules.
    """
    name = hashlib.sha256(output.encode()).hexdigest()
    return folder / "started" / f"{name}.json"


def write_note(path: Path, note: Note) -> None:
    """Write a note.

    Raises:
        FlowllmError: the file cannot be written.
    """
    write_text(path, json.dumps(asdict(note)))


def read_note(path: Path) -> Note | None:
    """Return the note of a job whose end was not seen, or which failed; None if there is none."""
    try:
        return Note(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
