"""Sample FlowMM's base with compositions of the training set (baseline without a language model).

The atoms are those of a random training crystal; coordinates are uniform, lengths log-normal with
the moments of the training crystals, angles uniform on 60 to 120 degrees (Miller et al. 2024).
FlowMM itself generates the atoms, too: the baseline is similar to FlowMM, but not the same.
"""

from pathlib import Path
from typing import Any

import numpy as np
from cyclopts.types import NonNegativeInt, PositiveInt

from flowllm.config.sections.flow import TRAIN_COMPOSITIONS
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.io.schemas import BASE, CRYSTALS
from flowllm.io.tables import crystal_columns, read_table, write_table
from flowllm.runtime.provenance import stage_run
from flowllm.seeds import generator

ANGLES = (60.0, 120.0)
"""Degrees, the range of Niggli-reduced cells."""


def run(
    settings: StageSettings,
    *,
    crystals: Path,
    first_draw: NonNegativeInt,
    count: PositiveInt,
    out: Path,
) -> None:
    """Sample FlowMM's base with compositions of the training set, without a language model.

    Refinement keeps the atoms and draws coordinates and cell again, from its flow's own base.

    Args:
        settings: no sections; only the seed is used.
        crystals: The training split (crystals/train.parquet).
        first_draw: Number of the shard's first draw.
        count: Number of draws in the shard.
        out: Shard to write, one row per crystal.

    Raises:
        FlowllmError: the training split is missing or empty.
    """
    work = {"start": first_draw, "count": count}
    with stage_run(settings, inputs={"crystals": crystals}, output=out, work=work) as run:
        table = read_table(crystals, CRYSTALS, ["atomic_numbers", "lengths"])
        if not table.num_rows:
            raise FlowllmError(f"{crystals}: contains no crystals; run the stage prepare")
        atoms = table.column("atomic_numbers").to_pylist()
        log_lengths = np.log(table.column("lengths").to_pylist())
        rows = []
        for number in range(first_draw, first_draw + count):
            rng = generator(settings.seed, "sample_compositions", number)
            rows.append(_row(number, draw(atoms[rng.integers(len(atoms))], log_lengths, rng)))
        run.count(rows_in=count, rows_out=count, rows_failed=0)
        write_table(out, rows, BASE, run.metadata())


def draw(atomic_numbers: list[int], log_lengths: np.ndarray, rng: np.random.Generator) -> Crystal:
    """Draw a crystal of some atoms from FlowMM's base distribution.

    Args:
        atomic_numbers: atomic numbers (n,).
        log_lengths: logarithms of the training crystals' lengths in angstrom (m, 3).
        rng: source of randomness.
    """
    return Crystal.from_arrays(
        np.asarray(atomic_numbers),
        rng.random((len(atomic_numbers), 3)),
        np.exp(rng.normal(log_lengths.mean(axis=0), log_lengths.std(axis=0))),
        rng.uniform(*ANGLES, 3),
    )


def _row(number: int, crystal: Crystal) -> dict[str, Any]:
    name = f"{TRAIN_COMPOSITIONS}-{number:06d}"
    return {"id": name, **crystal_columns(crystal), "formula": crystal.formula, "status": "ok"}
