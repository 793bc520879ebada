"""Bring reference entries under the correction that DFT results have.

The entries of a source were corrected by some version of pymatgen, whose rules differ
(`corrections`). Entries that tell enough of their calculation are corrected again. Others keep
their correction where every rule gives the same one, and are refused where the rules differ.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
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

_CHANGED = 1e-3
"""eV/atom; a correction that differs by more from the source's is counted."""


@dataclass
class _Kind:
    """Entries of one kind: how many, and the first."""

    count: int = 0
    first: str = ""

    def add(self, entry: ReferenceEntry, note: str = "") -> None:
        self.count += 1
        self.first = self.first or f"{entry.entry_id}, {entry.formula}{note}"

    def of(self, total: int) -> str:
        return f"{self.count} of {total} entries (first: {self.first})"


@dataclass
class _Tally:
    """What was found among the entries of a source."""

    source: str
    entries: int = 0
    corrected: int = 0
    functionals: dict[str, _Kind] = field(default_factory=dict)
    unsaid: _Kind = field(default_factory=_Kind)
    undecided: _Kind = field(default_factory=_Kind)
    uncovered: _Kind = field(default_factory=_Kind)
    changed: _Kind = field(default_factory=_Kind)
    uncorrected: _Kind = field(default_factory=_Kind)


def by_one_rule(
    entries: Iterable[ReferenceEntry], section: DftHull, collect: DftCollect
) -> tuple[list[ReferenceEntry], dict[str, int]]:
    """Return entries with the correction scheme of the hull, and counts for the record.

    Args:
        entries: the entries of the source.
        section: names the source and its correction scheme.
        collect: has the rule for anions.

    Raises:
        FlowllmError: entries are of other functionals than the scheme's, or cannot be brought under
            the rule for anions; the message has their number and the first.
    """
    tally = _Tally(str(section.source))
    if section.correction_scheme == "MP2020":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # noble gases have no electronegativity
            kept = list(_corrected(entries, collect, tally))
        _refuse(tally, collect)
        _warn(tally, collect)
    elif section.correction_scheme == "none":
        kept = list(_uncorrected(entries, tally))
        _refuse_mixed(tally)
    else:
        kept = [replace(entry, run=None) for entry in entries]
    return kept, {"recorrected": tally.changed.count, "not_covered": tally.uncovered.count}


def _corrected(
    entries: Iterable[ReferenceEntry], collect: DftCollect, tally: _Tally
) -> Iterator[ReferenceEntry]:
    """Yield the entries that MP2020 covers with their correction by the rule."""
    for entry in entries:
        tally.entries += 1
        run, composition = entry.run, Composition(entry.amounts)
        _note_correction(entry, composition, tally)
        if run is not None and run.run_type is not None and run.run_type not in RUN_TYPES:
            tally.functionals.setdefault(run.run_type, _Kind()).add(entry)
        elif run is not None and _is_complete(run, composition):
            correction = _correction(run, composition, collect)
            if correction is None:
                tally.uncovered.add(entry)
                continue
            energy = (run.energy + correction) / composition.num_atoms
            if abs(energy - entry.energy_per_atom) > _CHANGED:
                tally.changed.add(entry, f", by {energy - entry.energy_per_atom:+.3f} eV/atom")
            yield replace(entry, energy_per_atom=energy, run=None)
        else:
            if run is not None and run.run_type is None:
                tally.unsaid.add(entry)
            if collect.strict_anions != "no_check" and not rules_agree(
                composition, collect.strict_anions
            ):
                tally.undecided.add(entry)
            yield replace(entry, run=None)


def _note_correction(entry: ReferenceEntry, composition: Composition, tally: _Tally) -> None:
    """Count the entries that have a correction, and those that should have one and have none."""
    if entry.run is None:
        return
    total = entry.energy_per_atom * composition.num_atoms
    if abs(total - entry.run.energy) > _CHANGED:
        tally.corrected += 1
    elif not tally.corrected and is_corrected(composition):
        tally.uncorrected.add(entry)


def _is_complete(run: EntryRun, composition: Composition) -> bool:
    """Whether an entry tells all that its correction depends on."""
    if run.run_type is None or (run.run_type == "GGA+U" and run.hubbards is None):
        return False
    return run.structure is not None or not needs_structure(composition, run.data)


def _correction(run: EntryRun, composition: Composition, collect: DftCollect) -> float | None:
    """Return the correction of an entry's cell in eV, None where MP2020 does not cover it."""
    crystal: Structure | Composition = composition
    if needs_structure(composition, run.data):
        assert run.structure is not None
        # Only the lattice and the sites are read: no class that a file names is ever looked up.
        crystal = Structure.from_dict({key: run.structure[key] for key in ("lattice", "sites")})
        crystal.remove_oxidation_states()
    parameters: Mapping[str, Any] = {"run_type": run.run_type, "hubbards": run.hubbards or {}}
    return mp2020_correction(crystal, parameters, collect.strict_anions, run.data)


def _refuse(tally: _Tally, collect: DftCollect) -> None:
    if tally.functionals:
        raise FlowllmError(
            f"{tally.source}: dft_hull.correction_scheme MP2020 is for GGA and GGA+U energies, but "
            f"by their parameters.run_type {_functionals(tally)} are not. Remove them from the file"
        )
    if tally.undecided.count:
        raise FlowllmError(
            f"{tally.source}: the correction of {tally.undecided.of(tally.entries)} depends on the "
            "rule for anions, and they lack what a correction by dft_collect.strict_anions "
            f"{collect.strict_anions} needs: parameters.run_type, hubbards, and for O and S a "
            "structure or data.oxide_type and data.sulfide_type. Give a file with these, or set "
            "dft_collect.strict_anions to no_check, the rule of entries made before May 2024"
        )


def _refuse_mixed(tally: _Tally) -> None:
    if len({name.removesuffix("+U") for name in tally.functionals}) > 1:
        raise FlowllmError(
            f"{tally.source}: by their parameters.run_type its energies are of several "
            f"functionals, which cannot be compared: {_functionals(tally)}. Keep those of one"
        )


def _functionals(tally: _Tally) -> str:
    found = tally.functionals.items()
    return ", ".join(f"{name}: {kind.of(tally.entries)}" for name, kind in found)


def _uncorrected(entries: Iterable[ReferenceEntry], tally: _Tally) -> Iterator[ReferenceEntry]:
    """Yield entries with the energies of their calculations."""
    for entry in entries:
        tally.entries += 1
        energy = entry.energy_per_atom
        if entry.run is not None:
            energy = entry.run.energy / sum(entry.amounts.values())
            if entry.run.run_type is not None:
                tally.functionals.setdefault(entry.run.run_type, _Kind()).add(entry)
        yield replace(entry, energy_per_atom=energy, run=None)


def _warn(tally: _Tally, collect: DftCollect) -> None:
    """Log what the user should look at."""
    if tally.uncorrected.count and not tally.corrected:
        log.warning(
            "dft_hull: %s: no entry has a correction, but MP2020 corrects %s. Those without a "
            "parameters.run_type stay as they are",
            tally.source,
            tally.uncorrected.of(tally.entries),
        )
    if tally.unsaid.count:
        log.warning(
            "dft_hull: %s: %s have no parameters.run_type; they are taken for GGA and GGA+U "
            "energies with the correction that the file gives",
            tally.source,
            tally.unsaid.of(tally.entries),
        )
    if tally.uncovered.count:
        log.warning(
            "dft_hull: %s: %s have U values that MP2020 does not cover, and are left out",
            tally.source,
            tally.uncovered.of(tally.entries),
        )
    if tally.changed.count:
        log.info(
            "dft_hull: %s: by strict_anions %s another correction than in the source have %s",
            tally.source,
            collect.strict_anions,
            tally.changed.of(tally.entries),
        )
