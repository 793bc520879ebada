"""The manifest of downloaded files: what lies beside it, with size and checksum.

It says nothing of when or from where the files came, so that equal data gives an equal manifest
and all that is made from it stays the same; the run's record beside it has those facts.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, ValidationError

from flowllm.config.sections.base import Name, Section
from flowllm.data.sources import Sha256, hash_file
from flowllm.errors import FlowllmError
from flowllm.io.files import write_text

Split = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")

SourceFormat = Literal["mp_20", "bundled", "csv_folder", "cif_folder"]


class ManifestFile(Section):
    """One CSV file beside the manifest; `split` is null where the source has no split."""

    name: Name
    split: Split | None
    size: NonNegativeInt
    sha256: Sha256
    rows: PositiveInt
    origin: str


class Manifest(Section):
    """What `download` has put beside its manifest."""

    kind: SourceFormat
    licence: str | None
    files: tuple[ManifestFile, ...]


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest atomically."""
    write_text(path, json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest and check the files it lists.

    File names are plain names: a manifest cannot lead to a file outside its folder.

    Raises:
        FlowllmError: the manifest is missing or malformed, or a file is missing or has another
            size or checksum.
    """
    try:
        manifest = Manifest.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise FlowllmError(f"{path}: {error.strerror}; run `flowllm download` first") from error
    except (json.JSONDecodeError, ValidationError) as error:
        raise FlowllmError(f"{path}: not a manifest of download; run it again\n{error}") from error
    _check_splits(path, manifest)
    for file in manifest.files:
        _check_file(path.with_name(file.name), file)
    return manifest


def _check_splits(path: Path, manifest: Manifest) -> None:
    splits = [file.split for file in manifest.files]
    if splits != [None] and sorted(map(str, splits)) != sorted(SPLITS):
        raise FlowllmError(
            f"{path}: files have the splits {splits}, expected one of each of {list(SPLITS)}, "
            "or one file without; run `flowllm download` again"
        )


def _check_file(path: Path, expected: ManifestFile) -> None:
    mend = f"delete {path.name} and run `flowllm download` again"
    if not path.is_file():
        raise FlowllmError(f"{path}: listed in the manifest and not there; {mend}")
    size = path.stat().st_size
    if size != expected.size:
        raise FlowllmError(f"{path}: {size} bytes, the manifest says {expected.size}; {mend}")
    sha256, _ = hash_file(path)
    if sha256 != expected.sha256:
        raise FlowllmError(f"{path}: checksum differs from the manifest's; {mend}")
