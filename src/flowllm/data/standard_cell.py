"""Crystals in the standard setting of their space group: one representative per orbit.

`expand` makes the primitive cell of such a description. Its vectors are those of the group's
centered lattice, Niggli-reduced, so that no search for a smaller cell depends on rounding.
`describe` finds the description of a crystal. Several descriptions belong to one crystal: other
origins and other axes have the same operations. If the crystal's own cell and origin are those of a
description, it is chosen, so that a crystal made by `expand` is described as it was.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import spglib
from pymatgen.core import Lattice

from flowllm.crystal import Crystal
from flowllm.data.symmetry_operations import Operations
from flowllm.data.wyckoff import (
    FREE_PARAMETERS,
    ON_SITE,
    SAME_POINT,
    Site,
    SpaceGroup,
    System,
    space_group,
)

TOLERANCES = (0.01, 0.001, 0.0001)
"""Angstrom. Tolerances of the space group of a crystal that is described (spglib's `symprec`). The
smaller ones are for crystals that have a symmetry only nearly, whose orbits contradict it."""

MAX_REPETITIONS = 4
"""Repetitions of description and expansion; of 3,000 crystals of MP-20, none needs more than 2."""

NIGGLI_TOLERANCE = 1e-5
"""Square angstrom. spglib treats terms of the metric within this difference as equal."""

_SAME_FRAME = 1e-3
"""Largest difference of translations by which operations count as those of the setting. Coordinates
and cells of crystals are rounded to float32."""


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
    """Return the Niggli-reduced primitive cell of a crystal in its standard setting.

    Raises:
        ValueError: spglib cannot reduce the cell.
        FlowllmError: as `Crystal.from_arrays`.
    """
    group = standard.group
    gram = _gram(*group.cell(standard.cell))
    basis = reduced_basis(group, gram)
    to_primitive = np.linalg.inv(basis)
    images = [group.orbit(orbit.point) for orbit in standard.orbits]
    numbers = np.repeat([orbit.atomic_number for orbit in standard.orbits], list(map(len, images)))
    lengths, angles = _parameters(basis @ gram @ basis.T)
    crystal = Crystal.from_arrays(numbers, np.concatenate(images) @ to_primitive, lengths, angles)
    # Columns of coordinates are multiplied by the transpose of what rows are multiplied by.
    rotations = to_primitive.T @ group.operations.rotations @ basis.T
    translations = group.operations.translations @ to_primitive
    return PrimitiveCrystal(
        crystal, Operations(np.rint(rotations).astype(int), _whole_steps(translations))
    )


def reduced_basis(group: SpaceGroup, gram: np.ndarray) -> np.ndarray:
    """Return the vectors of the Niggli-reduced primitive cell (rows), by the conventional ones.

    Args:
        group: space group.
        gram: Gram matrix of the conventional cell (3, 3), square angstrom.

    Raises:
        ValueError: spglib cannot reduce the cell.
    """
    try:
        cell = np.linalg.cholesky(group.primitive @ gram @ group.primitive.T)
    except np.linalg.LinAlgError as error:
        raise ValueError("the cell has no volume") from error
    reduced = spglib.niggli_reduce(cell, eps=NIGGLI_TOLERANCE)
    if reduced is None:
        raise ValueError("the cell cannot be reduced")
    change = np.rint(reduced @ np.linalg.inv(cell))
    determinant = np.linalg.det(change)
    if abs(abs(determinant) - 1) > SAME_POINT:
        raise ValueError("the reduction changed the lattice")
    # The inverted vectors of a left-handed cell are a right-handed one of the same shape.
    basis: np.ndarray = np.sign(determinant) * change @ group.primitive
    return basis


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
        np.abs(difference).max() < _SAME_FRAME
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
        found = spglib.get_symmetry_dataset(
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
    frame, origin = _compact_frame(group, gram, found)
    own = _own_frame(group, gram, frame, Operations(found.rotations, found.translations))
    if own is None:
        points = coords @ np.linalg.inv(frame) + origin
    else:
        frame, points = own, coords @ np.linalg.inv(own)
    values = _free_parameters(group, frame @ gram @ frame.T)
    orbits = [
        _orbit(group, int(numbers[first]), points[found.crystallographic_orbits == first])
        for first in dict.fromkeys(found.crystallographic_orbits.tolist())
    ]
    return StandardCrystal(group, values, tuple(orbits))


def _compact_frame(
    group: SpaceGroup, gram: np.ndarray, found: spglib.SpglibDataset
) -> tuple[np.ndarray, np.ndarray]:
    """Return spglib's conventional vectors, or better ones in low systems, and their origin.

    spglib's monoclinic cells can have a beta of 20 degrees, and its triclinic cells are reduced in
    another way than ours.

    Args:
        group: space group.
        gram: Gram matrix of the crystal's cell, square angstrom.
        found: spglib's results.

    Returns:
        The conventional vectors (rows) in terms of the crystal's vectors, and what is added to
        coordinates in the conventional cell.
    """
    frame = np.rint(np.linalg.inv(found.transformation_matrix).T)
    origin = np.asarray(found.origin_shift)
    if group.system == "triclinic":
        return np.eye(3), origin @ frame
    if group.system != "monoclinic":
        return frame, origin

    def size(description: tuple[np.ndarray, np.ndarray]) -> tuple[float, ...]:
        axes = description[0] @ frame
        return _preference(group, _free_parameters(group, axes @ gram @ axes.T))

    change, shift = min(_equivalent_descriptions(group.number), key=size)
    return change @ frame, origin @ np.linalg.inv(change) + shift


def _preference(group: SpaceGroup, values: np.ndarray) -> tuple[float, ...]:
    """Return a number of each conventional cell of one crystal; the smallest is preferred.

    Of monoclinic cells it is the one with the shortest a and c and beta from 90 degrees on, of
    others the one whose first length is the shortest.
    """
    rounded = [round(value, 3) for value in values.tolist()]
    if group.system != "monoclinic":
        return tuple(rounded)
    a, _, c, beta = rounded
    return (round(a * a + c * c, 2), float(beta < 90), *rounded)


@cache
def _equivalent_descriptions(number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return changes of axes (rows) with a shift of the origin that keep a monoclinic setting."""
    group = space_group(number)
    found = []
    for a, b, c, d in product(range(-2, 3), repeat=4):
        if abs(a * d - b * c) != 1:
            continue
        change = np.array([[a, 0, b], [0, a * d - b * c, 0], [c, 0, d]], dtype=float)
        for shift in np.array(list(product((0, 0.25, 0.5, 0.75), repeat=3))):
            if _has_operations(group, change, group.operations, shift):
                found.append((change, shift))
                break
    return found


def _own_frame(
    group: SpaceGroup, gram: np.ndarray, frame: np.ndarray, given: Operations
) -> np.ndarray | None:
    """Return the conventional vectors (rows) in whose description a crystal is given, if any.

    They have the crystal's origin and are such that `expand` comes back to the crystal's cell.

    Args:
        group: space group.
        gram: Gram matrix of the crystal's cell, square angstrom.
        frame: conventional vectors (rows) of any description, in terms of the crystal's vectors.
        given: operations on the crystal's fractional coordinates.
    """
    best, smallest = None, None
    for change in _changes(group.system):
        candidate = change @ frame
        if np.linalg.det(candidate) < 0 or not _has_operations(group, candidate, given):
            continue
        values = _free_parameters(group, candidate @ gram @ candidate.T)
        preference = _preference(group, values)
        if smallest is not None and preference >= smallest:
            continue
        try:
            basis = reduced_basis(group, _gram(*group.cell(values)))
        except ValueError:
            continue
        if np.allclose(basis @ candidate, np.eye(3)):
            best, smallest = candidate, preference
    return best


def _has_operations(
    group: SpaceGroup, frame: np.ndarray, given: Operations, shift: np.ndarray | None = None
) -> bool:
    """Return whether operations in another basis are those of the setting.

    Args:
        group: space group.
        frame: conventional vectors (rows), in terms of those of the operations.
        given: the operations.
        shift: added to coordinates in the conventional cell, None for the same origin.
    """
    inverse = np.linalg.inv(frame)
    rotations = np.rint(inverse.T @ given.rotations @ frame.T).astype(int)
    translations = given.translations @ inverse
    if shift is not None:
        translations = translations + shift - rotations @ shift
    keys = [rotation.tobytes() for rotation in rotations]
    places = [_places(group.number).get(key) for key in keys]
    if None in places or len(set(places)) != len(places):
        return False
    expected = group.operations.translations[places]  # type: ignore[index]  # None is excluded
    steps = (translations - expected) @ np.linalg.inv(group.primitive)
    return bool(np.abs(steps - steps.round()).max() < _SAME_FRAME)


@cache
def _places(number: int) -> dict[bytes, int]:
    """Return the index of each rotation of a group by its bytes."""
    rotations = space_group(number).operations.rotations.astype(int)
    return {rotation.tobytes(): place for place, rotation in enumerate(rotations)}


@cache
def _changes(system: System) -> np.ndarray:
    """Return changes of the conventional vectors to others of the same shape, (k, 3, 3)."""
    if system == "hexagonal":
        return space_group(191).operations.rotations.transpose(0, 2, 1).astype(float)
    if system == "triclinic":
        return np.eye(3)[None]
    if system == "monoclinic":
        return np.array(
            [
                [[a, 0, b], [0, a * d - b * c, 0], [c, 0, d]]
                for a, b, c, d in product((-1, 0, 1), repeat=4)
                if abs(a * d - b * c) == 1
            ],
            dtype=float,
        )
    axes = np.array(list(product((-1, 1), repeat=3)))
    orders = np.eye(3)[np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0]])]
    return (axes[:, None, :, None] * orders[None]).reshape(-1, 3, 3)


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
        moved = [site.nearest(point) for point in every]
        smallest = min(distance for _, distance in moved)
        near = [point for point, distance in moved if distance < smallest + _SAME_FRAME]
        nearest.append((smallest, site, near))
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
    return np.where(wrapped > 1 - _SAME_FRAME, wrapped - 1, wrapped)


def _free_parameters(group: SpaceGroup, gram: np.ndarray) -> np.ndarray:
    """Return the free parameters of a conventional cell, averaged over the group."""
    rotations = group.operations.rotations
    mean = (rotations.transpose(0, 2, 1) @ gram @ rotations).mean(axis=0)
    return np.concatenate(_parameters(mean))[list(FREE_PARAMETERS[group.system])]


def _gram(lengths: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Return the Gram matrix of lengths (angstrom) and angles (degrees), (3, 3)."""
    cosines = np.cos(np.radians(angles))
    # Right angles and angles of 60 and 120 degrees are exact.
    cosines = np.where(
        np.abs(2 * cosines - (2 * cosines).round()) < 1e-12, (2 * cosines).round() / 2, cosines
    )
    alpha, beta, gamma = cosines
    shape = np.array([[1, gamma, beta], [gamma, 1, alpha], [beta, alpha, 1]])
    gram: np.ndarray = shape * np.outer(lengths, lengths)
    return gram


def _parameters(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths (angstrom) and angles (degrees) of a Gram matrix."""
    lengths = np.sqrt(np.diag(gram))
    cosines = gram / np.outer(lengths, lengths)
    angles = np.degrees(np.arccos(cosines[[1, 0, 0], [2, 2, 1]].clip(-1, 1)))
    return lengths, angles


def _whole_steps(translations: np.ndarray) -> np.ndarray:
    """Return translations in [0, 1) as the multiples of 1/24 that they are."""
    return np.asarray(np.rint(24 * translations) % 24 / 24)
