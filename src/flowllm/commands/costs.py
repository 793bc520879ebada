"""Costs of one item of each stage, from an earlier run's records or from a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError

from flowllm.config.sections.base import Section
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError
from flowllm.runtime.provenance import find_records, processors, read_record

DFT_RUNS = "DFT runs"
"""The calculations themselves, which the workflow does not submit; a figure may be named so."""


class ItemCost(Section):
    """What one item of a stage costs.

    Attributes:
        seconds: wall time of a job with `gpus` or `cpus`, for one item.
        gpus: GPUs that it was measured with, 0 for a measurement without.
        cpus: cores likewise; they count where there are no GPUs.
        bytes: of the output.
    """

    seconds: NonNegativeFloat | None = None
    gpus: NonNegativeInt = 0
    cpus: NonNegativeInt = 1
    bytes: NonNegativeFloat | None = None


def costs_of_run(run_dir: Path) -> tuple[dict[str, ItemCost], dict[str, int]]:
    """Take figures, and the number of crystals in each split, from the records of a run.

    Args:
        run_dir: the run's folder; stages that have not run there get no figure.

    Raises:
        FlowllmError: the folder holds no records, or one that cannot be read.
    """
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in find_records(run_dir):
        record = read_record(path)
        found.setdefault(record["stage"], []).append((path, record))
    if not found:
        raise FlowllmError(f"{run_dir}: holds no records (_*.provenance.json) of an earlier run")
    costs = {stage: _measured(stage, records) for stage, records in found.items()}
    counts = found["prepare"][0][1]["counts"] if "prepare" in found else {}
    crystals = {split: counts[split] for split in ("train", "val", "test") if split in counts}
    if crystals:
        crystals["rows"] = counts["rows_in"]
    return costs, crystals


def read_costs(path: Path) -> dict[str, ItemCost]:
    """Read figures from a YAML file: a mapping from stage to `ItemCost`'s fields.

    Raises:
        FlowllmError: it is missing, not YAML, or has another stage, key or value.
    """
    names = Literal[(*STAGES, DFT_RUNS)]  # type: ignore[valid-type]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[names, ItemCost]).validate_python(values)
    except OSError as error:
        raise FlowllmError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise FlowllmError(f"{path}: {error}") from error


def _measured(stage: str, records: Sequence[tuple[Path, dict[str, Any]]]) -> ItemCost:
    """Return the mean cost of an item over a stage's records."""
    items = sum(_items_of(stage, record) for _, record in records)
    machines = [processors(record["hardware"]) for _, record in records]
    if not items:
        return ItemCost()
    return ItemCost(
        seconds=sum(record["seconds"] for _, record in records) / items,
        gpus=max(gpus for gpus, _ in machines),
        cpus=max(cpus for _, cpus in machines),
        bytes=sum(_output_bytes(path) for path, _ in records) / items,
    )


def _items_of(stage: str, record: Mapping[str, Any]) -> int:
    """Return the items of one record, of the kind that `count_items` counts."""
    counts, settings = record["counts"], record["settings"]
    if stage in ("finetune_llm", "train_rfm"):
        return int(counts["steps"] * settings[stage]["batch_size"])
    if stage in ("fetch_model", "merge_adapter", "dft_hull", "report"):
        return 1
    if stage == "download":
        return int(counts["rows_out"])
    return int(counts["rows_in"])


def _output_bytes(record: Path) -> int:
    """Size of the output that a record lies beside; of its folder where it only lists files."""
    output = record.with_name(record.name.removeprefix("_").removesuffix(".provenance.json"))
    if output.name in ("manifest.json", "manifest.parquet", "index.html"):
        output = output.parent
    files = output.rglob("*") if output.is_dir() else [output]
    return sum(path.stat().st_size for path in files if path.is_file())
