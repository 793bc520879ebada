"""VASP results: relaxations of known steps, made here or from the real file in ../shared."""

import gzip
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

VASPRUN = Path(__file__).parents[3] / "shared" / "data" / "vasp" / "vasprun.xml.gz"
ENERGY = -153.0123588
"""eV per cell Li20Cl20, in the one ionic step of the file."""

STEP_END = "</calculation>"


@cache
def vasprun_text() -> str:
    """Return a real run of Li20Cl20, without the van der Waals term in its list of settings."""
    if not VASPRUN.exists():
        pytest.skip(f"{VASPRUN} is not on this machine")
    text = gzip.decompress(VASPRUN.read_bytes()).decode("ISO-8859-1")
    lines = [line for line in text.splitlines(keepends=True) if 'name="IVDW"' not in line]
    assert len(lines) < len(text.splitlines())
    return "".join(lines)


@cache
def _slim_parts() -> tuple[str, str, str]:
    """Return the text before the ionic step, the step without bands and densities, the rest."""
    text = re.sub(r"  <(eigenvalues|dos|projected)>.*?\n  </\1>\n", "", vasprun_text(), flags=re.S)
    start, end = text.index(" <calculation>"), text.index(STEP_END) + len(STEP_END)
    return text[:start], text[start:end] + "\n", text[end:].lstrip("\n")


def relaxation(
    energies: Sequence[float],
    bad: Sequence[int] = (),
    max_steps: int = 99,
    ediffg: float = 1.1,
) -> str:
    """Return the vasprun.xml of a relaxation.

    Args:
        energies: eV per cell, one per step.
        bad: numbers from 1 of the steps whose electronic loop hits its limit.
        max_steps: NSW.
        ediffg: eV; larger than the steps of these tests, so that the last ends the relaxation.
    """
    head, step, tail = _slim_parts()
    num_loops = step.count("<scstep>")
    head = head.replace('name="NELM">   400', f'name="NELM">{num_loops:6d}')
    head = head.replace('name="NSW">     0', f'name="NSW">{max_steps:6d}')
    head = head.replace('name="IBRION">    -1', 'name="IBRION">     2')
    head = re.sub(r'name="EDIFFG">[ 0-9.]+', f'name="EDIFFG">{ediffg:16.8f}', head)
    shorter = re.sub(r"  <scstep>.*?</scstep>\n", "", step, count=1, flags=re.S)
    steps = []
    for number, energy in enumerate(energies, start=1):
        text = step if number in bad else shorter
        steps.append(text.replace(f"{ENERGY:.8f}", f"{energy:.8f}"))
    return head + "".join(steps) + tail


@dataclass(frozen=True)
class Step:
    """One ionic step of iron oxide.

    Attributes:
        energy: eV of the cell; a string is written as it is.
        force: eV/angstrom, on iron along x, and the other way on oxygen.
        stress: kbar, isotropic.
        loops: electronic steps.
    """

    energy: float | str
    force: float = 0.0
    stress: float = 0.0
    loops: int = 5


IRON_OXIDE = {
    "ENCUT": 520.0,
    "PREC": "Accurate",
    "ALGO": "Fast",
    "ISPIN": 2,
    "NELM": 100,
    "NSW": 99,
    "IBRION": 2,
    "ISIF": 3,
    "EDIFF": 1e-4,
    "EDIFFG": 1e-3,
    "ISMEAR": -5,
    "SIGMA": 0.05,
    "LREAL": "Auto",
    "LASPH": True,
    "LDAU": True,
    "LDAUTYPE": 2,
    "LDAUL": [2, 0],
    "LDAUU": [5.3, 0.0],
    "LDAUJ": [0.0, 0.0],
}
"""Settings of MPRelaxSet for rock salt FeO, and VASP's default EDIFFG for them."""

IRON_CELL = 2.15
"""Half of the lattice constant of rock salt, angstrom."""


def made_run(
    steps: Sequence[Step],
    *,
    potcars: Sequence[str] = ("PAW_PBE Fe_pv 06Sep2000", "PAW_PBE O 08Apr2002"),
    mesh: Sequence[int] = (8, 8, 8),
    fixed: Sequence[str] = (),
    cell: str | None = None,
    **settings: Any,
) -> str:
    """Return the vasprun.xml of a relaxation of rock salt FeO, two atoms, as VASP writes it.

    Args:
        steps: its ionic steps.
        potcars: titles.
        mesh: k-points along each axis.
        fixed: selective dynamics of each atom, e.g. `T T F`.
        cell: three lines of lattice vectors in place of FeO's.
        settings: INCAR tags that differ from `IRON_OXIDE`; None leaves one out.
    """
    incar = {key: value for key, value in (IRON_OXIDE | settings).items() if value is not None}
    parameters = {"GGA": "--", "PSTRESS": 0.0} | incar | {"ENMAX": incar["ENCUT"]}
    parameters |= {"LHFCALC": False, "AEXX": 0.0, "HFSCREEN": 0.0, "LDAU": incar.get("LDAU", False)}
    a = IRON_CELL
    cell = cell or _rows([(0, a, a), (a, 0, a), (a, a, 0)])
    structure = _structure(cell, fixed)
    parts = [
        '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n <generator>',
        '  <i name="version" type="string">5.4.4  </i>\n </generator>',
        f" <incar>\n{_tags(incar)} </incar>\n <kpoints>",
        '  <generation param="Gamma">',
        f'   <v type="int" name="divisions"> {" ".join(map(str, mesh))} </v>\n  </generation>',
        f'  <varray name="kpointlist" >\n{_rows([(0, 0, 0)])}  </varray>',
        '  <varray name="weights" >\n   <v> 1.0 </v>\n  </varray>\n </kpoints>',
        f" <parameters>\n{_tags(parameters)} </parameters>",
        f' {_atominfo(potcars)}\n <structure name="initialpos" >\n{structure} </structure>',
        *(_calculation(step, structure) for step in steps),
        f' <structure name="finalpos" >\n{structure} </structure>\n</modeling>\n',
    ]
    return "\n".join(parts)


def _tags(tags: Mapping[str, Any]) -> str:
    """Return lines of INCAR tags."""
    lines = []
    for name, value in tags.items():
        if isinstance(value, list):
            lines.append(f'  <v name="{name}"> {" ".join(str(number) for number in value)} </v>')
        else:
            kinds = {bool: "logical", int: "int", str: "string"}
            kind = f'type="{kinds[type(value)]}" ' if type(value) in kinds else ""
            shown = {True: "T", False: "F"}[value] if isinstance(value, bool) else value
            shown = f"{shown:.8f}" if isinstance(value, float) else shown
            lines.append(f'  <i {kind}name="{name}"> {shown} </i>')
    return "".join(f"{line}\n" for line in lines)


def _rows(rows: Sequence[Sequence[float]]) -> str:
    return "".join(f"   <v> {' '.join(f'{x:.8f}' for x in row)} </v>\n" for row in rows)


def _atominfo(potcars: Sequence[str]) -> str:
    elements = [title.split()[1].split("_")[0] for title in potcars]
    atoms = "".join(f"<rc><c>{name}</c><c> 1</c></rc>" for name in elements)
    kinds = "".join(
        f"<rc><c>1</c><c>{name}</c><c>1.0</c><c>6.0</c><c> {title} </c></rc>"
        for name, title in zip(elements, potcars, strict=True)
    )
    return (
        f'<atominfo>\n  <array name="atoms" ><set>{atoms}</set></array>\n'
        f'  <array name="atomtypes" ><set>{kinds}</set></array>\n </atominfo>'
    )


def _structure(cell: str, fixed: Sequence[str]) -> str:
    volume = 2 * IRON_CELL**3
    text = f'  <crystal>\n   <varray name="basis" >\n{cell}   </varray>\n'
    text += f'   <i name="volume"> {volume:.8f} </i>\n  </crystal>\n'
    text += f'  <varray name="positions" >\n{_rows([(0, 0, 0), (0.5, 0.5, 0.5)])}  </varray>\n'
    if fixed:
        flags = "".join(f'   <v type="logical" > {flag} </v>\n' for flag in fixed)
        text += f'  <varray name="selective" type="logical" >\n{flags}  </varray>\n'
    return text


def _calculation(step: Step, structure: str) -> str:
    shown = step.energy if isinstance(step.energy, str) else f"{step.energy:.8f}"
    names = ("e_fr_energy", "e_wo_entrp", "e_0_energy")
    energies = "".join(f'    <i name="{name}"> {shown} </i>\n' for name in names)
    loop = f"  <scstep>\n   <energy>\n{energies}   </energy>\n  </scstep>\n"
    forces = _rows([(step.force, 0, 0), (-step.force, 0, 0)])
    stress = _rows([[step.stress * (row == column) for column in range(3)] for row in range(3)])
    return (
        f" <calculation>\n{loop * step.loops}  <structure>\n{structure}  </structure>\n"
        f'  <varray name="forces" >\n{forces}  </varray>\n'
        f'  <varray name="stress" >\n{stress}  </varray>\n'
        f"  <energy>\n{energies}  </energy>\n </calculation>"
    )
