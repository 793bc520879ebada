"""What the provenance records of a run's stages say: time, cost, the language model's drafts."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowllm.config import STAGES
from flowllm.runlog import processors

RECORD_SUFFIX = ".provenance.json"


@dataclass(frozen=True)
class StageCost:
    """What a stage's jobs took together.

    Attributes:
        stage: its name.
        jobs: number of records.
        seconds: sum over the jobs.
        longest: seconds of the longest job.
        peak_memory_mb: of the job with the most.
        core_hours: wall time times the cores that a job saw, summed.
        gpu_hours: the same of GPUs.
        tokens_per_second: of the language model while it generates, None for other stages.
        rows: sums of rows_in, rows_out and rows_failed, None where no job counted them.
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
        """Rows read a second of one job, its start included."""
        rows = self.rows["rows_in"]
        return rows / self.seconds if rows and self.seconds else None

    @property
    def gpu_seconds_per_row(self) -> float | None:
        """GPU-seconds for one row that came out, such as a pair; None without GPUs."""
        rows = self.rows["rows_out"]
        return 3600 * self.gpu_hours / rows if rows and self.gpu_hours else None


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """Read every provenance record below a run's folder, by path; those of earlier reports not."""
    records = []
    for path in sorted(run_dir.rglob("*" + RECORD_SUFFIX)):
        if any(part.startswith(".") for part in path.relative_to(run_dir).parts):
            continue  # partial results and logs of others
        record = json.loads(path.read_text())
        if record["stage"] == "report":
            continue
        name = path.name.removeprefix("_").removesuffix(RECORD_SUFFIX)
        record["output"] = str(path.relative_to(run_dir).with_name(name))
        records.append(record)
    return records


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
    """Return the tokens of some jobs over the time that they generated; None without any."""
    seconds = sum(count.get("generation_seconds", 0) for count in counts)
    return sum(count.get("generated_tokens", 0) for count in counts) / seconds if seconds else None


@dataclass(frozen=True)
class DraftCount:
    """What the language model's drafts of one kind came to, over the shards.

    Attributes:
        where: the pairs or the base they were drawn for.
        structured: whether a grammar fixed the form of the text.
        temperature: of sampling.
        top_p: of sampling.
        drafts: texts written.
        accepted: texts that gave a crystal.
        draws: crystals asked for.
    """

    where: str
    structured: bool
    temperature: float
    top_p: float
    drafts: int
    accepted: int
    draws: int


def draft_counts(records: Sequence[dict[str, Any]]) -> list[DraftCount]:
    """Sum the language model's drafts by what they were for, in the order of the pipeline."""
    shards: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record["stage"] in ("sample_pairs", "sample_base", "sample_csp"):
            folder, name, *_ = record["output"].split("/")
            shards[f"{folder} {name}"].append(record)
    found = []
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
    """Return the rows `flows` of the configuration that were trained, by their names."""
    flows = [record["settings"]["flow"] for record in records if record["stage"] == "train_rfm"]
    return {flow["name"]: flow for flow in flows}


def starts_from_drafts(flow: Mapping[str, Any]) -> bool:
    """Whether a row of `flows` starts from the language model's crystals as they are."""
    noise = ("coords_noise", "lengths_noise", "angles_noise")
    return flow["start"] == "llm" and not any(flow[name] for name in noise)


def generation_seconds(records: Sequence[dict[str, Any]], base: str, setting: str) -> float | None:
    """Return the seconds that sampling and refining one setting took, None without its records.

    Args:
        records: all records of the run.
        base: name of the base.
        setting: name of the setting.
    """
    folders = (f"base/{base}/", f"generated/{setting}/")
    found = [
        [record["seconds"] for record in records if record["output"].startswith(folder)]
        for folder in folders
    ]
    return sum(map(sum, found)) if all(found) else None
