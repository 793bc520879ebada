"""Fingerprints of crystals: coordination (CrystalNN) and composition (Magpie), by matminer.

As CDVAE defined coverage: the structure's fingerprint is the mean over the sites of matminer's
`CrystalNNFingerprint` "ops", the composition's is `ElementProperty` "magpie" without imputation.
"""

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

import numpy as np
from matminer.featurizers.composition.composite import ElementProperty
from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
from pymatgen.core import Structure

from flowllm.crystal import Crystal

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


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds; main thread only."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"not finished after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fingerprint(item: tuple[str, Crystal | None], max_seconds: float) -> dict[str, Any]:
    """Return a row of `tables.FINGERPRINTS`; what fails becomes its status and error.

    Args:
        item: id and crystal, None where there is none.
        max_seconds: CrystalNN can hang on what is far from a crystal; it is stopped then.
    """
    name, crystal = item
    if crystal is None:
        return {"id": name, "status": "no_crystal", "error": "there is no crystal"}
    structure = crystal.to_structure()
    row: dict[str, Any] = {
        "id": name,
        "density": float(structure.density),
        "num_elements": len(structure.composition),
    }
    try:
        with time_limit(max_seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CrystalNN's, on radii that it does not know
            row["structure_fingerprint"] = structure_fingerprint(structure).tolist()
            row["composition_fingerprint"] = composition_fingerprint(structure).tolist()
    except TimeoutError as error:
        return {**row, "status": "timeout", "error": str(error)}
    except Exception as error:  # matminer raises many kinds; one crystal must not stop all
        return {**row, "status": "failed", "error": f"{type(error).__name__}: {error}"}
    return {**row, "status": "ok"}
