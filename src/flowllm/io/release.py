"""Digests of a released folder of models, and the check that its files are the released ones.

A released folder (`flowllm release`) has the layout of a run's folder, and `flowllm-release.json`
with the size and the SHA-256 of each of its files. Every file is compared with them before it is
loaded. The model card is not compared, so that its text can be corrected.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flowllm.errors import FlowllmError
from flowllm.io.file_errors import check_form, explain, read_json

RELEASE = "flowllm-release.json"
"""Name of the file with the digests, in the released folder."""

KNOWN = "crystals/known.parquet"
"""Name of the table of further known crystals (metrics.known_crystals), in the released folder."""

CARD = "README.md"
"""Name of the model card."""

FORMAT = 1
"""Raised when a key of the file with the digests changes its name or meaning."""

_DEPTH = 2
"""Folders between a released folder and the deepest folder of a model in it (rfm/FLOW)."""

_CURE = "restore the folder, e.g. `git checkout -- FOLDER` in a clone, or copy it again"


class ReleasedFile(BaseModel):
    """A file of a released folder.

    Attributes:
        bytes: its size.
        sha256: digest of its content.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    bytes: int
    sha256: str


class _Release(BaseModel):
    """The keys that are read; the others are for the reader."""

    format: int
    files: dict[str, ReleasedFile]


def write_release(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the digests of all files of a folder, with what a reader should know of them.

    Args:
        folder: the folder, which has all of its files but the card.
        facts: further content of the file.
    """
    files = {str(name): _described(folder / name).model_dump() for name in _files(folder)}
    values = {"format": FORMAT, **facts, "files": files}
    (folder / RELEASE).write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def check_release(folder: Path) -> None:
    """Check that a released folder has the released files and no others.

    Raises:
        FlowllmError: a file is missing, differs, or was added; the message names it.
    """
    _check(folder, Path())


def check_released(part: Path) -> None:
    """Check the files of a folder that is a part of a released folder; pass any other folder.

    Args:
        part: folder of a model.

    Raises:
        FlowllmError: as in `check_release`.
    """
    place = part.resolve()
    for root in (place, *place.parents[:_DEPTH]):
        if (root / RELEASE).is_file():
            _check(root, place.relative_to(root))
            return


def _check(root: Path, part: Path) -> None:
    path = root / RELEASE
    values = read_json(path, _CURE)
    check_form(values, _Release, path, _CURE)
    release = _Release.model_validate(values)
    if release.format != FORMAT:
        raise FlowllmError(
            f"{path}: format {release.format}, expected {FORMAT}: the folder was made by another "
            "version of FlowLLM; use that version, or a folder of this one"
        )
    expected = {name: one for name, one in release.files.items() if Path(name).is_relative_to(part)}
    found = {str(name) for name in _files(root) if name.is_relative_to(part)}
    if not expected:
        raise FlowllmError(f"{root / part}: {path} lists no file of this folder; {_CURE}")
    for name in sorted(expected.keys() | found):
        problem = None
        if name not in found:
            problem = "is missing"
        elif name not in expected:
            problem = f"is not listed in {path}"
        elif (is_now := _described(root / name)) != expected[name]:
            problem = (
                f"is not the released file ({is_now.bytes} bytes, SHA-256 {is_now.sha256[:12]}…; "
                f"released: {expected[name].bytes} bytes, {expected[name].sha256[:12]}…)"
            )
        if problem is not None:
            raise FlowllmError(f"{root / name}: {problem}; {_CURE}")


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files that have digests, relative to the folder; hidden ones have none."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.is_file() and not hidden and str(name) not in (RELEASE, CARD):
            yield name


def _described(path: Path) -> ReleasedFile:
    try:
        with path.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
            return ReleasedFile(bytes=handle.tell(), sha256=found)
    except OSError as error:
        raise FlowllmError(explain(error, path)) from error
