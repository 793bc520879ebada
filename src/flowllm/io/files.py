"""Files that appear whole or not at all, and the message of a full disk.

Writing goes to a temporary name in the same folder and is renamed at the end: a reader never sees
half a file.
"""

import errno
import glob
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowllm.errors import FlowllmError
from flowllm.io.file_errors import FULL, explain
from flowllm.io.processes import HOST, PLACE, is_alive

FULL_BELOW = 1 << 16
"""Bytes; torch says of a full disk only that a position is unexpected."""

ABANDONED_SECONDS = 86400.0
"""Age of a temporary file or folder by which a writer on another host has ended."""

_HERE = f"{HOST}.{PLACE}"
"""Where this process's number means it, in the names of temporary files."""

_SAYS_FULL = re.compile("no space left|disk quota exceeded", re.IGNORECASE)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` that becomes `path` when the block ends without error.

    What is written is on the disk before it gets its name. A symbolic link in the place of `path`
    is replaced by the file; what it points at stays as it is.

    Raises:
        FlowllmError: the disk is full, or the system refuses the file.
    """
    with _naming_refusal(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        with naming_full_disk(path), _naming_refusal(path, temporary):
            yield temporary
            _save_to_disk(temporary)
            temporary.replace(path)
            _save_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder that takes the place of `folder` when the block ends without error.

    What is written is on the disk before it gets its name. Where `folder` is a symbolic link, what
    it points at is written (`check_folder`).

    Raises:
        FlowllmError: the disk is full, the system refuses the folder, or it cannot be replaced.
    """
    place = check_folder(folder)
    temporary = _temporary_name(place)
    with _naming_refusal(folder, temporary):
        temporary.mkdir(parents=True)
    try:
        with naming_full_disk(place), _naming_refusal(folder, temporary):
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                _save_to_disk(path)
            _take_place(temporary, place)
            _save_to_disk(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(folder: Path) -> Path:
    """Return where an output folder is written, which is asked before long work too.

    A link to a folder that does not exist yet or is empty is followed: a place on another disk.
    What another link points at may be another run's, and is never replaced.

    Raises:
        FlowllmError: the folder cannot be replaced when the work is done.
    """
    with _naming_refusal(folder):
        place = Path(os.path.realpath(folder)) if folder.is_symlink() else folder
        is_file = place.exists() and not place.is_dir()
    if is_file:
        raise FlowllmError(f"{folder}: a file, and a folder belongs there; move it away")
    if os.path.ismount(place):
        raise FlowllmError(
            f"{folder}: a mount point, which cannot be replaced; mount its parent folder instead"
        )
    if folder.is_symlink() and place.is_dir() and any(place.iterdir()):
        raise FlowllmError(
            f"{folder}: a symbolic link to {place}, which is not empty and may be another run's; "
            "remove the link, or empty that folder. To keep models on another disk, link the "
            "folder above (Snakemake removes the link of an output)"
        )
    check_writable(place)
    return place


def check_file(path: Path) -> None:
    """Refuse an output file that could not be written, before the work for it.

    Raises:
        FlowllmError: it is a folder, or the folder that it belongs in cannot be written to.
    """
    with _naming_refusal(path):
        is_folder = path.is_dir() and not path.is_symlink()
    if is_folder:
        raise FlowllmError(f"{path}: a folder, and a file belongs there; move it away")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse an output whose folder cannot be made or written to.

    Raises:
        FlowllmError: names the folder and what is wrong.
    """
    with _naming_refusal(path):
        above = next(one for one in path.absolute().parents if one.exists())
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(above))
        effective = os.access in os.supports_effective_ids
        if not os.access(above, os.W_OK | os.X_OK, effective_ids=effective):
            read_only = os.statvfs(above).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number), str(above))


def _take_place(new: Path, folder: Path) -> None:
    """Rename a folder; an older one in its place is removed after that, so that one is whole."""
    old = folder.with_name(f".{folder.name}.old.{new.name.removeprefix('.')}")
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _save_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk: they outlive a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some network file systems know no fsync of a folder.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(number)


def _temporary_name(path: Path) -> Path:
    """Return a name beside `path` that no other process takes; remove what killed ones left."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        host, _, process = left.name[len(path.name) + 2 : -len(".tmp")].rpartition(".")
        if process.isdecimal() and _is_abandoned(left, host, int(process)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    # Host, place and process keep two writers of one file apart; the last to finish wins, whole.
    return path.with_name(f".{path.name}.{_HERE}.{os.getpid()}.tmp")


def _is_abandoned(left: Path, host: str, process: int) -> bool:
    """Whether the writer of a temporary file has ended; another place's is taken to after a day."""
    if host == _HERE:
        return not is_alive(process)
    try:
        return time.time() - left.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:  # it has its final name by now
        return False


@contextmanager
def _naming_refusal(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Say which output the system refuses, and what to do.

    Args:
        path: the output.
        temporary: where it is written; errors of files elsewhere stay what they are. Without, all
            errors are the output's.

    Raises:
        FlowllmError: the system refuses it; a full disk is `naming_full_disk`'s.
    """
    try:
        yield
    except OSError as error:
        named = os.fsdecode(error.filename or "")
        ours = temporary is None or named.startswith(str(temporary))
        if error.errno is None or error.errno in FULL or not ours:
            raise
        shown = named if temporary is None and named else path
        raise FlowllmError(explain(error, shown)) from error


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Say which file did not fit, and what to do, where writing it fills the disk.

    Raises:
        FlowllmError: the disk is full; every other error stays what it is.
    """
    try:
        yield
    except FlowllmError:
        raise
    except Exception as error:  # Arrow, torch and safetensors each have their own
        free = shutil.disk_usage(path.parent).free
        full = getattr(error, "errno", None) in FULL
        if not (full or _SAYS_FULL.search(str(error)) or free < FULL_BELOW):
            raise
        raise FlowllmError(
            f"{path}: no space left on the device ({free >> 20} MiB free); free some, or raise the "
            "quota (also of files), and run the same again: finished parts are kept"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
