"""Whether a VASP relaxation came to its end: VASP's word for it, or VASP's criterion.

A vasprun.xml that VASP closed before NSW is no sign of it: STOPCAR, and a walltime that is watched
with it, end a run in the same way.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.io.vasp.outputs import Vasprun

from flowllm.dft.bounded import PACKED_SUFFIXES, opened
from flowllm.dft.runs import RunProblem

_WORD = b"reached required accuracy"
"""Of "reached required accuracy - stopping structural energy minimisation", in OUTCAR."""

_TOTAL_ENERGY = re.compile(rb"free  energy   TOTEN\s*=\s*(-?[0-9.]+) eV")
"""Once per ionic step; the electronic steps have other blanks."""

_SAME_ENERGY = 1e-4
"""eV; by it an OUTCAR is told from that of another attempt."""

_RELAXATIONS = (1, 2, 3)
"""IBRION: quasi-Newton, conjugate gradients, damped dynamics."""

_IONS_MOVE = (0, 1, 2, 3, 4, 8)
_CELL_MOVES = 3
"""ISIF: the values that move ions, and the first that moves the cell."""

_EV_PER_KBAR = 1 / 1602.176634
"""Times a volume in cubic angstrom."""


def is_static(vasprun: Vasprun) -> bool:
    """Whether nothing was to move: NSW = 0, IBRION = -1, or one step of dynamics (IBRION = 0, which
    VASP takes for NSW = 1).
    """
    steps, ibrion = _ionic_settings(vasprun)
    return steps <= 0 or ibrion == -1 or (ibrion == 0 and steps == 1)


def why_not_converged(vasprun: Vasprun, outcar: Path | None) -> str | None:
    """Say why the last ionic step is not the end of a relaxation; None where it is.

    VASP's word in the OUTCAR of the same run decides, either way. Without it the last step has to
    meet EDIFFG: where that is positive, its energy differs by less from the step before; where
    negative, no force on an atom that may move is larger, nor, where the cell moves (ISIF >= 3),
    a component of the stress times the volume per atom (VASP's forum, topics 16781 and 20553).

    Args:
        vasprun: a run that VASP closed, of at least one step.
        outcar: what `find_outcar` found.
    """
    steps, ibrion = _ionic_settings(vasprun)
    if ibrion not in _RELAXATIONS:
        return f"IBRION = {ibrion} is not a relaxation"
    word, why = None, None
    if outcar is not None:
        word = _vasps_word(outcar, vasprun.ionic_steps[-1])
        why = f"{outcar.name} does not say '{_WORD.decode()}'"
    if word is None:
        why = _misses_ediffg(vasprun)
    if word or why is None:
        return None
    if len(vasprun.ionic_steps) >= steps:
        return "the relaxation hit its limit of steps"
    return f"the relaxation was stopped before its end: {why}"


def find_outcar(output: Path) -> Path | None:
    """The OUTCAR of the run whose vasprun.xml is given; None where there is none.

    VASP overwrites the OUTCAR of a run that `job_array.sh` starts again, so that none is left of
    the attempts before the last.
    """
    found = re.fullmatch(r"vasprun\.xml(\.relax\d+)?(?:\.(?:gz|bz2|xz))?", output.name)
    if not found:
        return None
    names = [f"OUTCAR{found[1] or ''}{suffix}" for suffix in PACKED_SUFFIXES]
    paths = (output.with_name(name) for name in names)
    return next((path for path in paths if path.is_file()), None)


def _ionic_settings(vasprun: Vasprun) -> tuple[int, int]:
    """NSW and IBRION, with VASP's defaults."""
    steps = int(vasprun.parameters.get("NSW", 0))
    return steps, int(vasprun.parameters.get("IBRION", -1 if steps <= 0 else 0))


def _vasps_word(outcar: Path, last: dict[str, Any]) -> bool | None:
    """Whether VASP says that it reached the required accuracy; None where it is another run's."""
    said, energy, tail = False, math.nan, b""
    try:
        with opened(outcar) as source:
            for block in source.blocks():
                window = tail + block
                said = said or _WORD in window
                for found in _TOTAL_ENERGY.finditer(window):
                    energy = float(found[1])
                tail = window[-256:]
    except (RunProblem, OSError, ValueError):
        return None
    return said if abs(energy - last.get("e_fr_energy", math.nan)) < _SAME_ENERGY else None


def _misses_ediffg(vasprun: Vasprun) -> str | None:
    """What of the last step is beyond EDIFFG; None where nothing is."""
    parameters, last = vasprun.parameters, vasprun.ionic_steps[-1]
    limit = float(parameters.get("EDIFFG", 10 * float(parameters.get("EDIFF", 1e-4))))
    if limit > 0:
        return _misses_energy(vasprun.ionic_steps, limit)
    if not limit < 0:
        return f"EDIFFG = {limit:g} is no criterion"
    isif = int(parameters.get("ISIF", 2))
    if isif in _IONS_MOVE:
        force = _largest_force(vasprun, last)
        if not force <= -limit:
            return f"a force of {force:.3g} eV/angstrom is left (EDIFFG = {limit:g})"
    if isif >= _CELL_MOVES:
        volume = last["structure"].volume / len(last["structure"])
        stress = np.abs(np.asarray(last.get("stress", [math.nan]), dtype=float)).max()
        if not stress * volume * _EV_PER_KBAR <= -limit:
            return f"a stress of {stress:.3g} kbar is left (EDIFFG = {limit:g} eV per atom)"
    return None


def _misses_energy(steps: list[dict[str, Any]], limit: float) -> str | None:
    if len(steps) == 1:
        return f"a single step has no change of energy to compare with EDIFFG = {limit:g}"
    last, before = (step.get("e_fr_energy", math.nan) for step in (steps[-1], steps[-2]))
    if not abs(last - before) < limit:
        return f"the last step changed the energy by {last - before:.3g} eV (EDIFFG = {limit:g})"
    return None


def _largest_force(vasprun: Vasprun, last: dict[str, Any]) -> float:
    """The largest norm of a force in eV/angstrom, of the atoms that are not wholly held."""
    forces = np.asarray(last.get("forces", [[math.nan] * 3]), dtype=float)
    held = vasprun.initial_structure.site_properties.get("selective_dynamics")
    if held is not None and len(held) == len(forces):
        forces = forces[np.asarray(held, dtype=bool).any(axis=1)]
    return float(np.linalg.norm(forces, axis=1).max()) if len(forces) else 0.0
