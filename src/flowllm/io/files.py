"""Atomic writing of files and folders, and the message of a full disk.

A file is written under a temporary name in the same folder and renamed at the end, so that a reader
never sees an incomplete file.
"""

import errno
import glob
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowllm.errors import FlowllmError
from flowllm.io.file_errors import FULL, explain
from flowllm.io.processes import HOST, PLACE, is_alive

FULL_BELOW = 1 << 16
"""Free bytes below which a failed write is due to a full disk: torch reports a full disk only as an
unexpected file position."""

ABANDONED_SECONDS = 86400.0
"""Age in seconds of a temporary file or folder after which its writer on another host has ended."""

_HERE = f"{HOST}.{PLACE}"
"""Host and process namespace of this process, for the names of temporary files."""

_SAYS_FULL = re.compile("no space left|disk quota exceeded", re.IGNORECASE)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that becomes `path` when the block ends without error.

    The file is synchronized to the disk before it gets its name. If `path` is a symbolic link, the
    file replaces the link, and the link's target does not change.

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
    """Give a new folder that replaces `folder` when the block ends without error.

    The content is synchronized to the disk before the folder gets its name, and has the permissions
    that the umask leaves. For a symbolic link see `check_folder`.

    Raises:
        FlowllmError: the disk is full, the system refuses the folder, or `folder` cannot be
            replaced.
    """
    place = check_folder(folder)
    temporary = _temporary_name(place)
    with _naming_refusal(folder, temporary):
        temporary.mkdir(parents=True)
    try:
        with naming_full_disk(place), _naming_refusal(folder, temporary):
            yield temporary
            allowed = temporary.stat().st_mode
            for path in (*temporary.rglob("*"), temporary):
                _allow_readers(path, allowed)
                _save_to_disk(path)
            _take_place(temporary, place)
            _save_to_disk(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(folder: Path) -> Path:
    """Return the path that an output folder is written to; also called before long work.

    A link to a missing or empty folder (on another disk) is followed. Any other link may lead to
    the output of another run: the new folder replaces the link, and the target does not change.

    Raises:
        FlowllmError: the folder could not be replaced at the end of the work.
    """
    with _naming_refusal(folder):
        target = Path(os.path.realpath(folder))
        has_content = target.is_dir() and any(target.iterdir())
        place = target if folder.is_symlink() and not has_content else folder
        is_file = place.exists() and not place.is_dir()
    if is_file:
        raise FlowllmError(f"{folder}: a file, but a folder is expected; move it away")
    if target == Path.cwd():
        raise FlowllmError(
            f"{folder}: the working directory, which cannot be replaced; name a new folder in it"
        )
    if os.path.ismount(place):
        raise FlowllmError(
            f"{folder}: a mount point, which cannot be replaced; mount its parent folder instead"
        )
    check_writable(place)
    return place


def check_file(path: Path) -> None:
    """Refuse an output file that could not be written; called before the work for it.

    Raises:
        FlowllmError: the path is a folder, or its folder cannot be written to.
    """
    with _naming_refusal(path):
        is_folder = path.is_dir() and not path.is_symlink()
    if is_folder:
        raise FlowllmError(f"{path}: a folder, but a file is expected; move it away")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse an output whose folder cannot be made or written to.

    Raises:
        FlowllmError: the message names the folder and what is wrong.
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
    """Rename a folder, then remove the older one, so that a complete one always exists."""
    old = folder.with_name(f".{folder.name}.old.{new.name.removeprefix('.')}")
    if folder.exists():
        folder.rename(old)  # of a link this renames the link
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def _allow_readers(path: Path, allowed: int) -> None:
    """Add the permissions that a folder made under the umask has; files do not become executable.

    safetensors writes its files with mode 0600, which a group cannot read.
    """
    before = stat.S_IMODE(path.stat().st_mode)
    after = before | (allowed & (0o777 if path.is_dir() else 0o666))
    if after != before:
        path.chmod(after)


def _save_to_disk(path: Path) -> None:
    """Synchronize a file, or the names in a folder, to the disk, against a power failure."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some network file systems have no fsync for folders.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(number)


def _temporary_name(path: Path) -> Path:
    """Return a unique path beside `path`; remove the temporary files of killed processes."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        host, _, process = left.name[len(path.name) + 2 : -len(".tmp")].rpartition(".")
        if process.isdecimal() and _is_abandoned(left, host, int(process)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    # Host, place and process give each writer its own file; the last to finish replaces the others.
    return path.with_name(f".{path.name}.{_HERE}.{os.getpid()}.tmp")


def _is_abandoned(left: Path, host: str, process: int) -> bool:
    """Return whether a temporary file's writer has ended, on another host after one day."""
    if host == _HERE:
        return not is_alive(process)
    try:
        return time.time() - left.stat().st_mtime > ABANDONED_SECONDS
    except FileNotFoundError:  # it has been renamed
        return False


@contextmanager
def _naming_refusal(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Convert the system's refusal of an output into a message with the path and a cure.

    Args:
        path: the output.
        temporary: the path that is written; errors of other files are not converted. None: all
            errors are those of the output.

    Raises:
        FlowllmError: the system refuses the output; for a full disk see `naming_full_disk`.
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
    """Convert the error of a full disk into a message with the path and a cure.

    Raises:
        FlowllmError: the disk is full; no other error is converted.
    """
    try:
        yield
    except FlowllmError:
        raise
    except Exception as error:  # Arrow, torch and safetensors each have own errors
        free = shutil.disk_usage(path.parent).free
        full = getattr(error, "errno", None) in FULL
        if not (full or _SAYS_FULL.search(str(error)) or free < FULL_BELOW):
            raise
        raise FlowllmError(
            f"{path}: no space left on the device ({free >> 20} MiB free); free some, or raise the "
            "quota (also of files), and run the same command again: finished parts are kept"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
