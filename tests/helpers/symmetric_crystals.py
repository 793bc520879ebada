"""Crystals of given space groups, built from spglib's operations alone, and a check of equality."""

import numpy as np
import spglib
from pymatgen.core import Lattice, Structure

from flowllm.crystal import Crystal


def orbit_in(setting: int, points: list[list[float]], elements: list[int], seed: int) -> Structure:
    """All images of points under the operations of a setting, in a cell that has its symmetry."""
    found = spglib.get_symmetry_from_database(setting)
    rotations, translations = found["rotations"], found["translations"]
    shape = np.random.default_rng(seed).uniform(-4, 4, (3, 3)) + np.diag([9.0, 11.0, 13.0])
    metric = np.mean([r.T @ shape @ shape.T @ r for r in rotations], axis=0)
    lattice = Lattice(np.linalg.cholesky(metric))
    species, coords = [], []
    for element, point in zip(elements, points, strict=True):
        images: list[np.ndarray] = []
        for image in rotations @ np.array(point) + translations:
            steps = [image - other for other in images]
            if all(np.abs(step - step.round()).max() > 1e-6 for step in steps):
                images.append(image)
        species += [element] * len(images)
        coords += images
    return Structure(lattice, species, coords)


def primitive(structure: Structure) -> Crystal:
    """The primitive cell, by spglib."""
    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    lattice, coords, numbers = spglib.find_primitive(cell, symprec=1e-4)
    return Crystal.from_structure(Structure(lattice, numbers, coords))


def neighbors(structure: Structure, reach: float = 4.5) -> dict[tuple[int, int], np.ndarray]:
    """Sorted distances per atom of one primitive cell, by the elements of the two atoms."""
    numbers = np.array(structure.atomic_numbers)
    first, second, _, distances = structure.get_neighbor_list(reach)
    pairs = {}
    for a in set(numbers.tolist()):
        for b in set(numbers.tolist()):
            chosen = (numbers[first] == a) & (numbers[second] == b)
            pairs[a, b] = np.sort(distances[chosen])
    return pairs


def are_same_crystal(one: Crystal, other: Crystal, tolerance: float = 1e-3) -> bool:
    """Whether all interatomic distances of two primitive cells are equal."""
    if one.formula != other.formula:
        return False
    ours, theirs = neighbors(one.to_structure()), neighbors(other.to_structure())
    for key in ours:
        # The last distances may be on different sides of the limit.
        count = min(len(ours[key]), len(theirs[key]))
        if max(len(ours[key]), len(theirs[key])) - count > 0.05 * count + 2:
            return False
        near = ours[key][:count] < 4.3
        if np.abs(ours[key][:count] - theirs[key][:count])[near].max(initial=0) > tolerance:
            return False
    return True
