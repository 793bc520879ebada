"""Crystals as pictures: the cell that is drawn, its atoms, bonds and edges, and their colors."""

import itertools
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import spglib
import yaml
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Element, Lattice, Structure

from flowllm.data.spglib_calls import or_none

SYMPREC = 0.1
"""Tolerance of the space group in angstrom, as used by the Materials Project."""

BOND_FACTOR = 1.2
"""Atoms closer than this factor times the sum of their covalent radii are bonded."""

EDGE = 0.02
"""Fractional distance to a face of the cell within which an atom is repeated on the other face."""

MAX_CELL_ATOMS = 40
"""Atoms of a conventional cell up to which it is drawn in place of the given cell."""

SUPERCELL = 2
"""Cells of the supercell along each axis."""

MAX_SUPERCELL_ATOMS = 400
"""Atoms up to which a supercell is drawn."""

TURN, TILT = 0.4, 0.25
"""Angles of the first view in radians, about the vertical and the horizontal axis."""

Scene = dict[str, Any]


def scenes(structure: Structure) -> list[Scene]:
    """Return what is drawn of a crystal: one cell and, if it is small enough, a supercell."""
    cell = drawn_cell(structure)
    repeats = [1]
    if len(cell) * SUPERCELL**3 <= MAX_SUPERCELL_ATOMS:
        repeats.append(SUPERCELL)
    return [scene(cell, repeat) for repeat in repeats]


def drawn_cell(structure: Structure) -> Structure:
    """Return the conventional cell of a crystal with its own atoms, c upwards.

    The positions are not symmetrized. A crystal without a space group, or with a large
    conventional cell, keeps its cell.
    """
    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    found = or_none(
        spglib.standardize_cell,
        cell,  # type: ignore[arg-type]  # its stub allows lists only
        to_primitive=False,
        no_idealize=True,
        symprec=SYMPREC,
    )
    if found is not None and len(found[2]) > MAX_CELL_ATOMS:
        found = None
    matrix, coords, numbers = found or cell
    upright = Lattice.from_parameters(*Lattice(matrix).parameters)
    return Structure(upright, [Element.from_Z(int(z)) for z in numbers], coords)


def scene(structure: Structure, repeat: int = 1) -> Scene:
    """Return a structure as coordinates in angstrom, with the center of what is drawn at 0.

    Args:
        structure: the crystal; atoms on a face of the drawn cells are repeated on the other face.
        repeat: number of cells along each axis.

    Returns:
        `atoms` [x, y, z, kind], `kinds` [symbol, color, radius], `bonds` [atom, atom], `edges`
        [x, y, z, x, y, z], `size`, the distance of the farthest corner from 0, and `view`, the
        rows of the first rotation to right, up and towards the reader.
    """
    matrix = structure.lattice.matrix
    center = repeat * matrix.sum(axis=0) / 2
    symbols = sorted({site.specie.symbol for site in structure})
    positions, kinds = [], []
    for site in structure:
        wrapped = np.mod(site.frac_coords + EDGE, 1) - EDGE
        for shift in itertools.product(range(repeat + 1), repeat=3):
            shifted = wrapped + shift
            if (shifted <= repeat + EDGE).all():
                positions.append(shifted @ matrix - center)
                kinds.append(symbols.index(site.specie.symbol))
    corners = repeat * np.array(list(itertools.product((0, 1), repeat=3))) @ matrix - center
    return {
        "atoms": [[*_rounded(xyz), kind] for xyz, kind in zip(positions, kinds, strict=True)],
        "kinds": [[symbol, _color(symbol), _radius(symbol)] for symbol in symbols],
        "bonds": _bonds(np.array(positions), symbols, np.array(kinds)),
        "edges": [_rounded(edge) for edge in _edges(matrix, center, repeat)],
        "size": round(float(np.linalg.norm(corners, axis=1).max()), 2),
        "view": _rounded(_first_view().ravel(), 4),
    }


def _edges(matrix: np.ndarray, center: np.ndarray, repeat: int) -> list[list[float]]:
    """Return the lines along the edges of the cells, each through all cells of its axis."""
    edges = []
    for axis in range(3):
        for across in itertools.product(range(repeat + 1), repeat=2):
            start = np.insert(np.array(across, dtype=float), axis, 0)
            end = np.insert(np.array(across, dtype=float), axis, repeat)
            edges.append([*(start @ matrix - center), *(end @ matrix - center)])
    return edges


def _bonds(positions: np.ndarray, symbols: Sequence[str], kinds: np.ndarray) -> list[list[int]]:
    """Return the pairs of bonded atoms; two metal atoms are bonded only if all atoms are metals."""
    radii = np.array([float(CovalentRadius.radius.get(symbol, 1.5)) for symbol in symbols])[kinds]
    metals = np.array([Element(symbol).is_metal for symbol in symbols])[kinds]
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
    bonded = distances < BOND_FACTOR * (radii[:, None] + radii)
    if not metals.all():
        bonded &= ~(metals[:, None] & metals)
    found: list[list[int]] = np.argwhere(np.triu(bonded, 1)).tolist()
    return found


def _first_view() -> np.ndarray:
    """Return the rotation to right, up and towards the reader, with c up and slightly turned."""
    (cx, sx), (cy, sy) = ((np.cos(angle), np.sin(angle)) for angle in (TILT, TURN))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    upright = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    view: np.ndarray = about_x @ about_y @ upright
    return view


def formula_parts(formula: str) -> list[tuple[str, str]]:
    """Return a formula as pairs of letters and the number behind them, e.g. `SrTiO3`."""
    return re.findall(r"([^\d.]+)([\d.]*)", formula)


def _radius(symbol: str) -> float:
    """Return the drawn radius of an atom in angstrom, 0.38 times its atomic radius."""
    radius = Element(symbol).atomic_radius
    return round(0.38 * float(radius), 3) if radius else 0.5


@cache
def _colors() -> dict[str, list[int]]:
    text = files("pymatgen.vis").joinpath("ElementColorSchemes.yaml").read_text()
    colors: dict[str, list[int]] = yaml.safe_load(text)["VESTA"]
    return colors


def _color(symbol: str) -> str:
    red, green, blue = _colors().get(symbol, (150, 150, 150))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _rounded(values: Sequence[float] | np.ndarray, digits: int = 2) -> list[float]:
    return [round(float(value), digits) for value in values]
