"""Axes and origin of a crystal in the standard setting of its space group.

A frame is a matrix whose rows are the conventional vectors in terms of the crystal's vectors. Many
frames belong to one crystal, all of which have the same operations.
"""

from functools import cache
from itertools import product

import numpy as np
import spglib

from flowllm.data.spglib_calls import or_none
from flowllm.data.symmetry_operations import Operations
from flowllm.data.wyckoff import FREE_PARAMETERS, SAME_POINT, SpaceGroup, System, space_group

NIGGLI_TOLERANCE = 1e-5
"""Square angstrom. spglib treats terms of the metric within this difference as equal."""

_ANGLE_TOLERANCE = 1e-6
"""Degrees; rounding of angles of 60 and 120 degrees."""

_LENGTHS = 3
"""Cell parameters below this index are lengths, the others are angles."""

SAME_FRAME = 1e-3
"""Largest difference of translations by which operations count as those of the setting. Coordinates
and cells of crystals are rounded to float32."""


def cell_words(group: SpaceGroup, values: np.ndarray) -> list[str]:
    """Return the free parameters of a conventional cell as the symmetric text writes them.

    Lengths have one decimal place, angles are whole degrees.
    """
    places = FREE_PARAMETERS[group.system]
    return [
        f"{value:.1f}" if place < _LENGTHS else f"{value:.0f}"
        for place, value in zip(places, values.tolist(), strict=True)
    ]


def reduced_basis(group: SpaceGroup, values: np.ndarray) -> np.ndarray:
    """Return the vectors of the primitive cell (rows), by the conventional ones.

    They are the usual ones of the lattice if their angles are those of reduced cells, otherwise the
    Niggli cell's. Both are decided by the cell as the text writes it, so that a crystal and the
    crystal that its text is decoded to have the same vectors. Angles of the exact cell may
    therefore be outside of 60 to 120 degrees by the rounding of the text.

    Args:
        group: space group.
        values: free parameters of the conventional cell.

    Raises:
        ValueError: spglib cannot reduce the cell.
    """
    written = np.array([float(word) for word in cell_words(group, values)])
    gram = gram_matrix(*group.cell(written))
    _, angles = cell_parameters(group.primitive @ gram @ group.primitive.T)
    if angles.min() > 60 - _ANGLE_TOLERANCE and angles.max() < 120 + _ANGLE_TOLERANCE:
        return group.primitive
    try:
        cell = np.linalg.cholesky(group.primitive @ gram @ group.primitive.T)
    except np.linalg.LinAlgError as error:
        raise ValueError("the cell has no volume") from error
    reduced = or_none(spglib.niggli_reduce, cell, eps=NIGGLI_TOLERANCE)
    if reduced is None:
        raise ValueError("the cell cannot be reduced")
    change = np.rint(reduced @ np.linalg.inv(cell))
    determinant = np.linalg.det(change)
    if abs(abs(determinant) - 1) > SAME_POINT:
        raise ValueError("the reduction changed the lattice")
    # The inverted vectors of a left-handed cell are a right-handed one of the same shape.
    basis: np.ndarray = np.sign(determinant) * change @ group.primitive
    return basis


def compact_frame(
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
        return _preference(group, free_parameters(group, axes @ gram @ axes.T))

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
        # The primitive vectors in terms of those that the new axes would have.
        lattice = group.primitive @ np.linalg.inv(change) @ np.linalg.inv(group.primitive)
        if np.abs(lattice - lattice.round()).max() > SAME_POINT:
            continue
        for shift in np.array(list(product((0, 0.25, 0.5, 0.75), repeat=3))):
            if _has_operations(group, change, group.operations, shift):
                found.append((change, shift))
                break
    return found


def own_frame(
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
        values = free_parameters(group, candidate @ gram @ candidate.T)
        preference = _preference(group, values)
        if smallest is not None and preference >= smallest:
            continue
        try:
            basis = reduced_basis(group, values)
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
    return bool(np.abs(steps - steps.round()).max() < SAME_FRAME)


@cache
def _places(number: int) -> dict[bytes, int]:
    """Return the index of each rotation of a group by its bytes."""
    rotations = space_group(number).operations.rotations.astype(int)
    return {rotation.tobytes(): place for place, rotation in enumerate(rotations)}


@cache
def _changes(system: System) -> np.ndarray:
    """Return changes of the conventional vectors to others of the same shape, (k, 3, 3)."""
    if system == "hexagonal":
        rotations: np.ndarray = space_group(191).operations.rotations
        return rotations.transpose(0, 2, 1).astype(float)
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
    signed: np.ndarray = axes[:, None, :, None] * orders[None]
    return signed.reshape(-1, 3, 3)


def free_parameters(group: SpaceGroup, gram: np.ndarray) -> np.ndarray:
    """Return the free parameters of a conventional cell, averaged over the group."""
    rotations = group.operations.rotations
    mean = (rotations.transpose(0, 2, 1) @ gram @ rotations).mean(axis=0)
    values: np.ndarray = np.concatenate(cell_parameters(mean))
    return values[list(FREE_PARAMETERS[group.system])]


def gram_matrix(lengths: np.ndarray, angles: np.ndarray) -> np.ndarray:
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


def cell_parameters(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return lengths (angstrom) and angles (degrees) of a Gram matrix."""
    lengths = np.sqrt(np.diag(gram))
    cosines = gram / np.outer(lengths, lengths)
    angles = np.degrees(np.arccos(cosines[[1, 0, 0], [2, 2, 1]].clip(-1, 1)))
    return lengths, angles
