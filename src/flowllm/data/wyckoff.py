"""Space groups in their standard settings, with the sites (Wyckoff positions) of each.

The standard setting of a group is spglib's: the one with the smallest Hall number, thus the first
origin choice, hexagonal axes and the unique axis b. Operations are from spglib's database at run
time. The sites (`wyckoff.json`: name, first position) are from spglib's file `database/Wyckoff.csv`
(BSD-3-Clause, `wyckoff.LICENSE`), whose Python interface does not offer them. A test compares
multiplicities and names with spglib's results for crystals.

An operation (W, w) maps the column of fractional coordinates x to W x + w.
"""

import json
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flowllm.data.space_groups import lattice_letter, operations_of
from flowllm.data.symmetry_operations import Operations

_FILE = Path(__file__).with_name("wyckoff.json")

NUM_GROUPS = 230

ON_SITE = 0.02
"""Largest distance of a coordinate from the site that it is moved onto, as a fraction of the cell.
Text rounds coordinates by at most 0.005."""

SAME_POINT = 1e-6
"""Fractional coordinates within this distance are of the same point; those computed from exact
operations differ by rounding only (1e-15)."""

_TERM = re.compile(r"([+-]?)(?:(\d*)([xyz])|(\d+(?:/\d+)?))")

_SHIFTS = np.array(list(product((-1, 0, 1), repeat=3)))
"""Neighboring translations of the lattice (27, 3)."""

_GENERIC = np.array([0.1372, 0.2614, 0.3931])
"""A point of the cell that is on no symmetry element."""

_THIRD = 1 / 3

_PRIMITIVE = {
    "P": np.eye(3),
    "A": np.array([[1, 0, 0], [0, 0.5, -0.5], [0, 0.5, 0.5]]),
    "C": np.array([[0.5, -0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]),
    "I": np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]]),
    "F": np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
    "R": np.array([[2, 1, 1], [-1, 1, 1], [-1, -2, 1]]) * _THIRD,
}
"""Primitive vectors (rows) in terms of the conventional ones, by the centering of the lattice."""

System = Literal["triclinic", "monoclinic", "orthorhombic", "tetragonal", "hexagonal", "cubic"]

_LAST_OF_SYSTEM: dict[System, int] = {
    "triclinic": 2,
    "monoclinic": 15,
    "orthorhombic": 74,
    "tetragonal": 142,
    "hexagonal": 194,
    "cubic": 230,
}
"""Largest number of the space groups of each system; hexagonal includes trigonal, whose
conventional cell has the same shape."""

FREE_PARAMETERS: dict[System, tuple[int, ...]] = {
    "triclinic": (0, 1, 2, 3, 4, 5),
    "monoclinic": (0, 1, 2, 4),
    "orthorhombic": (0, 1, 2),
    "tetragonal": (0, 2),
    "hexagonal": (0, 2),
    "cubic": (0,),
}
"""Free parameters of a system's conventional cell among a, b, c, alpha, beta and gamma."""


@dataclass(frozen=True, eq=False)
class Site:
    """A site of a space group (Wyckoff position), by its first position in the table.

    The first position is an affine subspace of the cell. The mean over the operations that map each
    of its points to itself, x to `projector` x + `offset`, moves a point onto it.

    Attributes:
        label: multiplicity and letter, e.g. 24d.
        position: first position, e.g. `x,2x,z`.
        num_atoms: number of atoms in the primitive cell.
        projector: (3, 3).
        offset: (3,).
        has_freedom: whether the site has a free coordinate, so that it can be used repeatedly.
    """

    label: str
    position: str
    num_atoms: int
    projector: np.ndarray
    offset: np.ndarray

    @property
    def has_freedom(self) -> bool:
        """Whether a coordinate is free, so that several orbits can have this site."""
        return bool(np.any(self.projector))

    def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest points of the first position or of one that the lattice repeats.

        Args:
            points: fractional coordinates (..., 3).

        Returns:
            The points (..., 3), and the largest distance of a coordinate of each (...).
        """
        shifts = self._shifts
        repeated = points[..., None, :] + shifts
        moved = repeated @ self.projector.T + self.offset
        distances = np.abs(moved - repeated).max(axis=-1).round(9)
        best = distances.argmin(axis=-1)
        nearest = np.take_along_axis(moved, best[..., None, None], axis=-2)[..., 0, :]
        return nearest - shifts[best], distances.min(axis=-1)

    @cached_property
    def _shifts(self) -> np.ndarray:
        """Translations of the lattice that move a point by different ways to the position."""
        _, first = np.unique(
            (_SHIFTS @ (self.projector - np.eye(3)).T).round(9), axis=0, return_index=True
        )
        return _SHIFTS[np.sort(first)]


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """A space group in its standard setting.

    Attributes:
        number: 1 to 230.
        system: crystal system; hexagonal for trigonal groups.
        operations: one operation per rotation, the identity first; the translations of the centered
            lattice are left out.
        primitive: vectors of the primitive cell (rows) in terms of the conventional ones.
        sites: the sites by their label, in the order of their letters.
    """

    number: int
    system: System
    operations: Operations
    primitive: np.ndarray
    sites: dict[str, Site]

    def on_site(self, site: Site, point: np.ndarray) -> np.ndarray | None:
        """Move a point onto a site.

        Args:
            site: one of `sites`.
            point: fractional coordinates (3,) of any atom of the orbit.

        Returns:
            The nearest point of the first position if that is within `ON_SITE`, otherwise that of
            any other position of the site, None if none is near.
        """
        first, distance = site.nearest(point)
        if distance <= ON_SITE:
            return first
        rotations = self.operations.rotations
        translations = self.operations.translations + self.centering[:, None]
        preimages = np.linalg.solve(rotations, (point - translations)[..., None])[..., 0]
        candidates, _ = site.nearest(preimages)
        images = (rotations @ candidates[..., None])[..., 0] + translations
        distances = np.abs(images - point).max(axis=-1).ravel()
        best = int(np.argmax(distances < distances.min() + SAME_POINT))
        return images.reshape(-1, 3)[best] if distances[best] < ON_SITE else None

    def orbit(self, point: np.ndarray) -> np.ndarray:
        """Return the images of a point in the primitive cell, each once and itself first, (m, 3).

        The images are fractional coordinates of the conventional cell.
        """
        images: np.ndarray = self.operations.rotations @ point + self.operations.translations
        different: np.ndarray = images[first_of_each(images @ np.linalg.inv(self.primitive))]
        return different

    def orbits(self, site: Site, points: np.ndarray) -> np.ndarray:
        """Return the images of points of a site's first position, (k, m, 3).

        Other than `orbit`, it returns as many images of a point as the site has atoms, even where
        some of them coincide.

        Args:
            site: one of `sites`.
            points: fractional coordinates (k, 3).
        """
        places = _cosets(self.number, site.label)
        rotations = self.operations.rotations[places]
        turned = (points @ rotations.reshape(-1, 3).T).reshape(len(points), -1, 3)
        images: np.ndarray = turned + self.operations.translations[places]
        return images

    @property
    def centering(self) -> np.ndarray:
        """Translations of the lattice in the conventional cell, (1 to 4, 3)."""
        # They are multiples of 1/2 or 1/3.
        sixths = np.rint(6 * _SHIFTS @ self.primitive).astype(int) % 6
        shifts: np.ndarray = np.unique(sixths, axis=0) / 6
        return shifts

    def cell(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return lengths and angles of the conventional cell of its free parameters."""
        a = values[0]
        if self.system == "triclinic":
            return values[:3], values[3:]
        if self.system == "monoclinic":
            return values[:3], np.array([90.0, values[3], 90.0])
        if self.system == "orthorhombic":
            return values, np.full(3, 90.0)
        if self.system == "cubic":
            return np.full(3, a), np.full(3, 90.0)
        gamma = 120.0 if self.system == "hexagonal" else 90.0
        return np.array([a, a, values[1]]), np.array([90.0, 90.0, gamma])


def first_of_each(coords: np.ndarray) -> np.ndarray:
    """Return the indices of the first of each set of equal points, ascending.

    Args:
        coords: fractional coordinates (m, 3); translations of their lattice do not matter.
    """
    displacements = coords[:, None] - coords[None]
    displacements -= displacements.round()
    equal = np.abs(displacements).max(axis=-1) < SAME_POINT
    return np.flatnonzero(equal.argmax(axis=1) == np.arange(len(coords)))


def system_of(number: int) -> System:
    """Return the crystal system of a space group."""
    return next(system for system, last in _LAST_OF_SYSTEM.items() if number <= last)


@cache
def space_group(number: int) -> SpaceGroup:
    """Return a space group by its number, 1 to 230."""
    entry = _table()[str(number)]
    every = operations_of(entry["setting"])
    primitive = _PRIMITIVE[lattice_letter(entry["setting"])]
    _, first = np.unique(every.rotations.reshape(-1, 9), axis=0, return_index=True)
    cosets = np.sort(first)
    operations = Operations(every.rotations[cosets], every.translations[cosets])
    num_cells = round(1 / np.linalg.det(primitive))
    sites = {
        label: _site(label, position, num_cells, every)
        for label, position in entry["sites"].items()
    }
    return SpaceGroup(number, system_of(number), operations, primitive, sites)


@cache
def _cosets(number: int, label: str) -> np.ndarray:
    """Return the operations that give each image of a generic point of a site once."""
    group = space_group(number)
    site, operations = group.sites[label], group.operations
    images = operations.rotations @ (site.projector @ _GENERIC + site.offset)
    images += operations.translations
    return first_of_each(images @ np.linalg.inv(group.primitive))


@cache
def _table() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return loaded


def _site(label: str, position: str, num_cells: int, every: Operations) -> Site:
    """Return a site; its projection is the mean over the operations that keep a generic point."""
    linear, constant = parse_position(position)
    generic = linear @ _GENERIC + constant
    images = every.rotations @ generic + every.translations
    steps = (generic - images).round()
    kept = np.abs(images + steps - generic).max(axis=1) < SAME_POINT
    return Site(
        label=label,
        position=position,
        num_atoms=int(label[:-1]) // num_cells,
        projector=every.rotations[kept].mean(axis=0),
        offset=(every.translations + steps)[kept].mean(axis=0),
    )


def parse_position(position: str) -> tuple[np.ndarray, np.ndarray]:
    """Return matrix (3, 3) and constant (3,) of a position such as `x,2x,z+1/4`."""
    linear, constant = np.zeros((3, 3)), np.zeros(3)
    for row, part in enumerate(position.split(",")):
        for sign, factor, axis, number in _TERM.findall(part):
            value = -1 if sign == "-" else 1
            if axis:
                linear[row, "xyz".index(axis)] += value * int(factor or 1)
            else:
                constant[row] += value * float(Fraction(number))
    return linear, constant
