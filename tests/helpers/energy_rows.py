"""Rows and settings for the stages from relaxation to stability."""

from pathlib import Path
from typing import Any

from flowllm.config.load import load_config, merge
from flowllm.config.stage_settings import StageSettings, stage_values
from flowllm.crystal import Crystal
from flowllm.io import tables

CHGNET = "CHGNet 0.3.0, relaxed to 0.1 eV/Å in at most 1500 steps"
"""The name of CHGNet's energies by config.yaml's prerelax."""

CONFIG = Path(__file__).parents[2] / "config.yaml"


def settings(stage: str, **changes: dict[str, Any]) -> StageSettings:
    """A stage's settings from config.yaml, with changed values by section."""
    values = stage_values(load_config([CONFIG]), stage)
    return StageSettings(stage, merge(values, changes))


def generated_row(crystal: Crystal | None, crystal_id: str, **changes: Any) -> dict[str, Any]:
    """A row of tables.GENERATED; without a crystal a failed one."""
    row = {
        "id": crystal_id,
        **tables.crystal_columns(crystal),
        "formula": crystal.formula if crystal else None,
        "num_steps": 0,
        "status": "ok" if crystal else "bad_number",
        "error": None if crystal else "line 1: 'x' is not a number",
    }
    return row | changes


def relaxed_row(
    crystal: Crystal | None, crystal_id: str, energy: float | None = None, **changes: Any
) -> dict[str, Any]:
    """A row of tables.RELAXED with an energy per atom."""
    row = generated_row(crystal, crystal_id) | {
        "potential": CHGNET,
        "initial_energy_per_atom": energy,
        "final_energy_per_atom": energy,
        "max_force": 0.05,
        "num_steps": 2,
        "converged": True,
    }
    return row | changes


def crystal_row(crystal: Crystal, material_id: str) -> dict[str, Any]:
    """A row of tables.CRYSTALS."""
    composition = crystal.to_structure().composition
    return {
        "id": material_id,
        **tables.crystal_columns(crystal),
        "num_atoms": crystal.num_atoms,
        "formula": crystal.formula,
        "reduced_formula": composition.reduced_formula,
    }


def hull_row(formula: str, energy: float, kind: str = "potential", source: str = CHGNET):
    """A row of tables.HULL_ENTRIES; the energy is per atom."""
    return {
        "entry_id": f"{formula}-{energy}",
        "formula": formula,
        "num_atoms": 1,
        "energy_per_atom": energy,
        "kind": kind,
        "source": source,
    }
