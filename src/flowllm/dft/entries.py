"""Reference entries from a JSON file of pymatgen ComputedEntries, streamed and kept as data.

The files in use are gigabytes (Matbench Discovery's 154,718 entries with structures), come as a
list, as a mapping from id to entry, or as a data frame's columns, plain or gzipped. Entry after
entry is decoded by the json module alone; no class named in the file is ever imported or called.
"""

import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
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
"""An object whose first key is one of these is taken for an entry, any other is searched."""

_CHUNK = 1 << 22
_MAX_ENTRY = 1 << 28
_SPACE = " \t\n\r,:"


@dataclass(frozen=True)
class ReferenceEntry:
    """A reference entry.

    Attributes:
        entry_id: its id in the file.
        amounts: number of atoms by element symbol.
        energy_per_atom: eV, with its correction.
    """

    entry_id: str
    amounts: dict[str, float]
    energy_per_atom: float


def read_entries(path: Path) -> Iterator[ReferenceEntry]:
    """Read reference entries one at a time, with their corrected energies.

    Raises:
        FlowllmError: the file is missing, a pickle, not JSON, or an entry lacks what is needed;
            the message names the file and the entry.
    """
    if ".pkl" in path.name or ".pickle" in path.name:
        raise FlowllmError(_pickle_message(path))
    try:
        with _open(path) as handle:
            for number, raw in enumerate(_Walker(handle, path).entries()):
                yield _entry(raw, number, path)
    except (OSError, EOFError) as error:
        raise FlowllmError(f"{path}: {error}") from error
    except RecursionError as error:
        raise FlowllmError(f"{path}: nested too deeply for entries") from error
    except UnicodeDecodeError as error:
        raise FlowllmError(f"{path}: not text, so not JSON ({error})") from error


def _pickle_message(path: Path) -> str:
    return (
        f"{path}: a pickle is not read: loading one runs whatever code it holds, and pymatgen's "
        "break between its versions. Give the entries as JSON (.json or .json.gz), e.g. Matbench "
        "Discovery's mp-computed-structure-entries.json.gz"
    )


def _open(path: Path) -> IO[str]:
    with path.open("rb") as handle:
        start = handle.read(2)
    if start == b"\x1f\x8b":
        return gzip.open(path, "rt", encoding="utf-8")
    if start[:1] == b"\x80":
        raise FlowllmError(_pickle_message(path))
    return path.open(encoding="utf-8")


def _entry(raw: dict[str, Any], number: int, path: Path) -> ReferenceEntry:
    """Check one decoded entry."""
    name = str(raw.get("entry_id") or f"entry {number}")
    try:
        amounts = {str(symbol): float(n) for symbol, n in raw["composition"].items()}
        # `correction` is the sum of the energy adjustments wherever pymatgen wrote both.
        energy = float(raw["energy"]) + float(raw["correction"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FlowllmError(
            f"{path}: {name}: composition, energy and correction are needed "
            f"({type(error).__name__}: {error})"
        ) from error
    num_atoms = sum(amounts.values())
    if not (num_atoms > 0 and math.isfinite(energy)):
        raise FlowllmError(f"{path}: {name}: {num_atoms:g} atoms, energy {energy}")
    return ReferenceEntry(name, amounts, energy / num_atoms)


class _Walker:
    """Finds the entries in a JSON text that is read chunk by chunk."""

    def __init__(self, handle: IO[str], path: Path) -> None:
        self._handle, self._path = handle, path
        self._buffer, self._place, self._ended = "", 0, False
        self._decoder = json.JSONDecoder()

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, at whatever depth they lie."""
        if self._peek() not in ("[", "{"):
            raise FlowllmError(f"{self._path}: not JSON with entries")
        yield from self._container()
        if self._peek():
            raise FlowllmError(f"{self._path}: more text after the end of the JSON value")

    def _container(self) -> Iterator[dict[str, Any]]:
        """Walk through a list, or through an object that is no entry."""
        is_object = self._take() == "{"
        end = "}" if is_object else "]"
        while self._peek() != end:
            if is_object:
                self._value()
            yield from self._member()
        self._take()

    def _member(self) -> Iterator[dict[str, Any]]:
        """A list's element or an object's value: an entry, something to walk through, or a word."""
        start = self._peek()
        if start == "[" or (start == "{" and self._first_key() not in _ENTRY_KEYS):
            yield from self._container()
        else:
            value = self._value()
            if isinstance(value, dict) and "energy" in value and "composition" in value:
                yield value

    def _first_key(self) -> str:
        """First key of the object that starts here; empty for an empty object."""
        while True:
            rest = self._buffer[self._place + 1 : self._place + 200].lstrip()
            if rest.startswith("}"):
                return ""
            if rest.count('"') >= 2 or not self._more():
                return rest.split('"')[1] if rest.count('"') >= 2 else ""

    def _value(self) -> Any:
        """Decode the value that starts here, reading on until it is whole."""
        if not self._peek():
            raise self._cut_short()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._place)
            except json.JSONDecodeError as error:
                if len(self._buffer) - self._place > _MAX_ENTRY or not self._more():
                    raise FlowllmError(f"{self._path}: not JSON: {error.msg}") from error
                continue
            # A number at the very end of the buffer may go on in the next chunk.
            if end < len(self._buffer) or not self._more():
                self._place = end
                return value

    def _peek(self) -> str:
        """Next character that is not white space or a separator; empty at the end."""
        while True:
            while self._place < len(self._buffer):
                if self._buffer[self._place] not in _SPACE:
                    return self._buffer[self._place]
                self._place += 1
            if not self._more():
                return ""

    def _take(self) -> str:
        character = self._peek()
        if not character:
            raise self._cut_short()
        self._place += 1
        return character

    def _more(self) -> bool:
        """Read on; false at the end of the file."""
        chunk = "" if self._ended else self._handle.read(_CHUNK)
        self._ended = not chunk
        self._buffer = self._buffer[self._place :] + chunk
        self._place = 0
        return bool(chunk)

    def _cut_short(self) -> FlowllmError:
        return FlowllmError(f"{self._path}: the file ends in the middle; fetch it again")
