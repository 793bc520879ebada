"""Costs per item of each stage, from the records of an earlier run or from a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError

from flowllm.config.sections.base import Section
from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError
from flowllm.io.archive_index import read_index
from flowllm.runtime.provenance import find_records, processors, read_record

DFT_RUNS = "DFT runs"
"""Name, in files of costs, of the DFT calculations, which the workflow does not submit."""


class ItemCost(Section):
    """The cost per item of a stage.

    Attributes:
        seconds: wall time per item of a job with `gpus` or `cpus`.
        gpus: number of GPUs of the measurement, 0 for none.
        cpus: number of cores of the measurement; used if there are no GPUs.
        bytes: size of the output per item.
        start_seconds: wall time from a job's start until its first item, such as for loading the
            model; lost whenever the job is stopped.
        source: where the seconds come from, printed below the estimate.
    """

    seconds: NonNegativeFloat | None = None
    gpus: NonNegativeInt = 0
    cpus: NonNegativeInt = 1
    bytes: NonNegativeFloat | None = None
    start_seconds: NonNegativeFloat = 0.0
    source: str = ""


def costs_of_run(run_dir: Path) -> tuple[dict[str, ItemCost], dict[str, int]]:
    """Read costs, and the number of crystals per split, from the records of a run.

    Args:
        run_dir: the run's folder; stages that have not run there have no cost.

    Raises:
        FlowllmError: the folder contains no records, or one that cannot be read.
    """
    found: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in find_records(run_dir):
        record = read_record(path)
        found.setdefault(record["stage"], []).append((path, record))
    if not found:
        raise FlowllmError(
            f"{run_dir}: contains no records (_*.provenance.json) of an earlier run; name the "
            "run_dir of a run"
        )
    source = f"records of {run_dir}"
    moved = {run_dir / name: one.size for name, one in read_index(run_dir).items()}
    archived = {path: size for path, size in moved.items() if not path.exists()}
    costs = {
        stage: _measured(stage, records, archived).model_copy(update={"source": source})
        for stage, records in found.items()
    }
    counts = found["prepare"][0][1]["counts"] if "prepare" in found else {}
    crystals = {split: counts[split] for split in ("train", "val", "test") if split in counts}
    if crystals:
        crystals["rows"] = counts["rows_in"]
    return costs, crystals


def read_costs(path: Path) -> dict[str, ItemCost]:
    """Read costs from a YAML file: a mapping from stage to the fields of `ItemCost`.

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


def _measured(
    stage: str, records: Sequence[tuple[Path, dict[str, Any]]], archived: Mapping[Path, int]
) -> ItemCost:
    """Return the mean cost per item over a stage's records.

    Args:
        stage: name of the stage.
        records: its records, with their paths.
        archived: bytes of the outputs that were moved away, by their former paths.
    """
    items = sum(_items_of(stage, record) for _, record in records)
    machines = [processors(record["hardware"]) for _, record in records]
    if not items:
        return ItemCost()
    sizes = [_output_bytes(path, archived) for path, _ in records]
    known = [size for size in sizes if size is not None]
    return ItemCost(
        seconds=sum(record["seconds"] for _, record in records) / items,
        gpus=max(gpus for gpus, _ in machines),
        cpus=max(cpus for _, cpus in machines),
        bytes=sum(known) / items if len(known) == len(sizes) else None,
    )


def _items_of(stage: str, record: Mapping[str, Any]) -> int:
    """Return the number of items of one record, counted as in `count_items`."""
    counts, settings = record["counts"], record["settings"]
    if stage in ("finetune_llm", "train_rfm"):
        return int(counts["steps"] * settings[stage]["batch_size"])
    if stage in ("fetch_model", "merge_adapter", "dft_hull", "report"):
        return 1
    if stage == "download":
        return int(counts["rows_out"])
    if stage == "dft_inputs":
        return int(counts["rows_out"])  # of the other rows nothing is written
    if stage == "dft_collect":
        return int(counts["rows_in"] - counts.get("statuses", {}).get("not_selected", 0))
    return int(counts["rows_in"])


def _output_bytes(record: Path, archived: Mapping[Path, int]) -> int | None:
    """Return the bytes of the output of a record, with the files that the output lists.

    Returns:
        None if the output was deleted.
    """
    output = record.with_name(record.name.removeprefix("_").removesuffix(".provenance.json"))
    if output.name in ("manifest.json", "manifest.parquet", "index.html"):
        output = output.parent
    moved = [size for path, size in archived.items() if path.is_relative_to(output)]
    if not output.exists() and not moved:
        return None
    files = output.rglob("*") if output.is_dir() else [output]
    return sum(path.stat().st_size for path in files if path.is_file()) + sum(moved)
