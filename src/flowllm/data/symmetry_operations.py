"""Symmetry operations x' = R x + t on fractional coordinates: text, comparison, group, metric."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from pymatgen.core import Lattice

from flowllm.data.rejected import RejectedError

METRIC_TOLERANCE = 1e-3
"""Relative change of an element of the metric that an operation may make: 0.05 % in a length,
0.06 degrees in a right angle. Refined cells obey their group to the last digit."""

MAX_DENOMINATOR = 48
"""Largest denominator of a translation: 0.333 is read as 1/3, and the smallest step in
International Tables is 1/24."""

MAX_OPERATIONS = 768
"""The largest space group has 192 operations per unit cell; a supercell has a multiple of them."""

# The numbers of digits are bounded, since Python refuses to convert very long integers.
_TERM = re.compile(
    r"([+-]?)"
    r"(?:([0-9]{1,9}\.?[0-9]{0,18}|\.[0-9]{1,18})(?:/([1-9][0-9]{0,8}))?|([xyz]))"
)


@dataclass(frozen=True)
class Operations:
    """Symmetry operations x' = R x + t of m elements on fractional coordinates.

    Attributes:
        rotations: int (m, 3, 3).
        translations: float (m, 3), in [0, 1).
    """

    rotations: np.ndarray
    translations: np.ndarray

    def __len__(self) -> int:
        """Return the number of operations."""
        return len(self.rotations)


IDENTITY = Operations(np.eye(3, dtype=int)[None], np.zeros((1, 3)))


def operation_columns(operations: Operations | None) -> dict[str, list[float] | None]:
    """Return the columns `symmetry_rotations` and `symmetry_translations` of a row."""
    if operations is None:
        return {"symmetry_rotations": None, "symmetry_translations": None}
    return {
        "symmetry_rotations": operations.rotations.ravel().tolist(),
        "symmetry_translations": operations.translations.ravel().tolist(),
    }


def operations_of_row(row: Mapping[str, Any]) -> Operations | None:
    """Return the operations of a row of `Table.to_pylist`, None where its columns are null."""
    rotations, translations = row["symmetry_rotations"], row["symmetry_translations"]
    if rotations is None or translations is None:
        return None
    return Operations(
        np.asarray(rotations, dtype=int).reshape(-1, 3, 3),
        np.asarray(translations, dtype=float).reshape(-1, 3),
    )


def parse_operation(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Return rotation (3, 3) and translation (3,) of an operation such as `-x, y+1/2, 0.5-z`.

    Raises:
        RejectedError: bad_cif.
    """
    rotation, translation = np.zeros((3, 3), dtype=int), np.zeros(3)
    parts = re.sub(r"\s", "", text).lower().split(",")
    for row, part in enumerate(parts[:3]):
        terms = [*_TERM.finditer(part)]
        if "".join(term[0] for term in terms) != part or any(not term[1] for term in terms[1:]):
            raise RejectedError("bad_cif", f"{text!r} is not a symmetry operation")
        for sign, number, divisor, axis in (term.groups() for term in terms):
            factor = -1 if sign == "-" else 1
            if axis:
                rotation[row, "xyz".index(axis)] += factor
            else:
                translation[row] += factor * float(number) / int(divisor or 1)
    if len(parts) != 3 or abs(round(np.linalg.det(rotation))) != 1:
        raise RejectedError("bad_cif", f"{text!r} is not a symmetry operation")
    exact = [Fraction(one).limit_denominator(MAX_DENOMINATOR) for one in translation.tolist()]
    return rotation, np.array([float(one) for one in exact]) % 1


def without_repeats(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Operations:
    """Return operations, given as pairs of rotation and translation, each once and in order."""
    every = Operations(np.array([r for r, _ in pairs]), np.array([t for _, t in pairs]))
    _, first = np.unique(_as_integers(every), axis=0, return_index=True)
    kept = np.sort(first)
    return Operations(every.rotations[kept], every.translations[kept])


def are_same(some: Operations, others: Operations) -> bool:
    """Whether two sets have the same operations, in any order, up to lattice translations."""
    return _as_set(some) == _as_set(others)


def check_group(operations: Operations) -> None:
    """Reject operations whose products are not among them: one is missing or mistyped.

    Raises:
        RejectedError: bad_cif (too many operations) or symmetry_mismatch.
    """
    if len(operations) > MAX_OPERATIONS:
        raise RejectedError("bad_cif", f"{len(operations)} operations, at most {MAX_OPERATIONS}")
    rotations, translations = operations.rotations, operations.translations
    products = Operations(
        np.einsum("aij,bjk->abik", rotations, rotations).reshape(-1, 3, 3),
        (np.einsum("aij,bj->abi", rotations, translations) + translations[:, None]).reshape(-1, 3),
    )
    if not _as_set(products) <= _as_set(operations):
        raise RejectedError(
            "symmetry_mismatch",
            f"the {len(operations)} operations listed are not a group: one is missing or mistyped",
        )


def fit_cell(operations: Operations, lattice: Lattice) -> bool:
    """Whether the operations keep the metric G of the cell: R^T G R = G."""
    metric = lattice.matrix @ lattice.matrix.T
    scale = np.sqrt(np.outer(np.diag(metric), np.diag(metric)))
    moved = np.einsum("mji,jk,mkl->mil", operations.rotations, metric, operations.rotations)
    return bool(np.max(np.abs(moved - metric) / scale) <= METRIC_TOLERANCE)


def _as_integers(operations: Operations) -> np.ndarray:
    """Return operations as integers (m, 12), equal for those that differ by a lattice vector."""
    steps = np.rint(operations.translations * 100_000).astype(int) % 100_000
    return np.hstack([operations.rotations.reshape(-1, 9), steps])


def _as_set(operations: Operations) -> set[tuple[int, ...]]:
    return set(map(tuple, _as_integers(operations).tolist()))
