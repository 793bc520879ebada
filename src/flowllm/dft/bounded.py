"""Files that other programs left, read without trust: never hanging, bounded in bytes.

A run's folder can contain anything under a result's name: a folder, a pipe, a link to nowhere, 400
MB of zeros in a small gzip file. A reader gets the bytes of a regular file from here, unpacked by
what the file is and not by what its name says.
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
"""Largest file, unpacked. A vasprun.xml with bands and densities of a large cell has some hundred
MB, and pymatgen needs several times a file's size in memory."""

MAX_RATIO = 500
"""Unpacked bytes per packed byte. A vasprun.xml of 15 MB has 33 by gzip, 58 by bzip2 and 81 by xz;
zeros have 1,028 by gzip, and more by the others."""

RATIO_FREE_BYTES = 1 << 26
"""Unpacked bytes that are read whatever the ratio: short relaxations repeat themselves."""

BLOCK_BYTES = 1 << 20

PACKED_SUFFIXES = ("", ".gz", ".bz2", ".xz", ".zst", ".Z", ".lz4", ".zip", ".7z")
"""Of names under which a result is looked for; the last five are named in an error."""

_UNPACKERS = (
    (b"\x1f\x8b", lambda packed: gzip.GzipFile(fileobj=packed)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
)

_FOREIGN = (
    (b"\x28\xb5\x2f\xfd", "zstandard"),
    (b"\x1f\x9d", "compress"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT)
"""Of a temporary file; Python says of no writable folder that there is no such file."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class BoundedReader(io.BufferedIOBase):
    """A stream of bytes that ends in a `RunProblem` where it is longer than its limit."""

    def __init__(self, source: io.BufferedIOBase, limit: int, name: str) -> None:
        """Read from `source` at most `limit` bytes; `name` is what the user knows the file by."""
        self._source, self._limit, self._name = source, limit, name
        self._read_bytes = 0

    def readable(self) -> bool:
        """It is read and nothing else."""
        return True

    def read1(self, size: int = -1) -> bytes:
        """Return what there is before the source stumbles, at most one block.

        Raises:
            RunProblem: more than the limit was read (`unreadable`).
            EOFError: a packed file is cut short here.
        """
        block = self._source.read1(BLOCK_BYTES if size < 0 else min(size, BLOCK_BYTES))
        self._read_bytes += len(block)
        if self._read_bytes > self._limit:
            raise RunProblem(
                "unreadable",
                f"{self._name} has more than {self._limit >> 20} MiB unpacked, the limit for a "
                f"file of its size (at most {MAX_BYTES >> 20} MiB, {MAX_RATIO} times the packed)",
            )
        return block

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes, or all, or what there is before a packed file is cut short."""
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
        """All that can be read; a packed file that is cut short ends where it is."""
        try:
            while block := self.read1():
                yield block
        except EOFError:
            return


@contextmanager
def opened(path: Path) -> Iterator[BoundedReader]:
    """Give the unpacked bytes of a file; a link is followed, also out of its folder.

    Raises:
        RunProblem: it is not a regular file, cannot be opened, is too large, or is packed by a
            program that is not known here (`unreadable`).
    """
    with _open_regular(path) as packed:
        yield unpacked(packed, os.fstat(packed.fileno()).st_size, path.name)


def unpacked(packed: io.BufferedReader, size: int, name: str) -> BoundedReader:
    """Read through the compression that the first bytes tell of.

    Args:
        packed: the file.
        size: its bytes.
        name: what the user knows it by.

    Raises:
        RunProblem: as in `opened`.
    """
    start = packed.peek(8)[:8]
    for magic, unpacker in _UNPACKERS:
        if start.startswith(magic):
            limit = min(MAX_BYTES, max(RATIO_FREE_BYTES, MAX_RATIO * size))
            return BoundedReader(unpacker(packed), limit, name)
    for magic, program in _FOREIGN:
        if start.startswith(magic):
            raise RunProblem(
                "unreadable",
                f"{name} is packed by {program}; unpack it, or pack it with gzip, bzip2 or xz",
            )
    return BoundedReader(packed, MAX_BYTES, name)


@contextmanager
def temporary_file(suffix: str) -> Iterator[IO[bytes]]:
    """Give a temporary file with a name.

    Raises:
        FlowllmError: there is no room for it.
    """
    try:
        with tempfile.NamedTemporaryFile(suffix=suffix) as handle:
            yield handle
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise FlowllmError(
            f"{tempfile.gettempdir()}: {error.strerror}; results are unpacked there, up to "
            f"{MAX_BYTES >> 20} MiB: free some space, or set TMPDIR, and run dft_collect again"
        ) from error


def _open_regular(path: Path) -> io.BufferedReader:
    """Open a file without ever waiting for it."""
    try:
        _refuse_other_kinds(path, path.stat().st_mode)
        # Between the two calls it can become a pipe, which would be waited for.
        handle = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb")
    except FileNotFoundError as error:
        why = f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else "gone"
        raise RunProblem("unreadable", f"{path.name} {why}") from error
    except OSError as error:
        raise RunProblem("unreadable", f"{path.name}: {error.strerror}") from error
    try:
        _refuse_other_kinds(path, os.fstat(handle.fileno()).st_mode)
    except RunProblem:
        handle.close()
        raise
    return handle


def _refuse_other_kinds(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "no regular file")
        raise RunProblem("unreadable", f"{path.name} is {kind}, not a file")
