"""Fingerprints of crystals: coordination (CrystalNN) and composition (Magpie), by matminer.

As in CDVAE's definition of coverage, the structure fingerprint is the mean over the sites of
matminer's `CrystalNNFingerprint` with preset "ops", and the composition fingerprint is
`ElementProperty` with preset "magpie" and without imputation.
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
    mean: np.ndarray = np.mean(np.asarray(sites, dtype=np.float64), axis=0)
    return mean


def composition_fingerprint(structure: Structure) -> np.ndarray:
    """Return the Magpie features of a composition, float64 (132,), NaN where unknown."""
    return np.asarray(_composition_featurizer().featurize(structure.composition), dtype=np.float64)


Item = tuple[str, Crystal | None]
"""An id and its crystal, None where there is none."""


def fingerprint(item: Item) -> dict[str, Any]:
    """Return a row of `schemas.FINGERPRINTS`; a failure is recorded in its status and error.

    Raises:
        MemoryError: CrystalNN exceeded the memory limit.
    """
    name, crystal = item
    if crystal is None:
        return {"id": name, "status": "no_crystal", "error": "there is no crystal"}
    row = _properties(item)
    # CrystalNN lists the neighbors within 13 angstrom: far too many for edges of 0.01 angstrom.
    if (failure := crystal_failure(crystal)) is not None:
        return {**row, "status": failure.reason, "error": failure.detail}
    structure = crystal.to_structure()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CrystalNN warns of unknown radii
            row["structure_fingerprint"] = structure_fingerprint(structure).tolist()
            row["composition_fingerprint"] = composition_fingerprint(structure).tolist()
    except MemoryError:
        raise
    except Exception as error:  # matminer raises many types; one crystal must not stop all
        return {**row, "status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {**row, "status": "ok"}


def without_fingerprint(item: Item, reason: str, detail: str) -> dict[str, Any]:
    """Return the row of a crystal whose fingerprint exceeded a limit or ended its process."""
    if item[1] is None:  # the limit was shorter than the start of a process
        return fingerprint(item)
    return {**_properties(item), "status": reason, "error": detail}


def _properties(item: Item) -> dict[str, Any]:
    """Return the part of a row that needs no fingerprint: id, density, number of elements."""
    name, crystal = item
    row: dict[str, Any] = {"id": name}
    if crystal is not None:
        structure = crystal.to_structure()
        density = float(structure.density)
        row["density"] = density if math.isfinite(density) else None
        row["num_elements"] = len(structure.composition)
    return row
