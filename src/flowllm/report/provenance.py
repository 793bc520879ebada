"""Time, cost and drafts from the provenance records of a run's stages."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flowllm.config.stages import STAGES
from flowllm.io.file_errors import check_form
from flowllm.report.training_history import ALL_FOUND, belongs
from flowllm.runtime.provenance import (
    RECORD_CURE,
    RECORD_SUFFIX,
    find_records,
    processors,
    provenance_path,
    read_record,
)


@dataclass(frozen=True)
class StageCost:
    """Resources used by all jobs of a stage.

    Attributes:
        stage: name of the stage.
        jobs: number of records.
        seconds: wall time, summed over the jobs.
        longest: wall time of the longest job in seconds.
        peak_memory_mb: maximum over the jobs, MiB.
        core_hours: wall time times the number of cores visible to a job, summed over the jobs.
        gpu_hours: wall time times the number of GPUs visible to a job, summed over the jobs.
        tokens_per_second: tokens per second of generation; None for stages that generate none.
        rows: sums of rows_in, rows_out and rows_failed; None where no job recorded them.
    """

    stage: str
    jobs: int
    seconds: float
    longest: float
    peak_memory_mb: int
    core_hours: float
    gpu_hours: float
    tokens_per_second: float | None
    rows: dict[str, int | None]

    @property
    def rows_per_second(self) -> float | None:
        """Rows read per second and job, including the start of the job."""
        rows = self.rows["rows_in"]
        return rows / self.seconds if rows and self.seconds else None

    @property
    def gpu_seconds_per_row(self) -> float | None:
        """GPU-seconds per output row, such as a pair; None without GPUs."""
        rows = self.rows["rows_out"]
        return 3600 * self.gpu_hours / rows if rows and self.gpu_hours else None


def read_records(run_dir: Path, shards: Mapping[str, int] = ALL_FOUND) -> list[dict[str, Any]]:
    """Read the provenance records in a run's folder, sorted by path, except those of reports.

    Args:
        run_dir: folder of the run.
        shards: number of shards of the run, by folder; records of other shards are not read.

    Returns:
        The records, each with the key `output`: its path relative to the run's folder.

    Raises:
        FlowllmError: a record cannot be read, is empty or truncated, or has another form.
    """
    records = []
    for path in find_records(run_dir):
        name = path.name.removeprefix("_").removesuffix(RECORD_SUFFIX)
        output = str(path.relative_to(run_dir).with_name(name))
        if not belongs(output, shards):
            continue
        record = read_record(path)
        if record["stage"] != "report":
            records.append(record | {"output": output})
    return records


class _Flow(BaseModel):
    """Keys that are read of a row of `flows`; noise applies to the language model's crystals."""

    name: str
    start: str
    coords_noise: float = 0.0
    lengths_noise: float = 0.0
    angles_noise: float = 0.0


class _Drafts(BaseModel):
    """Keys that are read of the counts of sampled texts."""

    drafts: int
    rows_in: int
    rows_out: int


def _checked(record: Mapping[str, Any], values: Any, form: type[BaseModel]) -> Any:
    """Return a part of a record unchanged.

    Raises:
        FlowllmError: the part has another form.
    """
    check_form(values, form, provenance_path(Path(record.get("output", "."))), RECORD_CURE)
    return values


def stage_costs(records: Sequence[dict[str, Any]]) -> list[StageCost]:
    """Sum the records of each stage, in the order of the pipeline."""
    by_stage: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_stage[record["stage"]].append(record)
    costs = []
    for stage in sorted(by_stage, key=_stage_order):
        jobs = by_stage[stage]
        worked = [(job["seconds"] / 3600, processors(job["hardware"])) for job in jobs]
        rows = {}
        for name in ("rows_in", "rows_out", "rows_failed"):
            found = [job["counts"][name] for job in jobs if name in job["counts"]]
            rows[name] = sum(found) if found else None
        costs.append(
            StageCost(
                stage=stage,
                jobs=len(jobs),
                seconds=sum(job["seconds"] for job in jobs),
                longest=max(job["seconds"] for job in jobs),
                peak_memory_mb=max(job["peak_memory_mb"] for job in jobs),
                core_hours=sum(hours * cores for hours, (_, cores) in worked),
                gpu_hours=sum(hours * gpus for hours, (gpus, _) in worked),
                tokens_per_second=_tokens_per_second([job["counts"] for job in jobs]),
                rows=rows,
            )
        )
    return costs


def _tokens_per_second(counts: Sequence[dict[str, Any]]) -> float | None:
    """Return the tokens of some jobs per second of generation; None without generation."""
    seconds = sum(count.get("generation_seconds", 0) for count in counts)
    return sum(count.get("generated_tokens", 0) for count in counts) / seconds if seconds else None


@dataclass(frozen=True)
class DraftCount:
    """Numbers of the language model's drafts for one purpose, summed over the shards.

    Attributes:
        where: folder and name of the pairs or of the base.
        structured: whether a grammar constrained the text.
        temperature: sampling temperature.
        top_p: probability mass of nucleus sampling.
        drafts: number of texts.
        accepted: number of texts that are crystals.
        draws: number of crystals requested.
    """

    where: str
    structured: bool
    temperature: float
    top_p: float
    drafts: int
    accepted: int
    draws: int


def draft_counts(records: Sequence[dict[str, Any]]) -> list[DraftCount]:
    """Sum the language model's drafts by their purpose, in the order of the pipeline."""
    shards: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record["stage"] in ("sample_pairs", "sample_base", "sample_csp"):
            folder, name, *_ = record["output"].split("/")
            shards[f"{folder} {name}"].append(record)
    found = []
    for jobs in shards.values():
        for job in jobs:
            _checked(job, job["counts"], _Drafts)
    for where, jobs in sorted(shards.items(), key=lambda item: _stage_order(item[1][0]["stage"])):
        settings, stage = jobs[0]["settings"], jobs[0]["stage"]
        section = settings["sample_pairs" if stage == "sample_pairs" else "sample_base"]
        sampling = settings.get("base") or settings.get("csp_base") or section
        found.append(
            DraftCount(
                where=where,
                structured=section["structured"],
                temperature=sampling["temperature"],
                top_p=sampling["top_p"],
                drafts=sum(job["counts"]["drafts"] for job in jobs),
                accepted=sum(job["counts"]["rows_out"] for job in jobs),
                draws=sum(job["counts"]["rows_in"] for job in jobs),
            )
        )
    return found


def _stage_order(stage: str) -> tuple[int, str]:
    names = list(STAGES)
    return (names.index(stage) if stage in names else len(names), stage)


def flows_of(records: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the rows `flows` of the configuration that were trained, by name."""
    flows = [
        _checked(record, record["settings"].get("flow"), _Flow)
        for record in records
        if record["stage"] == "train_rfm"
    ]
    return {flow["name"]: flow for flow in flows}


def starts_from_drafts(flow: Mapping[str, Any]) -> bool:
    """Return whether a row of `flows` starts from the language model's crystals without noise."""
    noise = ("coords_noise", "lengths_noise", "angles_noise")
    return flow["start"] == "llm" and not any(flow.get(name) for name in noise)


def generation_seconds(
    records: Sequence[dict[str, Any]], base: str, method: str, drawn: int | None = None
) -> float | None:
    """Return the seconds of sampling and refining one method; None if records are missing.

    Args:
        records: all records of the run.
        base: name of the base.
        method: name of the method.
        drawn: number of crystals of the method. If the records have another number, some are
            missing and the time is unknown.
    """
    total = 0.0
    for folder in (f"base/{base}/", f"generated/{method}/"):
        found = [record for record in records if record["output"].startswith(folder)]
        if not found:
            return None
        if drawn is not None and sum(one["counts"].get("rows_in", 0) for one in found) != drawn:
            return None
        total += sum(record["seconds"] for record in found)
    return total
