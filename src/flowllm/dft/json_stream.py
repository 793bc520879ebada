"""Entries from a large JSON text, decoded one at a time with bounded memory.

The text is read in chunks. Each entry is decoded by the json module of the standard library. ijson
is not used, because its parsers (3.6.0: yajl2_c and Python) reject the NaN that pymatgen itself
writes: `CompositionEnergyAdjustment.as_dict` has `uncertainty_per_atom: NaN` by default.
On 20,000 entries with structures (127 MB), this module needs 1.3 s and ijson's C backend 2.0 s.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from flowllm.errors import FlowllmError

_ENTRY_KEYS = {
    "@module",
    "@class",
    "@version",
    "energy",
    "composition",
    "entry_id",
    "correction",
    "structure",
}
"""First keys of an entry. An object with another first key is searched for entries."""

_CHUNK_CHARACTERS = 1 << 22
_MAX_ENTRY_CHARACTERS = 1 << 28
_SEPARATORS = " \t\n\r,:"


class EntryStream:
    """The entries of a JSON text: objects with an energy and a composition, at any depth."""

    def __init__(self, handle: IO[str], path: Path) -> None:
        """Read from `handle`; `path` is the file name for messages."""
        self._handle, self._path = handle, path
        self._buffer = ""
        self._position = 0
        self._at_end = False
        self._decoder = json.JSONDecoder()

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield all entries in the order of the text.

        Raises:
            FlowllmError: the text is not JSON, is truncated, or contains more than one value.
            RecursionError: the text is nested more deeply than Python's stack.
            OSError: the file cannot be read; also EOFError, UnicodeDecodeError.
        """
        if self._peek() not in ("[", "{"):
            raise FlowllmError(
                f"{self._path}: not JSON with entries. Give a list, a mapping or the columns of a "
                "data frame"
            )
        yield from self._container()
        if self._peek():
            raise FlowllmError(
                f"{self._path}: more text after the end of the JSON value. Give one list or "
                "mapping of entries per file"
            )

    def _container(self) -> Iterator[dict[str, Any]]:
        """Yield the entries in a list, or in an object that is not an entry.

        Raises:
            FlowllmError: the object contains no entry, but is one.
        """
        is_object = self._take() == "{"
        end = "}" if is_object else "]"
        keys, is_empty = [], True
        while self._peek() != end:
            if is_object:
                keys.append(self._value())
            for entry in self._member():
                is_empty = False
                yield entry
        self._take()
        if is_empty and {"energy", "composition"} <= set(keys):
            cure = "write its energy first, as pymatgen does"
            if keys[0] in _ENTRY_KEYS:
                cure = "give a list of entries"
            raise FlowllmError(
                f"{self._path}: an object with energy and composition begins with the key "
                f"{keys[0]!r} and is not read as an entry; {cure}"
            )

    def _member(self) -> Iterator[dict[str, Any]]:
        """Yield the entries in an element of a list or in a value of an object."""
        start = self._peek()
        if start == "[" or (start == "{" and self._first_key() not in _ENTRY_KEYS):
            yield from self._container()
        else:
            value = self._value()
            if isinstance(value, dict) and "energy" in value and "composition" in value:
                yield value

    def _first_key(self) -> str:
        """Return the first key of the object at the current position, empty if it has none."""
        while True:
            rest = self._buffer[self._position + 1 : self._position + 200].lstrip()
            if rest.startswith("}"):
                return ""
            if rest.count('"') >= 2:
                return rest.split('"')[1]
            if not self._read_chunk():
                return ""

    def _value(self) -> Any:
        """Decode the value at the current position; read chunks until it is complete."""
        if not self._peek():
            raise self._truncated()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                too_long = len(self._buffer) - self._position > _MAX_ENTRY_CHARACTERS
                if too_long or not self._read_chunk():
                    raise FlowllmError(
                        f"{self._path}: not JSON, or truncated ({error.msg}). Download or write "
                        "the file again"
                    ) from error
                continue
            # A number at the end of the buffer may continue in the next chunk.
            if end < len(self._buffer) or not self._read_chunk():
                self._position = end
                return value

    def _peek(self) -> str:
        """Return the next character that is not a separator; empty at the end of the text."""
        while True:
            while self._position < len(self._buffer):
                if self._buffer[self._position] not in _SEPARATORS:
                    return self._buffer[self._position]
                self._position += 1
            if not self._read_chunk():
                return ""

    def _take(self) -> str:
        """Return the next character that is not a separator, and step over it."""
        character = self._peek()
        if not character:
            raise self._truncated()
        self._position += 1
        return character

    def _read_chunk(self) -> bool:
        """Append a chunk to the unread text, and return False at the end of the file."""
        chunk = "" if self._at_end else self._handle.read(_CHUNK_CHARACTERS)
        self._at_end = not chunk
        self._buffer = self._buffer[self._position :] + chunk
        self._position = 0
        return bool(chunk)

    def _truncated(self) -> FlowllmError:
        return FlowllmError(
            f"{self._path}: the file ends in the middle of a value. Download or write it again"
        )
