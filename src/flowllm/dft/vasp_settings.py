"""Whether a VASP run is on the energy scale of the inputs that were written for it.

Compared is what moves the energies of a crystal, or of all crystals of an element, by more than the
hull can bear: `compare_settings` has the list and the reasons. What changes how VASP gets there
(ALGO, LREAL, NELM, ISMEAR, SIGMA, POTIM, SYMPREC, NCORE, KPAR and others, which custodian changes
where VASP stops) is not compared.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymatgen.io.vasp import Incar, Kpoints
from pymatgen.io.vasp.outputs import Vasprun

from flowllm.dft.bounded import opened
from flowllm.dft.inputs import VASP_SETS
from flowllm.dft.runs import AskedRun, RunProblem

_FEWER_KPOINTS = 0.5
"""Share of the input set's mesh below which a mesh is another method. The mesh is chosen for the
initial cell, and custodian may move it by a point per axis."""

_SAME_EV = 1e-2
"""eV by which two cutoffs, or two U, are the same; VASP writes eight decimals."""

_LOOSER_ENERGY = 2.0
"""Times the input set's EDIFFG, which goes with the number of atoms of the cell."""

_LOOSEST_FORCE = 0.1
"""eV/angstrom, where the one EDIFFG is a force and the other an energy: prerelax.max_force."""

_NOT_SELF_CONSISTENT = (2, 3, 4)
"""IALGO: of ALGO = Nothing, Eigenval, Subrot."""


@dataclass(frozen=True)
class Inputs:
    """What a run was asked for.

    Attributes:
        name: what the user knows it by: the input set or the folder's INCAR.
        incar: its settings.
        elements: symbols in the order of the settings that have a number per element.
        mesh: k-points along each axis; None where it is not known.
        potcar_symbols: of the manifest; None where it does not say.
    """

    name: str
    incar: Mapping[str, Any]
    elements: list[str]
    mesh: tuple[int, ...] | None
    potcar_symbols: list[str] | None


def check_settings(vasprun: Vasprun, asked: AskedRun, folder: Path, name: str) -> str | None:
    """Compare a run with the inputs that were written for it.

    Args:
        vasprun: the run.
        asked: the manifest's row.
        folder: the run's folder, whose INCAR counts where the manifest names no input set.
        name: what the user knows the result by.

    Returns:
        Why the run's relaxation falls short of the input set's, so that its energy is an upper
        bound of the relaxed crystal's; None where it does not.

    Raises:
        RunProblem: it has other settings (`other_settings`), with each key, what was found and
            what was expected.
    """
    inputs = _inputs_of(vasprun, asked, folder)
    differences = [*_by_themselves(vasprun), *compare_settings(vasprun, inputs)]
    if differences:
        raise RunProblem("other_settings", f"{name}: {'; '.join(differences)}")
    return _cut_short_by_settings(vasprun, inputs)


def _inputs_of(vasprun: Vasprun, asked: AskedRun, folder: Path) -> Inputs:
    structure = vasprun.initial_structure
    if asked.input_set in VASP_SETS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pymatgen's about the set, said when it was written
            written = VASP_SETS[asked.input_set](structure)
            mesh = tuple(written.kpoints.kpts[0]) if written.kpoints else None
            elements = list(written.poscar.site_symbols)
            potcars = asked.potcar_symbols or list(written.potcar_symbols)
            return Inputs(asked.input_set, dict(written.incar), elements, mesh, potcars)
    elements = list(dict.fromkeys(site.specie.symbol for site in structure))
    incar = _incar_of(folder)
    return Inputs("the folder's INCAR", incar, elements, None, asked.potcar_symbols)


def _incar_of(folder: Path) -> dict[str, Any]:
    """The folder's INCAR; empty where it has none that can be read."""
    try:
        with opened(folder / "INCAR") as source:
            return dict(Incar.from_str(source.read().decode()))
    # It may hold anything; without one there is nothing to compare with.
    except Exception:
        return {}


def _by_themselves(vasprun: Vasprun) -> Iterator[str]:
    """What no input set of a total energy has."""
    parameters, incar = vasprun.parameters, vasprun.incar
    if int(parameters.get("ICHARG", 0)) >= 10 or parameters.get("IALGO") in _NOT_SELF_CONSISTENT:
        yield "the run is not self-consistent (ICHARG or ALGO)"
    if "NELECT" in incar:
        yield f"NELECT = {incar['NELECT']:g} is set, expected is the neutral cell"
    pressure = float(parameters.get("PSTRESS", 0.0))
    if pressure != 0.0:
        yield f"PSTRESS = {pressure:g} kbar, expected 0"
    for key in ("LSORBIT", "LNONCOLLINEAR"):
        if parameters.get(key):
            yield f"{key} is on, expected off"


def compare_settings(vasprun: Vasprun, inputs: Inputs) -> Iterator[str]:
    """Yield each method that puts the run on another energy scale.

    POTCAR: energies count from the atoms of the pseudopotential, eV per atom apart between Fe and
    Fe_pv. METAGGA, GGA and U: another functional, up to eV per atom. ENCUT and PREC: the
    plane waves and the grids, tens of meV. LASPH: aspherical terms, tens of meV where d or f states
    are open. ISPIN: a magnet without its moments, up to eV per atom. The mesh of k-points: tens of
    meV in metals. The release of a POTCAR (its date) is not compared: no manifest names it.
    """
    parameters, wanted = vasprun.parameters, inputs.incar
    yield from _compare_potcars(vasprun, inputs)
    found_cutoff = float(parameters.get("ENMAX", vasprun.incar.get("ENCUT", math.nan)))
    if "ENCUT" in wanted and not abs(found_cutoff - float(wanted["ENCUT"])) < _SAME_EV:
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
    if mesh and math.prod(mesh) < _FEWER_KPOINTS * math.prod(inputs.mesh or ()):
        yield _difference("k-points", _times(mesh), _times(inputs.mesh or ()), inputs)


def _difference(key: str, found: object, expected: object, inputs: Inputs) -> str:
    return f"{key} = {found}, expected {expected} ({inputs.name})"


def _compare_potcars(vasprun: Vasprun, inputs: Inputs) -> Iterator[str]:
    if inputs.potcar_symbols is None:
        return
    titles = [title.split() for title in vasprun.potcar_symbols]
    found = sorted({title[1] if len(title) > 1 else "?" for title in titles})
    expected = sorted(set(inputs.potcar_symbols))
    if found != expected:
        yield f"POTCAR = {', '.join(found)}, expected {', '.join(expected)} (manifest)"


def _compare_functional(vasprun: Vasprun, inputs: Inputs) -> Iterator[str]:
    for key, plain in (("METAGGA", ("", "--", "NONE")), ("GGA", ("", "--", "PE"))):
        found, expected = (
            "" if str(given.get(key, "")).strip().upper() in plain else str(given[key]).upper()
            for given in (vasprun.incar, inputs.incar)
        )
        if found != expected:
            yield _difference(key, found or "not set", expected or "not set", inputs)


def _compare_hubbards(vasprun: Vasprun, inputs: Inputs) -> Iterator[str]:
    """U less J of each element, and the l that it acts on."""
    if not inputs.incar:
        return
    expected = _hubbards(inputs.incar, inputs.elements)
    elements = [title.split()[1].split("_")[0] for title in vasprun.potcar_symbols]
    try:
        found = _hubbards({"LDAU": vasprun.parameters.get("LDAU")} | dict(vasprun.incar), elements)
    except ValueError:
        yield f"LDAUU, LDAUJ and LDAUL have not one number per element ({', '.join(elements)})"
        return
    for element in sorted({*expected, *found}):
        theirs, ours = found.get(element), expected.get(element)
        if theirs is None or ours is None or theirs[1] != ours[1] or not _same(theirs[0], ours[0]):
            yield _difference(f"U of {element}", _said(theirs), _said(ours), inputs)
    kinds = [_number(given, "LDAUTYPE", 2) for given in (vasprun.incar, inputs.incar)]
    if found and kinds[0] != kinds[1]:
        yield _difference("LDAUTYPE", *kinds, inputs)


def _number(given: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number; VASP 5 writes some of them as lists of one."""
    value = given.get(key, default)
    return int(value[0] if isinstance(value, list) else value)


def _hubbards(incar: Mapping[str, Any], elements: list[str]) -> dict[str, tuple[float, int]]:
    """U less J in eV and l, of each element that has a U.

    Raises:
        ValueError: the settings have not one number per element.
    """
    if not incar.get("LDAU"):
        return {}
    us = incar.get("LDAUU", [])
    js = incar.get("LDAUJ") or [0.0] * len(us)
    shells = incar.get("LDAUL") or [2] * len(us)
    values = zip(elements, us, js, shells, strict=True)
    return {name: (float(u) - float(j), int(shell)) for name, u, j, shell in values if u or j}


def _same(one: float, other: float) -> bool:
    return abs(one - other) < _SAME_EV


def _said(hubbard: tuple[float, int] | None) -> str:
    return "none" if hubbard is None else f"{hubbard[0]:g} eV (l = {hubbard[1]})"


def _mesh(kpoints: Kpoints) -> tuple[int, ...] | None:
    """Divisions of an automatic mesh; None for a list of points, whose full mesh is not known."""
    automatic = kpoints.style in (Kpoints.supported_modes.Gamma, Kpoints.supported_modes.Monkhorst)
    return tuple(int(number) for number in kpoints.kpts[0]) if automatic else None


def _times(mesh: tuple[int, ...]) -> str:
    return "x".join(str(number) for number in mesh)


def _cut_short_by_settings(vasprun: Vasprun, inputs: Inputs) -> str | None:
    """Why a relaxation that met its own criterion falls short of the input set's."""
    if int(inputs.incar.get("ISIF", 0)) != 3 or int(vasprun.parameters.get("NSW", 0)) <= 0:
        return None
    isif = int(vasprun.parameters.get("ISIF", 2))
    if isif != 3:
        return f"ISIF = {isif} held a part of the crystal, {inputs.name} relaxes atoms and cell"
    if "selective_dynamics" in vasprun.initial_structure.site_properties:
        return f"selective dynamics held atoms, {inputs.name} relaxes all"
    found = float(vasprun.parameters.get("EDIFFG", 0.0))
    expected = float(inputs.incar.get("EDIFFG", 10 * float(inputs.incar.get("EDIFF", 1e-4))))
    loosest = _LOOSER_ENERGY * expected if found > 0 and expected > 0 else _LOOSEST_FORCE
    if abs(found) > loosest:
        return f"EDIFFG = {found:g} is looser than {expected:g} ({inputs.name})"
    return None
