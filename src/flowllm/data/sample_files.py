"""The files of another model's samples: which files they are, their order and their content.

The workflow lists the same files as the stage, so that a changed file is read again. The workflow's
environment has neither numpy nor pymatgen, so this module imports neither.
"""

import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from flowllm.errors import FlowllmError

CIF = (".cif",)
POSCAR = (".vasp", ".poscar")
CSV = (".csv",)
JSON = (".json",)
JSON_LINES = (".jsonl", ".ndjson")
XYZ = (".extxyz", ".xyz")
PT = (".pt",)

IN_FOLDERS = f"{', '.join((*CIF, *POSCAR))}, POSCAR, CONTCAR, each also with .gz"
"""Files of a folder that are read, for messages."""

ALONE = f"{', '.join((*CSV, *JSON, *JSON_LINES, *XYZ))} (each also with .gz) and .pt"
"""Files of many samples that are read one by one, for messages."""

MAX_BYTES = 1 << 29
"""Limit of the unpacked bytes per row of external_samples: 512 MiB, 80,000 structures as JSON."""

_POSCAR_NAME = re.compile(r"(.*[^a-z])?(poscar|contcar)([_-][^.]*|\.?[0-9]+)?", re.IGNORECASE)
"""VASP's own names, with a number or a word before or after: POSCAR, 12.POSCAR, CONTCAR_NaCl."""


def suffix_of(path: Path) -> str:
    """Return the suffix of a file's format, in lower case, without `.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def is_poscar(path: Path) -> bool:
    """Whether a file's name is that of a structure of VASP."""
    if suffix_of(path) in POSCAR:
        return True
    known = (*CIF, *CSV, *JSON, *JSON_LINES, *XYZ, *PT)
    name = re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)
    return suffix_of(path) not in known and _POSCAR_NAME.fullmatch(name) is not None


def sample_files(path: Path) -> list[Path]:
    """Return the files of one row's samples in their order: the file, or a folder's files.

    All CIF and POSCAR files of a folder and its subfolders are taken, in natural order (gen_2
    before gen_10). Hidden files are left out, since other systems write them beside the real ones.

    Raises:
        FlowllmError: the folder contains no such file, or two files of one sample.
    """
    if not path.is_dir():
        return [path]
    found = [
        Path(folder, name)
        for folder, names in _walk(path)
        for name in names
        if not name.startswith(".") and _is_sample(Path(name))
    ]
    if not found:
        raise FlowllmError(
            f"{path}: the folder and its subfolders contain no file that is read as a sample "
            f"({IN_FOLDERS}); for a file of many samples ({ALONE}), give the file itself"
        )
    found.sort(key=lambda one: natural_order(one.relative_to(path).as_posix()))
    _check_twice(path, found)
    return found


def _walk(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder and the names in it, each folder once and without hidden ones."""
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise FlowllmError(f"{error.filename}: {error.strerror}; make the folder readable")

    for folder, folders, names in os.walk(path, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)  # a link can lead to its own parent folder
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [one for one in folders if not one.startswith((".", "__MACOSX"))]
        yield folder, names


def _is_sample(path: Path) -> bool:
    return suffix_of(path) in CIF or is_poscar(path)


def _check_twice(folder: Path, found: list[Path]) -> None:
    """Refuse files whose names differ only in the format: one sample would count twice."""
    first: dict[str, Path] = {}
    for path in found:
        name = re.sub(r"\.gz$", "", path.relative_to(folder).as_posix(), flags=re.IGNORECASE)
        if suffix_of(path) in (*CIF, *POSCAR):
            name = name[: -len(suffix_of(path))]
        # POSCAR and CONTCAR are the start and the end of one relaxation.
        name = re.sub(r"poscar|contcar", "POSCAR", name, flags=re.IGNORECASE)
        other = first.setdefault(name, path)
        if other != path:
            raise FlowllmError(
                f"{path} and {other.name}: named alike, so that one sample would count twice; "
                "leave one of them in the folder"
            )


def natural_order(name: str) -> list[tuple[bool, int, str]]:
    """Return the key that sorts names with their numbers as numbers: gen_2 before gen_10."""
    parts = re.split(r"([0-9]+)", name)
    key = [(True, int(part), "") if part.isdecimal() else (False, 0, part) for part in parts]
    return [*key, (False, 0, name)]


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return a file's content, unpacked where its first bytes are those of gzip.

    Raises:
        FlowllmError: the file cannot be read, is not a regular file, is broken gzip, or has more
            bytes than the limit.
    """
    try:
        if not path.is_file():
            said = "not a regular file" if path.exists() else "no such file"
            raise FlowllmError(f"{path}: {said}")
        with path.open("rb") as handle:
            content = handle.read(limit + 1)
    except OSError as error:
        raise FlowllmError(f"{path}: {error.strerror}") from error
    if len(content) <= limit and content[:2] == b"\x1f\x8b":
        content = _unpacked(path, content, limit)
    if len(content) > limit:
        raise too_large(path, limit)
    return content


def read_text(path: Path) -> str:
    """Return a file's text, unpacked, without a byte order mark.

    Raises:
        FlowllmError: as in `read_bytes`, or the file is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlowllmError(f"{path}: not UTF-8 ({error})") from error


def _unpacked(path: Path, packed: bytes, limit: int) -> bytes:
    """Unpack gzip of one or several members, at most one byte more than the limit."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as unpacked:
            return unpacked.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise FlowllmError(f"{path}: broken gzip ({error}); copy it again") from error


def too_large(path: Path, limit: int) -> FlowllmError:
    """Return the error for a file that has, or unpacks to, more bytes than the limit."""
    return FlowllmError(
        f"{path}: more than {limit >> 20} MiB (unpacked), the limit of one row; split the samples "
        "into several files and give each its own row of external_samples"
    )
