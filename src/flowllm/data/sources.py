"""The catalogue of public data sets (`data/sources.yaml`) and the check of fetched files."""

import hashlib
from datetime import date
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import PositiveInt, StringConstraints

from flowllm.config.sections.base import Name, Section

CATALOGUE = Path(__file__).with_name("sources.yaml")

Sha1 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Copy(Section):
    """One accepted content of a file; a git blob id covers the size too."""

    origin: str
    size: PositiveInt | None = None
    sha256: Sha256 | None = None
    git_blob: Sha1 | None = None


class SourceFile(Section):
    """One file of a data set: its name below the URL, and its accepted contents."""

    name: Name
    rows: PositiveInt
    copies: tuple[Copy, ...]


class Source(Section):
    """One public data set, its files by split."""

    title: str
    licence: str
    date: date
    url: str
    files: dict[str, SourceFile]


def catalogue() -> dict[str, Source]:
    """Return the known data sets by name."""
    loaded = yaml.safe_load(CATALOGUE.read_text())
    return {name: Source.model_validate(values) for name, values in loaded.items()}


def match_copy(path: Path, copies: tuple[Copy, ...]) -> Copy | None:
    """Return the accepted copy with the content of a file, None where no copy has it."""
    size = path.stat().st_size
    sha256, blob = hash_file(path)
    for copy in copies:
        if copy.size not in (None, size):
            continue
        if (copy.sha256, copy.git_blob) in ((sha256, None), (None, blob), (sha256, blob)):
            return copy
    return None


def hash_file(path: Path) -> tuple[str, str]:
    """Return the SHA-256 of a file's content and its git blob id, in one reading."""
    sha256 = hashlib.sha256()
    # Git's identifier is SHA-1; SHA-256 and the pinned https address protect against forgery.
    blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            sha256.update(block)
            blob.update(block)
    return sha256.hexdigest(), blob.hexdigest()
