"""The crystal record: atom types, fractional coordinates, lattice lengths and angles.

All modules use one convention (paper, section 3): `frac_coords` in [0, 1), `lengths` a, b, c in
angstrom, `angles` alpha, beta, gamma in degrees. Such a lattice has no orientation.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from pymatgen.core import Lattice, Structure
from pymatgen.core.periodic_table import Element

from flowllm.errors import FlowllmError

MAX_ATOMIC_NUMBER = 118

MIN_SQUARED_VOLUME = 1e-6
"""Lower bound of the squared volume of a cell with unit edges; see `lattice_has_volume`."""

MIN_DISTANCE = 0.5
"""Angstrom; no atoms of a real crystal are closer (paper, appendix D)."""


@dataclass(frozen=True, slots=True, eq=False)
class Crystal:
    """A periodic crystal of n atoms.

    Attributes:
        atomic_numbers: uint8 (n,), 1 to 118.
        frac_coords: float32 (n, 3), fractional coordinates in [0, 1).
        lengths: float32 (3,), a, b, c in angstrom.
        angles: float32 (3,), alpha, beta, gamma in degrees.
    """

    atomic_numbers: np.ndarray
    frac_coords: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray

    @classmethod
    def from_arrays(
        cls,
        atomic_numbers: ArrayLike,
        frac_coords: ArrayLike,
        lengths: ArrayLike,
        angles: ArrayLike,
    ) -> "Crystal":
        """Check shapes and values, wrap the coordinates, and build the record.

        Raises:
            FlowllmError: a shape is wrong, a number is not finite, a length is not positive, the
                angles span no volume, or an atomic number is not an element's.
        """
        numbers = np.asarray(atomic_numbers, dtype=np.int64)
        coords = np.asarray(frac_coords, dtype=np.float64)
        with np.errstate(over="ignore"):
            # Rounded before the checks: a length of 1e39 is infinite in float32.
            abc = np.asarray(lengths, dtype=np.float64).astype(np.float32)
            degrees = np.asarray(angles, dtype=np.float64).astype(np.float32)
        if numbers.ndim != 1 or numbers.size == 0:
            raise FlowllmError(
                f"atomic_numbers has shape {numbers.shape}, expected (n,) with n >= 1"
            )
        if coords.shape != (numbers.size, 3):
            raise FlowllmError(
                f"frac_coords has shape {coords.shape}, expected {(numbers.size, 3)}"
            )
        if abc.shape != (3,) or degrees.shape != (3,):
            raise FlowllmError(
                f"lengths and angles have shapes {abc.shape} and {degrees.shape}, expected (3,)"
            )
        if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
            raise FlowllmError(f"atomic_numbers {numbers.tolist()} has a number of no element")
        if not (
            np.isfinite(coords).all() and np.isfinite(abc).all() and np.isfinite(degrees).all()
        ):
            raise FlowllmError("a coordinate, length or angle is not a finite number")
        if abc.min() <= 0:
            raise FlowllmError(f"lengths {abc.tolist()} must be positive")
        if not lattice_has_volume(degrees):
            raise FlowllmError(f"angles {degrees.tolist()} span no volume")
        return cls(
            atomic_numbers=numbers.astype(np.uint8),
            frac_coords=wrap(coords),
            lengths=abc,
            angles=degrees,
        )

    @classmethod
    def from_structure(cls, structure: Structure) -> "Crystal":
        """Build the record from an ordered pymatgen structure.

        Raises:
            FlowllmError: a site is disordered, or its species is not an element.
        """
        if not structure.is_ordered:
            raise FlowllmError("disordered sites")
        numbers = [getattr(site.specie, "Z", 0) for site in structure]
        # Lengths and angles imply a right-handed cell. The three vectors of a left-handed one are
        # inverted, which keeps lengths, angles and the crystal, and avoids its mirror image.
        handedness = 1 if np.linalg.det(structure.lattice.matrix) > 0 else -1
        return cls.from_arrays(
            numbers,
            handedness * structure.frac_coords,
            structure.lattice.abc,
            structure.lattice.angles,
        )

    def to_structure(self) -> Structure:
        """Return the crystal as a pymatgen structure, in pymatgen's standard orientation."""
        lattice = Lattice.from_parameters(*self.lengths.tolist(), *self.angles.tolist())
        return Structure(lattice, self.atomic_numbers.tolist(), self.frac_coords.astype(np.float64))

    @property
    def num_atoms(self) -> int:
        """Number of atoms in the cell."""
        return int(self.atomic_numbers.size)

    @property
    def formula(self) -> str:
        """Formula of the cell with its counts, by electronegativity, e.g. `Na4Cl4`."""
        return cell_formula(self.atomic_numbers)


def wrap(frac_coords: np.ndarray) -> np.ndarray:
    """Wrap fractional coordinates into [0, 1), as float32 (any shape).

    The float32 nearest to a number just below 1 can be 1, which becomes 0, the same point.
    """
    wrapped = np.mod(np.asarray(frac_coords, dtype=np.float64), 1.0).astype(np.float32)
    return np.where(wrapped >= 1.0, np.float32(0.0), wrapped)


def lattice_has_volume(angles: np.ndarray) -> bool:
    """Return whether three angles in degrees (3,) belong to a cell of positive volume.

    The squared volume of a cell with unit edges is
    1 + 2 cos(alpha) cos(beta) cos(gamma) - cos(alpha)^2 - cos(beta)^2 - cos(gamma)^2.
    """
    if np.any(angles <= 0) or np.any(angles >= 180):
        return False
    cosines = np.cos(np.radians(np.asarray(angles, dtype=np.float64)))
    return bool(1 + 2 * np.prod(cosines) - np.sum(cosines**2) > MIN_SQUARED_VOLUME)


def cell_formula(atomic_numbers: np.ndarray) -> str:
    """Return a cell's formula with all counts, by electronegativity, e.g. `Na4Cl4`, `Mg1O1`."""
    numbers, counts = np.unique(np.asarray(atomic_numbers), return_counts=True)
    by_number = {int(z): int(count) for z, count in zip(numbers, counts, strict=True)}
    ordered = sorted(by_number, key=formula_key)
    return "".join(f"{formula_key(z)[1]}{by_number[z]}" for z in ordered)


@cache
def formula_key(atomic_number: int) -> tuple[float, str]:
    """Return an element's sort key in a formula; elements without electronegativity are last."""
    element = Element.from_Z(atomic_number)
    pauling = element.data.get("X")
    return (math.inf if pauling is None or math.isnan(pauling) else pauling, element.symbol)
