"""Fingerprints of crystals: coordination (CrystalNN) and composition (Magpie), by matminer.

As CDVAE defined coverage: the structure's fingerprint is the mean over the sites of matminer's
`CrystalNNFingerprint` "ops", the composition's is `ElementProperty` "magpie" without imputation.
"""

import math
import warnings
from functools import cache
from typing import Any

import numpy as np
from matminer.featurizers.composition.composite import ElementProperty
from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
from pymatgen.core import Structure

from flowllm.crystal import Crystal
from flowllm.relax.failures import crystal_failure

STRUCTURE_FEATURES = 61
COMPOSITION_FEATURES = 132


@cache
def _site_featurizer() -> CrystalNNFingerprint:
    return CrystalNNFingerprint.from_preset("ops")


@cache
def _composition_featurizer() -> ElementProperty:
    return ElementProperty.from_preset("magpie", impute_nan=False)


def structure_fingerprint(structure: Structure) -> np.ndarray:
    """Return the mean over the sites of the CrystalNN fingerprint, float64 (61,)."""
    featurizer = _site_featurizer()
    sites = [featurizer.featurize(structure, index) for index in range(len(structure))]
    return np.mean(np.asarray(sites, dtype=np.float64), axis=0)


def composition_fingerprint(structure: Structure) -> np.ndarray:
    """Return the Magpie features of a composition, float64 (132,), NaN where unknown."""
    return np.asarray(_composition_featurizer().featurize(structure.composition), dtype=np.float64)


Item = tuple[str, Crystal | None]
"""An id and its crystal, None where there is none."""


def fingerprint(item: Item) -> dict[str, Any]:
    """Return a row of `schemas.FINGERPRINTS`; what fails becomes its status and error.

    Raises:
        MemoryError: CrystalNN asked for more than there is.
    """
    name, crystal = item
    if crystal is None:
        return {"id": name, "status": "no_crystal", "error": "there is no crystal"}
    row = _properties(item)
    # CrystalNN looks for neighbors within 13 angstrom: in a needle of 0.01 angstrom without end.
    if (failure := crystal_failure(crystal)) is not None:
        return {**row, "status": failure.reason, "error": failure.detail}
    structure = crystal.to_structure()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CrystalNN's, on radii that it does not know
            row["structure_fingerprint"] = structure_fingerprint(structure).tolist()
            row["composition_fingerprint"] = composition_fingerprint(structure).tolist()
    except MemoryError:
        raise
    except Exception as error:  # matminer raises many kinds; one crystal must not stop all
        return {**row, "status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {**row, "status": "ok"}


def without_fingerprint(item: Item, reason: str, detail: str) -> dict[str, Any]:
    """Return the row of a crystal whose fingerprint took too much, or ended its process."""
    if item[1] is None:  # a limit that not even the start of a process keeps
        return fingerprint(item)
    return {**_properties(item), "status": reason, "error": detail}


def _properties(item: Item) -> dict[str, Any]:
    """Return what a row has without a fingerprint: id, density and number of elements."""
    name, crystal = item
    row: dict[str, Any] = {"id": name}
    if crystal is not None:
        structure = crystal.to_structure()
        density = float(structure.density)
        row["density"] = density if math.isfinite(density) else None
        row["num_elements"] = len(structure.composition)
    return row
