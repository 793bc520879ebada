"""Safe reading of files that other programs wrote: without waiting, and with a limit of bytes.

The folder of a run can contain anything under the name of a result: a folder, a pipe, a broken
link, or 400 MB of zeros in a small gzip file. This module opens regular files only, limits the
number of bytes, and unpacks a file by its first bytes, whatever the suffix of its name.
"""

import bz2
import errno
import gzip
import io
import lzma
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flowllm.dft.runs import RunProblem
from flowllm.errors import FlowllmError

MAX_BYTES = 1 << 30
"""Largest unpacked file. A vasprun.xml with the bands and densities of a large cell has several
hundred MB, and pymatgen needs several times the size of a file in memory."""

MAX_RATIO = 500
"""Largest number of unpacked bytes per packed byte. A vasprun.xml of 15 MB reaches 33 with gzip, 58
with bzip2 and 81 with xz. A file of zeros reaches 1,028 with gzip, and more with the others."""

RATIO_FREE_BYTES = 1 << 26
"""Unpacked bytes that are accepted at any ratio, because short relaxations are repetitive."""

BLOCK_BYTES = 1 << 20

PACKED_SUFFIXES = ("", ".gz", ".bz2", ".xz", ".zst", ".Z", ".lz4", ".zip", ".7z")
"""Suffixes of the file names that are searched. The last five formats cannot be unpacked here and
end in an error that names the program."""

_UNPACKERS = (
    (b"\x1f\x8b", lambda packed: gzip.GzipFile(fileobj=packed)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)

_UNSUPPORTED = (
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (b"\x1f\x9d", "compress"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT)
"""Errors of a temporary file that cannot be written. Python raises ENOENT where no temporary folder
is writable."""

_OTHER_FILE_TYPES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class BoundedReader(io.BufferedIOBase):
    """A stream of bytes that raises `RunProblem` where it is longer than its limit."""

    def __init__(self, source: io.BufferedIOBase, limit: int, name: str) -> None:
        """Read at most `limit` bytes from `source`; `name` is the file name for messages."""
        self._source, self._limit, self._name = source, limit, name
        self._read_bytes = 0

    def readable(self) -> bool:
        """Return True: the stream supports reading only."""
        return True

    def read1(self, size: int = -1) -> bytes:
        """Return the next bytes, at most one block.

        Raises:
            RunProblem: more bytes than the limit were read (`unreadable`).
            EOFError: a packed file is truncated here.
        """
        block = self._source.read1(BLOCK_BYTES if size < 0 else min(size, BLOCK_BYTES))
        self._read_bytes += len(block)
        if self._read_bytes > self._limit:
            raise RunProblem(
                "unreadable",
                f"{self._name} has more than {self._limit >> 20} MiB unpacked, the limit for a "
                f"file of its size ({MAX_RATIO} times the packed size, at most "
                f"{MAX_BYTES >> 20} MiB)",
            )
        return block

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, or all; fewer where a packed file is truncated.

        Raises:
            EOFError: a packed file is truncated and has no further byte.
            RunProblem: more bytes than the limit were read (`unreadable`).
        """
        wanted = -1 if size is None else size
        blocks: list[bytes] = []
        while wanted:
            try:
                block = self.read1(wanted)
            except EOFError:
                if not blocks:
                    raise
                break
            if not block:
                break
            blocks.append(block)
            wanted = wanted - len(block) if wanted > 0 else -1
        return b"".join(blocks)

    def blocks(self) -> Iterator[bytes]:
        """Yield all bytes in blocks; a truncated packed file ends where it is truncated."""
        try:
            while block := self.read1():
                yield block
        except EOFError:
            return


@contextmanager
def opened(path: Path) -> Iterator[BoundedReader]:
    """Open the unpacked bytes of a file. Links are followed, also to other folders.

    Raises:
        RunProblem: the path is not a regular file, or the file cannot be opened, is too large, or
            is packed in an unsupported format (`unreadable`).
    """
    with _open_regular(path) as packed:
        yield unpacked(packed, os.fstat(packed.fileno()).st_size, path.name)


def unpacked(packed: io.BufferedReader, size: int, name: str) -> BoundedReader:
    """Unpack a stream by its first bytes.

    Args:
        packed: stream of the file as it is on disk.
        size: size of the packed file in bytes.
        name: file name for messages.

    Raises:
        RunProblem: the stream is packed in an unsupported format (`unreadable`).
    """
    start = packed.peek(8)[:8]
    for magic, unpacker in _UNPACKERS:
        if start.startswith(magic):
            limit = min(MAX_BYTES, max(RATIO_FREE_BYTES, MAX_RATIO * size))
            return BoundedReader(unpacker(packed), limit, name)
    for magic, program in _UNSUPPORTED:
        if start.startswith(magic):
            raise RunProblem(
                "unreadable",
                f"{name} is packed by {program}, which is not supported. Unpack it, or pack it "
                "with gzip, bzip2 or xz",
            )
    return BoundedReader(packed, MAX_BYTES, name)


@contextmanager
def temporary_file(suffix: str) -> Iterator[IO[bytes]]:
    """Open a temporary file that has a name.

    Raises:
        FlowllmError: the temporary folder is full or cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(suffix=suffix) as handle:
            yield handle
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise FlowllmError(
            f"{tempfile.gettempdir()}: {error.strerror}. DFT results are unpacked there, up to "
            f"{MAX_BYTES >> 20} MiB per file. Free space there or set TMPDIR, then run dft_collect "
            "again"
        ) from error


def _open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file without waiting for a writer or a device.

    Raises:
        RunProblem: the path is not a regular file, or cannot be opened (`unreadable`).
    """
    try:
        _check_is_regular(path, path.stat().st_mode)
        # The path can become a pipe between the two calls. O_NONBLOCK returns at once then.
        handle = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb")
    except FileNotFoundError as error:
        why = (
            f"is a link to {path.readlink()}, which does not exist"
            if path.is_symlink()
            else "was removed while it was read"
        )
        raise RunProblem("unreadable", f"{path.name} {why}") from error
    except OSError as error:
        raise RunProblem("unreadable", f"{path.name}: {error.strerror}") from error
    try:
        _check_is_regular(path, os.fstat(handle.fileno()).st_mode)
    except RunProblem:
        handle.close()
        raise
    return handle


def _check_is_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    names = (name for is_type, name in _OTHER_FILE_TYPES if is_type(mode))
    file_type = next(names, "of an unknown type")
    raise RunProblem("unreadable", f"{path.name} is {file_type}, not a regular file")
