"""Convergence of a VASP relaxation, by VASP's own statement or by VASP's criterion.

A vasprun.xml that VASP closed before NSW steps does not prove convergence: a STOPCAR, which
custodian also writes at the end of the walltime, ends a run in the same way.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.io.vasp.outputs import Vasprun

from flowllm.dft.bounded import PACKED_SUFFIXES, opened
from flowllm.dft.runs import RunProblem

_CONVERGED_LINE = b"reached required accuracy"
"""Start of "reached required accuracy - stopping structural energy minimisation" in OUTCAR."""

_TOTAL_ENERGY = re.compile(rb"free  energy   TOTEN\s*=\s*(-?[0-9.]+) eV")
"""Line of OUTCAR once per ionic step; the lines of the electronic steps have other spaces."""

_SAME_ENERGY = 1e-4
"""eV; an OUTCAR whose last energy differs by more belongs to another attempt."""

_RELAXATIONS = (1, 2, 3)
"""Values of IBRION: quasi-Newton, conjugate gradients, damped dynamics."""

_IONS_MOVE = (0, 1, 2, 3, 4, 8)
"""Values of ISIF that move ions."""

_FIRST_CELL_MOVES = 3
"""Smallest ISIF that changes the cell."""

_EV_PER_KBAR_ANGSTROM3 = 1 / 1602.176634


def is_static(vasprun: Vasprun) -> bool:
    """Return whether a run has nothing to relax.

    These are NSW = 0, IBRION = -1, and one step of dynamics (IBRION = 0, the default at NSW = 1).
    """
    steps, ibrion = _ionic_settings(vasprun)
    return steps <= 0 or ibrion == -1 or (ibrion == 0 and steps == 1)


def why_not_converged(vasprun: Vasprun, outcar: Path | None) -> str | None:
    """Return the reason why a relaxation has not converged, None where it has.

    The OUTCAR of the same run decides, if there is one: it has or does not have VASP's line on
    convergence. Without it, the last ionic step has to meet EDIFFG. Where EDIFFG > 0, the energy
    differs by less than EDIFFG from the step before. Where EDIFFG < 0, no force on an atom that may
    move is larger than |EDIFFG|, and where the cell changes (ISIF >= 3), neither is a component of
    the stress times the volume per atom (VASP's forum, topics 16781 and 20553).

    Args:
        vasprun: a run that VASP closed, of at least one step.
        outcar: path from `find_outcar`.
    """
    steps, ibrion = _ionic_settings(vasprun)
    if ibrion not in _RELAXATIONS:
        return f"IBRION = {ibrion} is not a relaxation"
    stated = None if outcar is None else _stated_convergence(outcar, vasprun.ionic_steps[-1])
    if outcar is None or stated is None:
        why = _misses_ediffg(vasprun)
    else:
        why = None if stated else f"{outcar.name} has no line '{_CONVERGED_LINE.decode()}'"
    if why is None:
        return None
    if len(vasprun.ionic_steps) >= steps:
        return "the relaxation reached its limit of steps"
    return f"the relaxation was stopped before it converged: {why}"


def find_outcar(output: Path) -> Path | None:
    """Return the OUTCAR of the run with the given vasprun.xml, None where there is none.

    VASP overwrites the OUTCAR of a run that `job_array.sh` starts again, so that only the last
    attempt has one.
    """
    found = re.fullmatch(r"vasprun\.xml(\.relax\d+)?(?:\.(?:gz|bz2|xz))?", output.name)
    if not found:
        return None
    names = [f"OUTCAR{found[1] or ''}{suffix}" for suffix in PACKED_SUFFIXES]
    paths = (output.with_name(name) for name in names)
    return next((path for path in paths if path.is_file()), None)


def _ionic_settings(vasprun: Vasprun) -> tuple[int, int]:
    """Return NSW and IBRION, with VASP's defaults."""
    steps = int(vasprun.parameters.get("NSW", 0))
    return steps, int(vasprun.parameters.get("IBRION", -1 if steps <= 0 else 0))


def _stated_convergence(outcar: Path, last: dict[str, Any]) -> bool | None:
    """Return whether OUTCAR has VASP's line on convergence.

    Args:
        outcar: the OUTCAR.
        last: last ionic step of the vasprun.xml.

    Returns:
        None where the OUTCAR cannot be read, or belongs to another run by its last energy.
    """
    stated, energy, tail = False, math.nan, b""
    try:
        with opened(outcar) as source:
            for block in source.blocks():
                window = tail + block
                stated = stated or _CONVERGED_LINE in window
                for found in _TOTAL_ENERGY.finditer(window):
                    energy = float(found[1])
                tail = window[-256:]
    except (RunProblem, OSError, ValueError):
        return None
    return stated if abs(energy - last.get("e_fr_energy", math.nan)) < _SAME_ENERGY else None


def _misses_ediffg(vasprun: Vasprun) -> str | None:
    """Return which quantity of the last step misses EDIFFG, None where all meet it."""
    parameters, last = vasprun.parameters, vasprun.ionic_steps[-1]
    limit = float(parameters.get("EDIFFG", 10 * float(parameters.get("EDIFF", 1e-4))))
    if limit > 0:
        return _misses_energy(vasprun.ionic_steps, limit)
    if not limit < 0:
        return f"EDIFFG = {limit:g} is not a criterion"
    isif = int(parameters.get("ISIF", 2))
    if isif in _IONS_MOVE:
        force = _largest_force(vasprun, last)
        if not force <= -limit:
            return f"the largest force is {force:.3g} eV/angstrom (EDIFFG = {limit:g})"
    if isif >= _FIRST_CELL_MOVES:
        volume = last["structure"].volume / len(last["structure"])
        stress = np.abs(np.asarray(last.get("stress", [math.nan]), dtype=float)).max()
        if not stress * volume * _EV_PER_KBAR_ANGSTROM3 <= -limit:
            return f"the largest stress is {stress:.3g} kbar (EDIFFG = {limit:g} eV per atom)"
    return None


def _misses_energy(steps: list[dict[str, Any]], limit: float) -> str | None:
    """Return why the last change of energy misses EDIFFG > 0, None where it meets it."""
    if len(steps) == 1:
        return f"one step has no change of energy to compare with EDIFFG = {limit:g}"
    last, before = (step.get("e_fr_energy", math.nan) for step in (steps[-1], steps[-2]))
    if not abs(last - before) < limit:
        return f"the last step changed the energy by {last - before:.3g} eV (EDIFFG = {limit:g})"
    return None


def _largest_force(vasprun: Vasprun, last: dict[str, Any]) -> float:
    """Return the largest norm of a force in eV/angstrom.

    Atoms that selective dynamics fixes in all three directions do not count.
    """
    forces = np.asarray(last.get("forces", [[math.nan] * 3]), dtype=float)
    may_move = vasprun.initial_structure.site_properties.get("selective_dynamics")
    if may_move is not None and len(may_move) == len(forces):
        forces = forces[np.asarray(may_move, dtype=bool).any(axis=1)]
    return float(np.linalg.norm(forces, axis=1).max()) if len(forces) else 0.0
