"""Reference entries from JSON files of pymatgen ComputedEntries, read one at a time.

The files have several gigabytes (Matbench Discovery's 154,718 entries with structures). A file is a
list, a mapping from id to entry, or the columns of a data frame, plain or gzipped. Entries are read
as plain data: no class that a file names is imported or called.
"""

import gzip
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from pymatgen.core import Composition, DummySpecies, get_el_sp

from flowllm.dft.json_stream import EntryStream
from flowllm.errors import FlowllmError

_SAME_ENERGY = 1e-3
"""eV per cell; largest rounding difference between `correction` and the sum of the adjustments."""

_GZIP_START = b"\x1f\x8b"
_PICKLE_START = b"\x80"
"""First bytes of the two formats (pickle protocol 2 and later)."""


@dataclass(frozen=True)
class EntryRun:
    """The calculation of an entry's energy, as far as the entry describes it.

    Attributes:
        energy: eV per cell, without any correction.
        run_type: functional, named as in pymatgen, e.g. GGA+U; None where it is unknown.
        hubbards: U in eV by element symbol; None where they are unknown.
        data: oxide_type and sulfide_type; None where they are unknown.
        structure: the structure as pymatgen's `as_dict` writes it; None where the entry has none.
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
        entry_id: id in the file.
        amounts: number of atoms per cell by element symbol.
        energy_per_atom: eV, corrected.
        run: the calculation; None where it is unknown or no longer needed.
    """

    entry_id: str
    amounts: dict[str, float]
    energy_per_atom: float
    run: EntryRun | None = None

    @property
    def formula(self) -> str:
        """The formula of the cell, e.g. Na4Cl4."""
        return "".join(f"{symbol}{n:g}" for symbol, n in self.amounts.items())


def without_structure(entry: ReferenceEntry) -> ReferenceEntry:
    """Return an entry without the structure of its calculation."""
    return replace(entry, run=entry.run and replace(entry.run, structure=None))


def read_entries(path: Path) -> Iterator[ReferenceEntry]:
    """Read reference entries one at a time, with their corrected energies.

    Raises:
        FlowllmError: the file is missing, a pickle, not JSON, or truncated, or an entry is
            incomplete; the message names the file and the entry.
    """
    if ".pkl" in path.name or ".pickle" in path.name:
        raise FlowllmError(_pickle_message(path))
    try:
        with _open(path) as handle:
            for number, raw in enumerate(EntryStream(handle, path).entries()):
                yield entry_of(raw, number, str(path))
    except (OSError, EOFError) as error:
        raise FlowllmError(
            f"{path}: {error}. Check the path, or download the file again"
        ) from error
    except RecursionError as error:
        raise FlowllmError(
            f"{path}: nested too deeply for entries. Give a list or a mapping of entries"
        ) from error
    except UnicodeDecodeError as error:
        raise FlowllmError(
            f"{path}: not UTF-8 text, so not JSON ({error}). Give a plain or gzipped JSON file"
        ) from error


def _pickle_message(path: Path) -> str:
    return (
        f"{path}: a pickle is not read, because loading it runs any code that it contains, and "
        "pymatgen's pickles depend on its version. Give the entries as JSON (.json or .json.gz), "
        "e.g. Matbench Discovery's mp-computed-structure-entries.json.gz"
    )


def _open(path: Path) -> IO[str]:
    """Open a plain or gzipped text file, whatever its suffix.

    Raises:
        FlowllmError: the file is a pickle.
    """
    with path.open("rb") as handle:
        start = handle.read(2)
    if start == _GZIP_START:
        return gzip.open(path, "rt", encoding="utf-8")
    if start.startswith(_PICKLE_START):
        raise FlowllmError(_pickle_message(path))
    return path.open(encoding="utf-8")


def entry_of(raw: Mapping[str, Any], number: int, where: str) -> ReferenceEntry:
    """Check and convert one decoded entry.

    Args:
        raw: the entry as pymatgen's `as_dict` writes it.
        number: position in the file, from 0, for messages where the entry has no id.
        where: file or address of the entry, for messages.

    Raises:
        FlowllmError: the entry is incomplete, or its correction contradicts its adjustments.
    """
    name = str(raw.get("entry_id") or f"entry {number}")
    try:
        amounts = _amounts(raw["composition"])
        energy = float(raw["energy"])
        correction = _correction(raw)
        run = _run_of(raw, energy)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FlowllmError(
            f"{where}: {name}: composition, energy and correction are required "
            f"({type(error).__name__}: {error}). Correct or remove the entry"
        ) from error
    num_atoms = sum(amounts.values())
    if not (num_atoms > 0 and math.isfinite(energy + correction)):
        raise FlowllmError(
            f"{where}: {name}: {num_atoms:g} atoms, energy {energy + correction}. An entry needs "
            "at least one atom and a finite energy"
        )
    return ReferenceEntry(name, amounts, (energy + correction) / num_atoms, run)


def _amounts(composition: Mapping[str, float] | str) -> dict[str, float]:
    """Return the number of atoms by element symbol; a species counts as its element.

    Raises:
        ValueError: a key is not an element, or an amount is negative or not finite.
    """
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
    """Return the correction in eV per cell, as pymatgen's `from_dict` does.

    The list of energy adjustments (in pymatgen since 2020) has priority; `correction` is its sum.

    Raises:
        ValueError: `correction` differs from the sum of the adjustments.
        KeyError: the entry has neither.
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
    """Return an energy adjustment of any of pymatgen's classes in eV per cell."""
    if "adj_per_atom" in given:
        return float(given["adj_per_atom"]) * float(given["n_atoms"])
    if "adj_per_deg" in given:
        return float(given["adj_per_deg"]) * float(given["temp"]) * float(given["n_atoms"])
    return float(given["value"])


def _run_of(raw: Mapping[str, Any], energy: float) -> EntryRun:
    """Return what an entry tells of its calculation; `energy` is uncorrected, eV per cell."""
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
