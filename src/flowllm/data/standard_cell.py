"""Crystals in the standard setting of their space group: one representative per orbit.

`expand` makes the primitive cell of such a description. Its vectors are those of the group's
centered lattice, Niggli-reduced where their angles are not from 60 to 120 degrees, so that no
search for a smaller cell depends on rounding.
`describe` finds the description of a crystal. Several descriptions belong to one crystal: other
origins and other axes have the same operations. If the crystal's own cell and origin are those of a
description, it is chosen, so that a crystal made by `expand` is described as it was.
"""

from dataclasses import dataclass

import numpy as np
import spglib
from pymatgen.core import Lattice

from flowllm.crystal import Crystal
from flowllm.data.spglib_calls import or_none
from flowllm.data.standard_frame import (
    SAME_FRAME,
    cell_parameters,
    compact_frame,
    free_parameters,
    gram_matrix,
    own_frame,
    reduced_basis,
)
from flowllm.data.symmetry_operations import Operations
from flowllm.data.wyckoff import ON_SITE, Site, SpaceGroup, space_group

TOLERANCES = (0.01, 0.001, 0.0001)
"""Angstrom. Tolerances of the space group of a crystal that is described (spglib's `symprec`). The
smaller ones are for crystals that have a symmetry only nearly, whose orbits contradict it."""

MAX_REPETITIONS = 4
"""Repetitions of description and expansion; of 3,000 crystals of MP-20, none needs more than 2."""


class NoDescriptionError(Exception):
    """A crystal without a description in a standard setting; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Orbit:
    """An orbit of atoms.

    Attributes:
        atomic_number: element.
        site: site of the group.
        point: fractional coordinates of the representative in the conventional cell (3,), on the
            site's first position.
    """

    atomic_number: int
    site: Site
    point: np.ndarray


@dataclass(frozen=True, eq=False)
class StandardCrystal:
    """A crystal in the standard setting of its space group.

    Attributes:
        group: space group.
        cell: free parameters of the conventional cell, in angstrom and degrees.
        orbits: the orbits, in order.
    """

    group: SpaceGroup
    cell: np.ndarray
    orbits: tuple[Orbit, ...]


@dataclass(frozen=True, eq=False)
class PrimitiveCrystal:
    """The primitive cell of a `StandardCrystal`.

    Attributes:
        crystal: the crystal; orbit by orbit, the representative first.
        operations: the group's operations on its fractional coordinates.
    """

    crystal: Crystal
    operations: Operations


def expand(standard: StandardCrystal) -> PrimitiveCrystal:
    """Return the primitive cell of a crystal in its standard setting.

    Raises:
        ValueError: spglib cannot reduce the cell.
        FlowllmError: as `Crystal.from_arrays`.
    """
    group = standard.group
    gram = gram_matrix(*group.cell(standard.cell))
    basis = reduced_basis(group, standard.cell)
    to_primitive = np.linalg.inv(basis)
    images = [group.orbit(orbit.point) for orbit in standard.orbits]
    numbers = np.repeat([orbit.atomic_number for orbit in standard.orbits], list(map(len, images)))
    lengths, angles = cell_parameters(basis @ gram @ basis.T)
    crystal = Crystal.from_arrays(numbers, np.concatenate(images) @ to_primitive, lengths, angles)
    # Columns of coordinates are multiplied by the transpose of what rows are multiplied by.
    rotations = to_primitive.T @ group.operations.rotations @ basis.T
    translations = group.operations.translations @ to_primitive
    return PrimitiveCrystal(
        crystal, Operations(np.rint(rotations).astype(int), _whole_steps(translations))
    )


def standardized(crystal: Crystal) -> PrimitiveCrystal:
    """Return a crystal in the cell, origin and order of atoms that its description has.

    A crystal whose symmetry is exact can have more of it within the tolerance than before, so that
    description and expansion are repeated until nothing changes.

    Args:
        crystal: a crystal in a primitive cell.

    Raises:
        NoDescriptionError: as `describe`, or the changes do not end.
    """
    found = expand(describe(crystal))
    for _ in range(MAX_REPETITIONS):
        again = expand(describe(found.crystal))
        if _are_equal(found.crystal, again.crystal):
            return found
        found = again
    raise NoDescriptionError("its description depends on rounding")


def _are_equal(one: Crystal, other: Crystal) -> bool:
    """Return whether two crystals have the same atoms and cell up to rounding."""
    if not np.array_equal(one.atomic_numbers, other.atomic_numbers):
        return False
    steps = one.frac_coords - other.frac_coords
    return all(
        np.abs(difference).max() < SAME_FRAME
        for difference in (
            steps - steps.round(),
            one.lengths - other.lengths,
            one.angles - other.angles,
        )
    )


def describe(crystal: Crystal) -> StandardCrystal:
    """Return the description of a crystal in the standard setting of its space group.

    Args:
        crystal: a crystal in a primitive cell.

    Raises:
        NoDescriptionError: within `TOLERANCES`, spglib finds no space group, or a smaller primitive
            cell, or an orbit that is not on a site of the group.
    """
    lattice = Lattice.from_parameters(*crystal.lengths.tolist(), *crystal.angles.tolist()).matrix
    numbers = crystal.atomic_numbers.astype(int)
    coords = crystal.frac_coords.astype(np.float64)
    reason = "spglib finds no space group"
    for tolerance in TOLERANCES:
        found = or_none(
            spglib.get_symmetry_dataset,
            (lattice, coords, numbers),  # type: ignore[arg-type]  # its stub allows lists only
            symprec=tolerance,
        )
        if found is None:
            continue
        try:
            return _described(numbers, coords, lattice @ lattice.T, found)
        except NoDescriptionError as error:
            reason = str(error)
    raise NoDescriptionError(reason)


def _described(
    numbers: np.ndarray, coords: np.ndarray, gram: np.ndarray, found: spglib.SpglibDataset
) -> StandardCrystal:
    """Return the description of atoms with the symmetry that spglib found.

    Raises:
        NoDescriptionError: the cell is not primitive, or an orbit is on no site of the group.
    """
    group = space_group(found.number)
    if len(found.rotations) != len(group.operations):
        raise NoDescriptionError("the cell is not primitive")
    frame, origin = compact_frame(group, gram, found)
    own = own_frame(group, gram, frame, Operations(found.rotations, found.translations))
    if own is None:
        points = coords @ np.linalg.inv(frame) + origin
    else:
        frame, points = own, coords @ np.linalg.inv(own)
    values = free_parameters(group, frame @ gram @ frame.T)
    orbits = [
        _orbit(group, int(numbers[first]), points[found.crystallographic_orbits == first])
        for first in dict.fromkeys(found.crystallographic_orbits.tolist())
    ]
    return StandardCrystal(group, values, tuple(orbits))


def _orbit(group: SpaceGroup, atomic_number: int, points: np.ndarray) -> Orbit:
    """Return the orbit of atoms at given points (m, 3) of the conventional cell.

    The representative is the atom of the conventional cell on the site's first position that has
    the smallest coordinates.

    Raises:
        NoDescriptionError: no site of this multiplicity is near.
    """
    every = np.mod((points[:, None] + group.centering).reshape(-1, 3), 1.0)
    nearest: list[tuple[float, Site, list[np.ndarray]]] = []
    for site in group.sites.values():
        if site.num_atoms != len(points):
            continue
        moved, distances = site.nearest(every)
        smallest = float(distances.min())
        nearest.append((smallest, site, list(moved[distances < smallest + SAME_FRAME])))
    if not nearest:
        raise NoDescriptionError(f"{len(points)} atoms are on no site of group {group.number}")
    distance, site, candidates = min(nearest, key=lambda found: found[0])
    if distance > ON_SITE:
        raise NoDescriptionError(f"an orbit is {distance:.3f} of the cell from site {site.label}")
    wrapped = [_wrapped(point) for point in candidates]
    point = min(wrapped, key=lambda one: tuple(one.round(3).tolist()))
    if len(group.orbit(point)) != len(points):
        raise NoDescriptionError(f"the orbit on site {site.label} has another number of atoms")
    return Orbit(atomic_number, site, point)


def _wrapped(point: np.ndarray) -> np.ndarray:
    """Return coordinates in [0, 1), where those that are rounded to 1 become 0 or just below it."""
    wrapped: np.ndarray = np.mod(point, 1.0)
    return np.where(wrapped > 1 - SAME_FRAME, wrapped - 1, wrapped)


def _whole_steps(translations: np.ndarray) -> np.ndarray:
    """Return translations in [0, 1) as the multiples of 1/24 that they are."""
    return np.asarray(np.rint(24 * translations) % 24 / 24)
