"""The parts of a run that `flowllm generate` and `flowllm release` read, made in seconds."""

from pathlib import Path
from typing import Any

from crystals import rocksalt
from flow_pairs import prototypes, write_pairs
from flow_training import SMALL as SMALL_FLOW
from flowllm.config.load import check_config, load_config, merge
from flowllm.config.model import Config
from flowllm.config.recorded import recorded_text
from flowllm.config.stage_settings import StageSettings
from flowllm.evaluate.hull import potential_label
from flowllm.io.schemas import HULL_ENTRIES
from flowllm.io.tables import write_table
from flowllm.relax.models import LABELS
from flowllm.stages import finetune_llm, merge_adapter, train_rfm
from llm_run import CONFIGS, SMALL, crystal_table, small_crystals

HULL = {
    **{"Na1": -1.3, "Cl1": -1.8, "K1": -1.1, "Cu1": -3.7, "Ti1": -7.8, "O1": -4.9},
    **{"Na1Cl1": -3.4, "Na2Cl2": -3.3, "Na4Cl4": -3.35, "Cu3Ti1": -5.1, "Na2O1": -3.9},
}
"""Energies in eV/atom by formula of the cell; some compositions have several."""


SCRATCH = {
    **{"base_model": "scratch", "method": "full"},
    "scratch": {"width": 64, "layers": 2, "heads": 2},
}


def small_config(**changes: dict[str, Any]) -> Config:
    """The demonstration's configuration with a tiny scratch model and a tiny flow."""
    drafts = {"backend": "transformers", "structured": False, "max_attempts": 2}
    alike = {"structured": False}
    overlay = {
        "finetune_llm": {**SMALL, **SCRATCH, "max_steps": 4},
        "train_rfm": SMALL_FLOW,
        "sample_base": drafts,
        "sample_pairs": alike,
        "potential": {"name": "chgnet"},
    }
    values = load_config(CONFIGS).model_dump(mode="json")
    return check_config(merge(merge(values, overlay), changes))


def stage_settings(stage: str, row: str | None = None, **changes: dict[str, Any]) -> StageSettings:
    return StageSettings.from_config(stage, small_config(**changes), row)


def write_small_run(folder: Path) -> Path:
    """Write the folder of a run, trained for a few steps, and return it; pairs are beside it."""
    run = folder / "run"
    for split, crystals in (("train", small_crystals()), ("val", [rocksalt()])):
        crystal_table(run / "crystals" / f"{split}.parquet", crystals)
    train, val = (run / "crystals" / f"{split}.parquet" for split in ("train", "val"))
    adapter = run / "llm" / "adapter"
    finetune_llm.run(stage_settings("finetune_llm"), train=train, val=val, out=adapter)
    merge_adapter.run(stage_settings("merge_adapter"), adapter=adapter, out=run / "llm" / "model")
    pairs = folder / "pairs.parquet"
    write_pairs(pairs, prototypes()[:8], 0)
    settings = stage_settings("train_rfm", "llm")
    train_rfm.run(settings, pairs=[pairs], val_pairs=[pairs], out=run / "rfm" / "llm")
    write_hull(run / "hull" / "potential.parquet")
    config = small_config().model_copy(update={"run_dir": str(run)})
    (run / "config.yaml").write_text(recorded_text(config))
    return run


def write_hull(path: Path) -> None:
    section = small_config().prerelax
    label = potential_label(
        LABELS[small_config().potential.name], section.max_force, section.max_steps
    )
    rows = [
        {
            "entry_id": f"entry-{number}",
            "formula": formula,
            "num_atoms": 1,
            "energy_per_atom": energy,
            "kind": "potential",
            "source": label,
            "converged": True,
        }
        for number, (formula, energy) in enumerate(HULL.items())
    ]
    write_table(path, rows, HULL_ENTRIES, {"stage": "reference_hull"})
