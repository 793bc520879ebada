"""Reference entries from a JSON file of pymatgen ComputedEntries, streamed and kept as data.

The files in use are gigabytes (Matbench Discovery's 154,718 entries with structures), come as a
list, as a mapping from id to entry, or as a data frame's columns, plain or gzipped. Entry after
entry is decoded by the json module alone; no class named in the file is ever imported or called.
"""

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pymatgen.core import Composition, DummySpecies, get_el_sp

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

_SAME_ENERGY = 1e-3
"""eV of a cell; two statements of one correction differ by less, which is their rounding."""

_CHUNK = 1 << 22
_MAX_ENTRY = 1 << 28
_SPACE = " \t\n\r,:"


@dataclass(frozen=True)
class EntryRun:
    """What an entry tells of the calculation that its energy is from.

    Attributes:
        energy: eV of the cell, without any correction.
        run_type: functional in pymatgen's words, e.g. GGA+U; None where the entry does not say.
        hubbards: U in eV by element symbol; None where the entry does not say.
        data: the entry's further data, e.g. oxide_type.
        structure: the structure as pymatgen writes it; None where the entry has none.
    """

    energy: float
    run_type: str | None
    hubbards: Mapping[str, float] | None
    data: Mapping[str, Any]
    structure: Mapping[str, Any] | None


@dataclass(frozen=True)
class ReferenceEntry:
    """A reference entry.

    Attributes:
        entry_id: its id in the file.
        amounts: number of atoms by element symbol.
        energy_per_atom: eV, with its correction.
        run: the calculation, where it is known.
    """

    entry_id: str
    amounts: dict[str, float]
    energy_per_atom: float
    run: EntryRun | None = None

    @property
    def formula(self) -> str:
        """The formula of the entry's cell."""
        return "".join(f"{symbol}{n:g}" for symbol, n in self.amounts.items())


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
                yield entry_of(raw, number, str(path))
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


def entry_of(raw: Mapping[str, Any], number: int, where: str) -> ReferenceEntry:
    """Check one decoded entry.

    Args:
        raw: the entry as pymatgen's `as_dict` writes it.
        number: its place, which names it where it has no id.
        where: the file or address that it is from.

    Raises:
        FlowllmError: it lacks what is needed, or contradicts itself.
    """
    name = str(raw.get("entry_id") or f"entry {number}")
    try:
        amounts = _amounts(raw["composition"])
        energy, correction = float(raw["energy"]), _correction(raw)
        run = _run_of(raw, energy)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FlowllmError(
            f"{where}: {name}: composition, energy and correction are needed "
            f"({type(error).__name__}: {error})"
        ) from error
    num_atoms = sum(amounts.values())
    if not (num_atoms > 0 and math.isfinite(energy + correction)):
        raise FlowllmError(f"{where}: {name}: {num_atoms:g} atoms, energy {energy + correction}")
    return ReferenceEntry(name, amounts, (energy + correction) / num_atoms, run)


def _amounts(composition: Mapping[str, float] | str) -> dict[str, float]:
    """Return the number of atoms by element; a species with a charge counts as its element."""
    if isinstance(composition, str):
        composition = Composition(composition).as_dict()
    amounts: dict[str, float] = {}
    for key, given in composition.items():
        species, amount = get_el_sp(str(key)), float(given)
        if isinstance(species, DummySpecies):
            raise ValueError(f"{key!r} is not an element")
        if not (math.isfinite(amount) and amount >= 0):
            raise ValueError(f"{amount} atoms of {key}")
        if amount > 0:
            amounts[species.symbol] = amounts.get(species.symbol, 0.0) + amount
    return amounts


def _correction(raw: Mapping[str, Any]) -> float:
    """Return the correction in eV of the cell, as pymatgen's `from_dict` takes it.

    The list of energy adjustments (since 2020) comes first; `correction` is its sum.
    """
    adjustments = raw.get("energy_adjustments") or []
    if not adjustments:
        if "energy_adjustments" in raw and "correction" not in raw:
            return 0.0
        return float(raw["correction"])
    total = sum(_adjustment(one) for one in adjustments)
    if raw.get("correction") is not None and abs(total - float(raw["correction"])) > _SAME_ENERGY:
        raise ValueError(f"correction {raw['correction']}, but energy_adjustments sum to {total}")
    return total


def _adjustment(given: Mapping[str, Any]) -> float:
    """Return an energy adjustment in eV of the cell, of whichever of pymatgen's classes."""
    if "adj_per_atom" in given:
        return float(given["adj_per_atom"]) * float(given["n_atoms"])
    if "adj_per_deg" in given:
        return float(given["adj_per_deg"]) * float(given["temp"]) * float(given["n_atoms"])
    return float(given["value"])


def _run_of(raw: Mapping[str, Any], energy: float) -> EntryRun:
    parameters, data = raw.get("parameters") or {}, raw.get("data") or {}
    run_type = parameters.get("run_type") or data.get("run_type")
    hubbards = parameters.get("hubbards")
    if hubbards is not None:
        hubbards = {str(symbol): float(u) for symbol, u in hubbards.items()}
    return EntryRun(
        energy=energy,
        run_type=None if run_type is None else str(run_type),
        hubbards=hubbards,
        data={name: data.get(name) for name in ("oxide_type", "sulfide_type")},
        structure=raw.get("structure"),
    )


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
