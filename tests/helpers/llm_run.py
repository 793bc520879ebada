"""What the tests of the language model's stages share: crystals, settings, a merged tiny model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from crystals import caesium_chloride, fcc, perovskite, rocksalt
from flowllm.config.load import check_config, load_config, merge
from flowllm.config.model import SHAPES_OF_DRAFTS
from flowllm.config.stage_settings import StageSettings
from flowllm.crystal import Crystal
from flowllm.io.schemas import CRYSTALS
from flowllm.io.tables import crystal_columns, write_table
from flowllm.llm import model_folder
from flowllm.llm.engines.base import Draft, DraftRequest, Engine, SamplingOptions
from flowllm.stages import finetune_llm, merge_adapter
from tiny_llm import write_tiny_llm

ROOT = Path(__file__).parents[2]
CONFIGS = [ROOT / "config.yaml", ROOT / "workflow" / "config" / "smollm2.yaml"]

SMALL = {
    "precision": "fp32",
    "quantization": "none",
    "lora_rank": 4,
    "lora_dropout": 0.0,
    "epochs": 1000,
    "max_steps": 6,
    "batch_size": 4,
    "micro_batch_size": 4,
    "warmup_steps": 1,
    "max_tokens": 1024,
    "eval_steps": 100,
    "save_steps": 100,
}


def settings_for(
    stage: str, base: Path, *, row: str | None = None, **changes: Any
) -> StageSettings:
    """A stage's settings: those of smollm2.yaml, a small fine-tuning of `base`, and the changes.

    What must be alike in pairs and bases is changed in both.
    """
    drafts = {**changes.get("sample_pairs", {}), **changes.get("sample_base", {})}
    alike = {key: drafts[key] for key in SHAPES_OF_DRAFTS if key in drafts}
    changes = merge({"sample_pairs": alike, "sample_base": alike}, changes)
    config = load_config(CONFIGS).model_dump(mode="json")
    attempts = {stage: {"max_attempts": 20} for stage in ("sample_pairs", "sample_base")}
    config = merge(config, {"finetune_llm": {"base_model": str(base), **SMALL}, **attempts})
    return StageSettings.from_config(stage, check_config(merge(config, changes)), row)


def small_crystals() -> list[Crystal]:
    """Eight cells of one to five atoms."""
    return [
        rocksalt(),
        caesium_chloride(),
        perovskite(),
        fcc(),
        rocksalt("Na", "O", 5.1),
        caesium_chloride("Na", "O", 3.3),
        fcc("Ti", 4.1),
        perovskite("Na", "Cu", "Cl", 4.8),
    ]


def crystal_table(path: Path, crystals: list[Crystal]) -> Path:
    """Write crystals as `prepare` does."""
    rows = [
        {
            "id": f"crystal-{i}",
            **crystal_columns(crystal),
            "num_atoms": crystal.num_atoms,
            "formula": crystal.formula,
        }
        for i, crystal in enumerate(crystals)
    ]
    write_table(path, rows, CRYSTALS, {})
    return path


def drafts_of(engine: Engine, requests: Sequence[DraftRequest]) -> list[Draft]:
    """Let an engine write all texts; in the order of the requests."""
    for key, request in enumerate(requests):
        engine.submit(key, request)
    found: dict[int, Draft] = {}
    while len(found) < len(requests):
        found |= dict(engine.finished())
    return [found[key] for key in range(len(requests))]


class NotStartedError(Exception):
    """Ends a stage where it starts its engine."""


def options_of_engine(
    monkeypatch: pytest.MonkeyPatch, sample: Callable[[], object]
) -> SamplingOptions:
    """Run a stage until it starts vLLM; return the options of the token sampling."""
    asked: list[SamplingOptions] = []

    def start(*_: object, sampling: SamplingOptions, **__: object) -> Engine:
        asked.append(sampling)
        raise NotStartedError

    monkeypatch.setattr(model_folder, "VllmEngine", start)
    with pytest.raises(NotStartedError):
        sample()
    return asked[0]


def merged_model(folder: Path, **changes: Any) -> dict[str, Path]:
    """Fine-tune, with these changes of settings, and merge a tiny model.

    Returns the paths of `base`, `train` and `model`.
    """
    base = write_tiny_llm(folder / "base")
    train = crystal_table(folder / "train.parquet", small_crystals())
    settings = settings_for("finetune_llm", base, **changes)
    finetune_llm.run(settings, train=train, val=train, out=folder / "adapter")
    settings = settings_for("merge_adapter", base)
    merge_adapter.run(settings, adapter=folder / "adapter", out=folder / "model")
    return {"base": base, "train": train, "model": folder / "model"}
