"""Coverage of the test split and distances of property distributions (paper, appendix D).

The definition is CDVAE's, which all peers share: a test crystal is covered if the structure of some
generated crystal and the composition of some generated crystal, not necessarily the same one, are
within the cut-offs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from flowllm.io import schemas
from flowllm.io.tables import read_table

STRUCTURE_CUTOFF = 0.4
COMPOSITION_CUTOFF = 10.0
"""Cut-offs of CDVAE and its successors for MP-20."""

STRUCTURE_FEATURES = 61
COMPOSITION_FEATURES = 132
"""Lengths of the two fingerprints of a crystal (`evaluate.fingerprints`)."""

WASSERSTEIN_SAMPLES = 1000
"""Number of valid crystals that the peers draw for the property distances."""

CHUNK = 512
"""Rows of the distance matrix computed at once; 9,000 x 10,000 distances would take 700 MB."""

_SCALING = Path(__file__).with_name("composition_scaling.json")


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of a set of crystals; failed ones are NaN in both arrays.

    Attributes:
        names: ids.
        structure: float64 (n, 61).
        composition: float64 (n, 132), standardized.
        density: g/cm3 (n,), NaN without a crystal.
        num_elements: number of distinct elements (n,), NaN without a crystal.
        status: status of each row.
    """

    names: list[str]
    structure: np.ndarray
    composition: np.ndarray
    density: np.ndarray
    num_elements: np.ndarray
    status: list[str]

    def in_order(self, names: Sequence[str]) -> "Fingerprints":
        """Return the rows of the given ids, in their order."""
        place = {name: index for index, name in enumerate(self.names)}
        indices = [place[name] for name in names]
        return Fingerprints(
            names=list(names),
            structure=self.structure[indices],
            composition=self.composition[indices],
            density=self.density[indices],
            num_elements=self.num_elements[indices],
            status=[self.status[index] for index in indices],
        )

    @property
    def known(self) -> np.ndarray:
        """Whether each row has fingerprints, bool (n,)."""
        return np.array([status == "ok" for status in self.status], dtype=bool)


@cache
def _scaling() -> tuple[np.ndarray, np.ndarray]:
    rows = json.loads(_SCALING.read_text())["features"]
    return np.array([row[1] for row in rows]), np.array([row[2] for row in rows])


def standardize(features: np.ndarray) -> np.ndarray:
    """Standardize Magpie features (n, 132) by CDVAE's constants; unknown ones become 0."""
    means, deviations = _scaling()
    standardized: np.ndarray = np.nan_to_num((features - means) / deviations, nan=0.0)
    return standardized


def read_fingerprints(path: Path) -> Fingerprints:
    """Read a table of fingerprints."""
    table = read_table(path, schemas.FINGERPRINTS)
    status = table.column("status").to_pylist()
    composition = _matrix(table.column("composition_fingerprint"), COMPOSITION_FEATURES)
    known = np.array([one == "ok" for one in status], dtype=bool)
    composition[known] = standardize(composition[known])
    return Fingerprints(
        names=table.column("id").to_pylist(),
        structure=_matrix(table.column("structure_fingerprint"), STRUCTURE_FEATURES),
        composition=composition,
        density=_numbers(table.column("density")),
        num_elements=_numbers(table.column("num_elements")),
        status=status,
    )


def _matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """Return a list column as (n, width), NaN where the list is null."""
    rows = [[np.nan] * width if row is None else row for row in column.to_pylist()]
    return np.array(rows, dtype=np.float64).reshape(-1, width)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    values = [np.nan if value is None else value for value in column.to_pylist()]
    return np.array(values, dtype=np.float64)


def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for each point (n, d) the Euclidean distance to the nearest of the others (m, d)."""
    if len(others) == 0:
        return np.full(len(points), np.inf)
    parts = [
        cdist(points[start : start + CHUNK], others).min(axis=1)
        for start in range(0, len(points), CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def covered(points: Fingerprints, by: Fingerprints) -> np.ndarray:
    """Return which crystals are covered by other crystals, bool (n,).

    Args:
        points: the n crystals; those without fingerprints are not covered.
        by: the other crystals; those without fingerprints cover nothing.
    """
    found = np.zeros(len(points.names), dtype=bool)
    mine, others = points.known, by.known
    structure = nearest(points.structure[mine], by.structure[others])
    composition = nearest(points.composition[mine], by.composition[others])
    found[mine] = (structure <= STRUCTURE_CUTOFF) & (composition <= COMPOSITION_CUTOFF)
    return found


def add_coverage(
    rows: Sequence[dict[str, Any]], generated: Fingerprints, test: Fingerprints
) -> list[dict[str, Any]]:
    """Return the rows completed by `fingerprinted` and `covered` (by the test split).

    Args:
        rows: one row per sample.
        generated: fingerprints of the samples, in the same order.
        test: fingerprints of the test split.
    """
    near = covered(generated, test)
    return [
        {**row, "fingerprinted": bool(has), "covered": bool(is_near)}
        for row, has, is_near in zip(rows, generated.known, near, strict=True)
    ]


def drawn_for_distances(valid: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Return the indices of the crystals whose properties are compared: up to 1,000 valid ones."""
    if len(valid) <= WASSERSTEIN_SAMPLES:
        return np.asarray(valid, dtype=np.int64)
    return np.sort(rng.choice(np.asarray(valid), WASSERSTEIN_SAMPLES, replace=False))


def property_distance(values: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the Wasserstein distance of two samples (n,), (m,); None if one is empty."""
    if len(values) == 0 or len(reference) == 0:
        return None
    return float(wasserstein_distance(values, reference))
