"""Real crystals and pairs made of them, for the tests of the flow."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

from flowllm.crystal import Crystal
from flowllm.io import schemas, tables
from flowllm.rfm.base_distribution import BaseDistribution, LlmBaseDistribution
from flowllm.rfm.loader import PreparedPairs
from flowllm.rfm.loss import standardization_of
from flowllm.rfm.network import Standardization
from flowllm.rfm.pairs import PairOptions

BOUNDS = (59.9, 120.1)
LLM_FLOW = {
    "name": "llm",
    "start": "llm",
    "coords_noise": 0.0,
    "lengths_noise": 0.0,
    "angles_noise": 0.0,
}
NO_NOISE = LlmBaseDistribution(0.0, 0.0, 0.0)
OPTIONS = PairOptions(BOUNDS, match_atoms=True, base_distribution=NO_NOISE, seed=7)


def open_pairs(
    paths: Sequence[Path], base_distribution: BaseDistribution = NO_NOISE
) -> PreparedPairs:
    return PreparedPairs(paths, base_distribution, BOUNDS)


def statistics(pairs: PreparedPairs) -> Standardization:
    return standardization_of(pairs, np.random.default_rng(0))


@cache
def prototypes(max_atoms: int = 12) -> tuple[Crystal, ...]:
    """pymatgen's AFLOW prototypes as primitive, Niggli-reduced crystals."""
    found = []
    for entry in AFLOW_PROTOTYPE_LIBRARY[:80]:
        structure = entry["snl"].structure.get_primitive_structure().get_reduced_structure()
        if structure.is_ordered and len(structure) <= max_atoms:
            found.append(Crystal.from_structure(structure))
    return tuple(found)


def draft_of(crystal: Crystal, rng: np.random.Generator, scale: float = 0.03) -> Crystal:
    """Perturb and round a crystal, as a language model might write it."""
    coords = crystal.frac_coords + rng.normal(0, scale, crystal.frac_coords.shape)
    angles = crystal.angles + rng.normal(0, 2, 3)
    return Crystal.from_arrays(
        crystal.atomic_numbers,
        np.round(coords % 1, 2),
        np.round(crystal.lengths * rng.normal(1, 0.03, 3), 1),
        np.clip(np.round(angles), 60, 120),
    )


def pair_row(draft: Crystal, target: Crystal, draw: int, split: str = "train") -> dict:
    return {
        "id": f"{split}-{draw:08d}",
        **tables.crystal_columns(draft),
        **tables.crystal_columns(target, "target_"),
        "material_id": f"crystal-{target.formula}",
        "draw": draw,
        "formula": target.formula,
        "status": "ok",
    }


def failed_row(draw: int, split: str = "train") -> dict:
    return {
        "id": f"{split}-{draw:08d}",
        "material_id": "crystal-failed",
        "draw": draw,
        "status": "wrong_formula",
        "error": "the text holds other atoms",
    }


def base_row(crystal: Crystal, index: int) -> dict:
    return {
        "id": f"base-{index:06d}",
        **tables.crystal_columns(crystal),
        "formula": crystal.formula,
        "status": "ok",
    }


def write_pairs(path, crystals, seed: int, draws_each: int = 1, split: str = "train") -> None:
    """One shard of pairs, several draws of each crystal, and one failed row."""
    rng = np.random.default_rng(seed)
    rows = [failed_row(0, split)]
    for crystal in crystals:
        for _ in range(draws_each):
            rows.append(pair_row(draft_of(crystal, rng), crystal, len(rows), split))
    tables.write_table(path, rows, schemas.PAIRS, {"stage": "test"})
