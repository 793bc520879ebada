"""Correct reference entries by the same rule as DFT results.

The entries of a source were corrected by some version of pymatgen, and the versions have different
rules (`corrections`). An entry that describes its calculation is corrected again. Any other entry
keeps its correction where all rules give the same one, and is rejected where the rules differ.
"""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pymatgen.core import Composition, Structure

from flowllm.config.sections.energies import DftCollect, DftHull
from flowllm.dft.corrections import (
    RUN_TYPES,
    is_corrected,
    mp2020_correction,
    needs_structure,
    rules_agree,
)
from flowllm.dft.entries import EntryRun, ReferenceEntry
from flowllm.errors import FlowllmError
from flowllm.runtime.log import log

_SAME_ENERGY = 1e-3
"""eV; largest difference by rounding between two energies, per atom or per cell."""


@dataclass
class _EntryGroup:
    """Entries with one property: their number, and the first one for messages."""

    count: int = 0
    first: str = ""

    def add(self, entry: ReferenceEntry, note: str = "") -> None:
        """Count an entry; `note` follows its formula where it is the first one."""
        self.count += 1
        self.first = self.first or f"{entry.entry_id}, {entry.formula}{note}"

    def share_of(self, total: int) -> str:
        """Return a description for messages, e.g. `1 of 4 entries (first: mp-1, Na4Cl4)`."""
        return f"{self.count} of {total} entries (first: {self.first})"


@dataclass
class _Tally:
    """Numbers of entries of a source, for the log, the error messages and the record.

    Attributes:
        source: name of the source.
        num_entries: entries read.
        num_corrected: entries with a correction in the source.
        by_functional: entries by run type, of functionals other than those of the results.
        without_run_type: entries that describe a calculation without its run type.
        undecided: incomplete entries whose correction depends on the rule for anions.
        not_covered: entries whose U values MP2020 does not cover.
        changed: entries whose correction differs from the one in the source.
        uncorrected: entries without a correction in the source, though MP2020 corrects their
            composition; counted until the first entry with a correction.
    """

    source: str
    num_entries: int = 0
    num_corrected: int = 0
    by_functional: dict[str, _EntryGroup] = field(default_factory=dict)
    without_run_type: _EntryGroup = field(default_factory=_EntryGroup)
    undecided: _EntryGroup = field(default_factory=_EntryGroup)
    not_covered: _EntryGroup = field(default_factory=_EntryGroup)
    changed: _EntryGroup = field(default_factory=_EntryGroup)
    uncorrected: _EntryGroup = field(default_factory=_EntryGroup)


def apply_correction_scheme(
    entries: Iterable[ReferenceEntry], section: DftHull, collect: DftCollect
) -> tuple[list[ReferenceEntry], dict[str, int]]:
    """Return entries corrected by the scheme of the hull, and counts for the record.

    Args:
        entries: the entries of the source.
        section: source and correction scheme of the hull.
        collect: rule for anions of the results.

    Raises:
        FlowllmError: entries have functionals that the scheme does not cover, or the rule for
            anions cannot be applied to them; the message has their number and the first one.
    """
    tally = _Tally(str(section.source))
    if section.correction_scheme == "MP2020":
        with warnings.catch_warnings():
            # pymatgen warns that noble gases have no electronegativity.
            warnings.simplefilter("ignore")
            kept = list(_corrected(entries, collect, tally))
    elif section.correction_scheme == "none":
        kept = list(_uncorrected(entries, tally))
    else:
        kept = list(_of_gpaw(entries, tally))
    _reject_other_functionals(tally, section)
    _reject_undecided(tally, collect)
    _warn(tally, collect)
    return kept, {"recorrected": tally.changed.count, "not_covered": tally.not_covered.count}


def _corrected(
    entries: Iterable[ReferenceEntry], collect: DftCollect, tally: _Tally
) -> Iterator[ReferenceEntry]:
    """Yield the entries that MP2020 covers, corrected by the rule for anions."""
    for entry in entries:
        tally.num_entries += 1
        run, composition = entry.run, Composition(entry.amounts)
        _note_correction(entry, composition, tally)
        if _is_of_another_functional(entry, RUN_TYPES, tally):
            continue
        if run is not None and _is_complete(run, composition):
            correction = _correction(run, composition, collect)
            if correction is None:
                tally.not_covered.add(entry)
                continue
            energy = (run.energy + correction) / composition.num_atoms
            if abs(energy - entry.energy_per_atom) > _SAME_ENERGY:
                tally.changed.add(entry, f", by {energy - entry.energy_per_atom:+.3f} eV/atom")
            yield replace(entry, energy_per_atom=energy, run=None)
        else:
            if run is not None and run.run_type is None:
                tally.without_run_type.add(entry)
            if collect.strict_anions != "no_check" and not rules_agree(
                composition, collect.strict_anions
            ):
                tally.undecided.add(entry)
            yield replace(entry, run=None)


def _is_of_another_functional(
    entry: ReferenceEntry, accepted: Collection[str], tally: _Tally
) -> bool:
    """Return whether an entry has another run type than the accepted ones, and count it if so."""
    run_type = None if entry.run is None else entry.run.run_type
    if run_type is None or run_type in accepted:
        return False
    tally.by_functional.setdefault(run_type, _EntryGroup()).add(entry)
    return True


def _note_correction(entry: ReferenceEntry, composition: Composition, tally: _Tally) -> None:
    """Count the entries with a correction, and those that lack the correction of MP2020."""
    if entry.run is None:
        return
    total = entry.energy_per_atom * composition.num_atoms
    if abs(total - entry.run.energy) > _SAME_ENERGY:
        tally.num_corrected += 1
    elif not tally.num_corrected and is_corrected(composition):
        tally.uncorrected.add(entry)


def _is_complete(run: EntryRun, composition: Composition) -> bool:
    """Return whether an entry describes all that its correction depends on."""
    if run.run_type is None or (run.run_type == "GGA+U" and run.hubbards is None):
        return False
    return run.structure is not None or not needs_structure(composition, run.data)


def _correction(run: EntryRun, composition: Composition, collect: DftCollect) -> float | None:
    """Return the correction of an entry in eV per cell, None where MP2020 does not cover it."""
    crystal: Structure | Composition = composition
    if needs_structure(composition, run.data):
        assert run.structure is not None
        # Only the lattice and the sites are read, so that no class named in the file is imported.
        crystal = Structure.from_dict({key: run.structure[key] for key in ("lattice", "sites")})
        crystal.remove_oxidation_states()
    parameters: Mapping[str, Any] = {"run_type": run.run_type, "hubbards": run.hubbards or {}}
    return mp2020_correction(crystal, parameters, collect.strict_anions, run.data)


def _reject_other_functionals(tally: _Tally, section: DftHull) -> None:
    if tally.by_functional:
        accepted = "GGA" if section.correction_scheme == "GPAW" else "GGA and GGA+U"
        raise FlowllmError(
            f"{tally.source}: dft_hull.correction_scheme {section.correction_scheme} is for "
            f"{accepted} energies, like those of the results, but by their parameters.run_type "
            f"{_functionals(tally)} are not. Remove them from the file"
        )


def _reject_undecided(tally: _Tally, collect: DftCollect) -> None:
    if tally.undecided.count:
        raise FlowllmError(
            f"{tally.source}: the correction of {tally.undecided.share_of(tally.num_entries)} "
            f"depends on the rule for anions. dft_collect.strict_anions {collect.strict_anions} "
            "needs parameters.run_type, parameters.hubbards, and for O and S a structure or "
            "data.oxide_type and data.sulfide_type. Give a file with these, or set "
            "dft_collect.strict_anions to no_check, the rule of entries made before May 2024"
        )


def _functionals(tally: _Tally) -> str:
    groups = tally.by_functional.items()
    return ", ".join(f"{name}: {group.share_of(tally.num_entries)}" for name, group in groups)


def _uncorrected(entries: Iterable[ReferenceEntry], tally: _Tally) -> Iterator[ReferenceEntry]:
    """Yield GGA and GGA+U entries with their uncorrected energies."""
    for entry in entries:
        tally.num_entries += 1
        if _is_of_another_functional(entry, RUN_TYPES, tally):
            continue
        energy = entry.energy_per_atom
        if entry.run is not None:
            energy = entry.run.energy / sum(entry.amounts.values())
        yield replace(entry, energy_per_atom=energy, run=None)


def _of_gpaw(entries: Iterable[ReferenceEntry], tally: _Tally) -> Iterator[ReferenceEntry]:
    """Yield the entries that may be of GPAW, whose calculations are GGA without U."""
    for entry in entries:
        tally.num_entries += 1
        if not _is_of_another_functional(entry, ("GGA",), tally):
            yield replace(entry, run=None)


def _warn(tally: _Tally, collect: DftCollect) -> None:
    """Log what the user should check."""
    if tally.uncorrected.count and not tally.num_corrected:
        log.warning(
            "dft_hull: %s: no entry has a correction, but MP2020 corrects %s. Entries without "
            "parameters.run_type are used as they are",
            tally.source,
            tally.uncorrected.share_of(tally.num_entries),
        )
    groups = (
        (
            tally.without_run_type,
            "have no parameters.run_type. They are read as GGA or GGA+U energies with the "
            "correction in the file",
        ),
        (tally.not_covered, "have U values that MP2020 does not cover, and are skipped"),
    )
    for group, message in groups:
        if group.count:
            found = group.share_of(tally.num_entries)
            log.warning("dft_hull: %s: %s %s", tally.source, found, message)
    if tally.changed.count:
        log.info(
            "dft_hull: %s: %s have another correction by strict_anions %s than in the source",
            tally.source,
            tally.changed.share_of(tally.num_entries),
            collect.strict_anions,
        )
