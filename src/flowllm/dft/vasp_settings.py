"""Comparison of a VASP run with the inputs that were written for it.

The comparison covers the settings that change energies so much that a hull of different settings
would be wrong: `compare_settings` lists them with reasons. Settings that only change how VASP
reaches the result (ALGO, LREAL, NELM, ISMEAR, SIGMA, POTIM, SYMPREC, NCORE, KPAR and others, which
custodian changes where VASP stops) are not compared.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure
from pymatgen.io.vasp import Incar, Kpoints, Poscar
from pymatgen.io.vasp.outputs import Vasprun

from flowllm.dft.bounded import opened
from flowllm.dft.inputs import VASP_SETS
from flowllm.dft.runs import RequestedRun, RunProblem
from flowllm.dft.vasp_convergence import is_static

_MIN_KPOINT_SHARE = 0.5
"""Smallest accepted share of the input set's number of k-points. The mesh is chosen for the initial
cell, and custodian may change it by one point per axis."""

_TOLERANCE_EV = 1e-2
"""eV; largest difference between two equal cutoffs or U values."""

_MAX_ENERGY_FACTOR = 2.0
"""Largest accepted EDIFFG > 0 relative to the input set's, which depends on the number of atoms."""

_MAX_FORCE = 0.1
"""eV/angstrom; largest accepted |EDIFFG| where EDIFFG is a force; the default of
prerelax.max_force."""

_SAME_POSITION = 1e-4
"""Largest difference of equal coordinates, fractional or in angstrom (8 decimals are written)."""

_NOT_SELF_CONSISTENT = (2, 3, 4)
"""Values of IALGO for ALGO = Nothing, Eigenval and Subrot."""


@dataclass(frozen=True)
class ExpectedInputs:
    """The inputs that a run should have.

    Attributes:
        name: name for messages: the input set, or the INCAR of the folder.
        incar: settings by INCAR tag.
        elements: symbols in the order of the settings that have one number per element.
        mesh: k-points per axis; None where they are unknown.
        potcar_symbols: pseudopotentials; None where they are unknown.
    """

    name: str
    incar: Mapping[str, Any]
    elements: list[str]
    mesh: tuple[int, ...] | None
    potcar_symbols: list[str] | None


def check_settings(
    vasprun: Vasprun, requested: RequestedRun, folder: Path, name: str
) -> str | None:
    """Compare a run with the inputs that were written for it.

    Args:
        vasprun: the run.
        requested: the run that the manifest requests.
        folder: folder of the run; its INCAR is compared where the manifest names no input set.
        name: file name of the result, for messages.

    Returns:
        Why the run relaxes less than the input set does, so that its energy is an upper bound of
        the relaxed crystal's energy; None where it relaxes as much.

    Raises:
        RunProblem: the run has other settings (`other_settings`); the message has each key with the
            found and the expected value.
    """
    inputs = _expected_inputs(vasprun, requested, folder)
    differences = [*_unsuitable_settings(vasprun), *compare_settings(vasprun, inputs)]
    if differences:
        raise RunProblem("other_settings", f"{name}: {'; '.join(differences)}")
    if int(inputs.incar.get("ISIF", 0)) != 3:
        return None
    if is_static(vasprun):
        if _starts_from_inputs(vasprun, requested, folder):
            return f"a static run of the structure of the inputs, {inputs.name} relaxes it"
        return None
    return _relaxes_less(vasprun, inputs)


def _expected_inputs(vasprun: Vasprun, requested: RequestedRun, folder: Path) -> ExpectedInputs:
    """Return the inputs of the requested input set, else those of the INCAR in the folder."""
    structure = vasprun.initial_structure
    if requested.input_set in VASP_SETS:
        with warnings.catch_warnings():
            # pymatgen's warnings on the set were shown when dft_inputs wrote the inputs.
            warnings.simplefilter("ignore")
            written = VASP_SETS[requested.input_set](structure)
            mesh = tuple(written.kpoints.kpts[0]) if written.kpoints else None
            elements = list(written.poscar.site_symbols)
            potcars = requested.potcar_symbols or list(written.potcar_symbols)
            return ExpectedInputs(requested.input_set, dict(written.incar), elements, mesh, potcars)
    elements = list(dict.fromkeys(site.specie.symbol for site in structure))
    incar = _incar_of(folder)
    return ExpectedInputs(
        "the INCAR in the folder", incar, elements, None, requested.potcar_symbols
    )


def _incar_of(folder: Path) -> dict[str, Any]:
    """Return the settings of the INCAR in a folder, empty where none can be read."""
    try:
        with opened(folder / "INCAR") as source:
            return dict(Incar.from_str(source.read().decode()))
    # pymatgen raises exceptions of many types. Without an INCAR there is nothing to compare.
    except Exception:
        return {}


def _unsuitable_settings(vasprun: Vasprun) -> Iterator[str]:
    """Yield settings that no input set for total energies has."""
    parameters, incar = vasprun.parameters, vasprun.incar
    if int(parameters.get("ICHARG", 0)) >= 10 or parameters.get("IALGO") in _NOT_SELF_CONSISTENT:
        yield "the run is not self-consistent (ICHARG or ALGO)"
    if "NELECT" in incar:
        yield f"NELECT = {incar['NELECT']:g} is set, expected a neutral cell"
    pressure = float(parameters.get("PSTRESS", 0.0))
    if pressure != 0.0:
        yield f"PSTRESS = {pressure:g} kbar, expected 0"
    for key in ("LSORBIT", "LNONCOLLINEAR"):
        if parameters.get(key):
            yield f"{key} is on, expected off"


def compare_settings(vasprun: Vasprun, inputs: ExpectedInputs) -> Iterator[str]:
    """Yield each setting whose energies cannot be compared with those of the inputs.

    | setting | reason, and the change of energy per atom |
    |---|---|
    | POTCAR | energies are relative to the atoms of the pseudopotential: eV between Fe and Fe_pv |
    | METAGGA, GGA, U | another functional: up to eV |
    | ENCUT, PREC | plane waves and grids: tens of meV |
    | LASPH | aspherical terms: tens of meV where d or f shells are open |
    | ISPIN | a magnetic crystal without its moments: up to eV |
    | k-points | sampling: tens of meV in metals |

    The release of a POTCAR (its date) is not compared, because the manifest does not name it.
    """
    parameters, wanted = vasprun.parameters, inputs.incar
    yield from _compare_potcars(vasprun, inputs)
    found_cutoff = float(parameters.get("ENMAX", vasprun.incar.get("ENCUT", math.nan)))
    if "ENCUT" in wanted and not abs(found_cutoff - float(wanted["ENCUT"])) < _TOLERANCE_EV:
        yield _difference("ENCUT", f"{found_cutoff:g} eV", f"{float(wanted['ENCUT']):g}", inputs)
    yield from _compare_functional(vasprun, inputs)
    yield from _compare_hubbards(vasprun, inputs)
    precision = str(parameters.get("PREC", "")).strip().lower()
    if str(wanted.get("PREC", "")).lower().startswith("a") and precision[:1] not in ("a", "h"):
        yield _difference("PREC", precision, wanted["PREC"], inputs)
    if int(wanted.get("ISPIN", 1)) == 2 and int(parameters.get("ISPIN", 1)) != 2:
        yield _difference("ISPIN", parameters.get("ISPIN", 1), 2, inputs)
    if wanted.get("LASPH") and not parameters.get("LASPH"):
        yield _difference("LASPH", "off", "on", inputs)
    mesh = _mesh(vasprun.kpoints) if inputs.mesh else None
    if mesh and math.prod(mesh) < _MIN_KPOINT_SHARE * math.prod(inputs.mesh or ()):
        yield _difference("k-points", _mesh_text(mesh), _mesh_text(inputs.mesh or ()), inputs)


def _difference(key: str, found: object, expected: object, inputs: ExpectedInputs) -> str:
    """Return the message for one setting."""
    return f"{key} = {found}, expected {expected} ({inputs.name})"


def _compare_potcars(vasprun: Vasprun, inputs: ExpectedInputs) -> Iterator[str]:
    """Yield a message where the symbols of the POTCARs differ."""
    if inputs.potcar_symbols is None:
        return
    titles = [title.split() for title in vasprun.potcar_symbols]
    found = sorted({title[1] if len(title) > 1 else "?" for title in titles})
    expected = sorted(set(inputs.potcar_symbols))
    if found != expected:
        yield f"POTCAR = {', '.join(found)}, expected {', '.join(expected)} (manifest)"


def _compare_functional(vasprun: Vasprun, inputs: ExpectedInputs) -> Iterator[str]:
    """Yield a message for METAGGA and GGA where they differ."""
    for key, defaults in (("METAGGA", ("", "--", "NONE")), ("GGA", ("", "--", "PE"))):
        found, expected = (
            "" if str(given.get(key, "")).strip().upper() in defaults else str(given[key]).upper()
            for given in (vasprun.incar, inputs.incar)
        )
        if found != expected:
            yield _difference(key, found or "not set", expected or "not set", inputs)


def _compare_hubbards(vasprun: Vasprun, inputs: ExpectedInputs) -> Iterator[str]:
    """Yield messages where U - J or the shell l of an element, or LDAUTYPE, differs."""
    if not inputs.incar:
        return
    expected = _hubbards(inputs.incar, inputs.elements)
    elements = [title.split()[1].split("_")[0] for title in vasprun.potcar_symbols]
    try:
        found = _hubbards({"LDAU": vasprun.parameters.get("LDAU")} | dict(vasprun.incar), elements)
    except ValueError:
        yield f"LDAUU, LDAUJ or LDAUL does not have one number per element ({', '.join(elements)})"
        return
    for element in sorted({*expected, *found}):
        of_run, of_inputs = found.get(element), expected.get(element)
        if not _is_same_hubbard(of_run, of_inputs):
            yield _difference(
                f"U of {element}", _hubbard_text(of_run), _hubbard_text(of_inputs), inputs
            )
    types = [_integer(given, "LDAUTYPE", 2) for given in (vasprun.incar, inputs.incar)]
    if found and types[0] != types[1]:
        yield _difference("LDAUTYPE", types[0], types[1], inputs)


def _integer(given: Mapping[str, Any], key: str, default: int) -> int:
    """Return an integer setting; VASP 5 writes some of them as lists with one number."""
    value = given.get(key, default)
    return int(value[0] if isinstance(value, list) else value)


def _hubbards(incar: Mapping[str, Any], elements: list[str]) -> dict[str, tuple[float, int]]:
    """Return U - J in eV and the shell l by element symbol, for elements with a U or J.

    Raises:
        ValueError: a setting does not have one number per element.
    """
    if not incar.get("LDAU"):
        return {}
    us = incar.get("LDAUU", [])
    js = incar.get("LDAUJ") or [0.0] * len(us)
    shells = incar.get("LDAUL") or [2] * len(us)
    values = zip(elements, us, js, shells, strict=True)
    return {name: (float(u) - float(j), int(shell)) for name, u, j, shell in values if u or j}


def _is_same_hubbard(one: tuple[float, int] | None, other: tuple[float, int] | None) -> bool:
    """Return whether two elements have the same shell, and U values equal within the tolerance."""
    if one is None or other is None:
        return False
    return one[1] == other[1] and abs(one[0] - other[0]) < _TOLERANCE_EV


def _hubbard_text(hubbard: tuple[float, int] | None) -> str:
    """Return U and shell for messages."""
    return "none" if hubbard is None else f"{hubbard[0]:g} eV (l = {hubbard[1]})"


def _mesh(kpoints: Kpoints) -> tuple[int, ...] | None:
    """Return the divisions of an automatic mesh, None for a list of points."""
    automatic = kpoints.style in (Kpoints.supported_modes.Gamma, Kpoints.supported_modes.Monkhorst)
    return tuple(int(number) for number in kpoints.kpts[0]) if automatic else None


def _mesh_text(mesh: tuple[int, ...]) -> str:
    """Return a mesh for messages, e.g. 9x9x9."""
    return "x".join(str(number) for number in mesh)


def _starts_from_inputs(vasprun: Vasprun, requested: RequestedRun, folder: Path) -> bool:
    """Return whether a run has the structure that `dft_inputs` wrote.

    The file is POSCAR.orig after a restart, else POSCAR. Where the manifest has its hash, a POSCAR
    with another content is not the one that was written.
    """
    for name in ("POSCAR.orig", "POSCAR"):
        written, found = _poscar_of(folder / name)
        if written is not None and requested.structure_hash in (None, found):
            return _is_same_structure(vasprun.initial_structure, written)
    return False


def _poscar_of(path: Path) -> tuple[Structure | None, str]:
    """Return the structure and the SHA-256 of a POSCAR, None and no text where it has none."""
    try:
        with opened(path) as source:
            content = source.read()
        return Poscar.from_str(content.decode()).structure, hashlib.sha256(content).hexdigest()
    # pymatgen raises exceptions of many types. Without a POSCAR there is nothing to compare.
    except Exception:
        return None, ""


def _is_same_structure(one: Structure, other: Structure) -> bool:
    """Return whether two structures have the same cell and atoms, in the same order."""
    if list(one.species) != list(other.species):
        return False
    moved = one.frac_coords - other.frac_coords
    moved -= np.round(moved)
    strained = one.lattice.matrix - other.lattice.matrix
    return bool(max(np.abs(moved).max(), np.abs(strained).max()) < _SAME_POSITION)


def _relaxes_less(vasprun: Vasprun, inputs: ExpectedInputs) -> str | None:
    """Return why a relaxation relaxes less than one of all atoms and the cell, None if it does not.

    Args:
        vasprun: a run that is not static.
        inputs: inputs with ISIF = 3.
    """
    isif = int(vasprun.parameters.get("ISIF", 2))
    if isif != 3:
        return f"ISIF = {isif} fixes a part of the crystal, {inputs.name} relaxes atoms and cell"
    if "selective_dynamics" in vasprun.initial_structure.site_properties:
        return f"selective dynamics fixes atoms, {inputs.name} relaxes all"
    found = float(vasprun.parameters.get("EDIFFG", 0.0))
    expected = float(inputs.incar.get("EDIFFG", 10 * float(inputs.incar.get("EDIFF", 1e-4))))
    limit = _MAX_ENERGY_FACTOR * expected if found > 0 and expected > 0 else _MAX_FORCE
    if abs(found) > limit:
        return f"EDIFFG = {found:g} is looser than {expected:g} ({inputs.name})"
    return None
