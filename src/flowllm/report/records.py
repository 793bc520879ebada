"""What the report reads: the metrics' JSON and flags, and the records that lie in the run's folder.

Only the metrics are demanded. Everything else is read where it exists, so that a report can be made
of any part of a run.
"""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flowllm import tables
from flowllm.config import STAGES
from flowllm.errors import FlowllmError
from flowllm.evaluate.results import FORMAT
from flowllm.tables import read_table

FLAGS = ("id", "num_elements", "e_above_hull", "unique", "novel", "sun")
"""What the report reads of each crystal."""

RECORD_SUFFIX = ".provenance.json"


@dataclass(frozen=True)
class Result:
    """One setting's metrics by one kind of energies.

    Attributes:
        numbers: the JSON of the metrics stage.
        flags: the columns `FLAGS` of every crystal.
    """

    numbers: dict[str, Any]
    flags: pa.Table

    @property
    def setting(self) -> str:
        """Name of the setting."""
        return str(self.numbers["setting"])

    @property
    def row(self) -> dict[str, Any]:
        """All of the setting's numbers by their names, for any of the tables."""
        return {
            "setting": self.setting,
            "drawn": self.numbers["counts"]["drawn"],
            **self.numbers["rates"],
            **self.numbers["means"],
            **self.numbers["distances"],
        }

    @property
    def e_above_hull(self) -> list[float]:
        """E_hull in eV per atom, of the crystals that have one."""
        return self.flags.column("e_above_hull").drop_null().to_pylist()

    @property
    def kind(self) -> str:
        """Whose energies: `potential` or `dft`."""
        return str(self.numbers["protocol"]["energies"])


@dataclass(frozen=True)
class Curve:
    """A training curve: columns by name, NaN where a row has no value."""

    name: str
    columns: dict[str, list[float]]


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


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Read the metrics' JSON files and the flags beside them.

    Raises:
        FlowllmError: a file is missing, is not JSON, or was written by another version.
    """
    results = []
    for path in paths:
        numbers = _read_json(path, FORMAT, "metrics")
        flags = read_table(path.with_suffix(".parquet"), tables.METRICS_PER_CRYSTAL, FLAGS)
        results.append(Result(numbers, flags))
    return results


def once_a_setting(results: Sequence[Result]) -> list[Result]:
    """Return one result a setting, for numbers that do not depend on whose energies were used."""
    found: dict[str, Result] = {}
    for result in results:
        found.setdefault(result.setting, result)
    return list(found.values())


def read_predictions(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read the numbers of structure prediction, csp/{setting}.json.

    Raises:
        FlowllmError: a file is missing, is not JSON, or was written by another version.
    """
    return [_read_json(path, tables.CSP_FORMAT, "match_csp") for path in paths]


def _read_json(path: Path, version: int, stage: str) -> dict[str, Any]:
    try:
        numbers = json.loads(path.read_text())
    except OSError as error:
        raise FlowllmError(f"{path}: {error.strerror}; run the stage {stage}") from error
    except json.JSONDecodeError as error:
        raise FlowllmError(f"{path}: not JSON ({error}); run the stage {stage} again") from error
    if numbers.get("format") != version:
        raise FlowllmError(
            f"{path}: format {numbers.get('format')!r}, expected {version}; "
            f"run the stage {stage} again"
        )
    return numbers


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
                core_hours=sum(job["seconds"] * job["hardware"]["cpus"] for job in jobs) / 3600,
                gpu_hours=sum(job["seconds"] * len(job["hardware"].get("gpus", ())) for job in jobs)
                / 3600,
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


def read_curves(run_dir: Path) -> list[Curve]:
    """Read the training curves that exist."""
    paths = {"Language model": run_dir / "llm" / "adapter" / "training_curve.csv"}
    for path in sorted((run_dir / "rfm").glob("*/training_curve.csv")):
        paths[f"Flow {path.parent.name}"] = path
    return [Curve(name, _columns(path)) for name, path in paths.items() if path.exists()]


def _columns(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    names = list(rows[0]) if rows else []
    return {name: [_number(row[name]) for row in rows] for name in names}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def read_rejections(run_dir: Path) -> list[tuple[str, str, int]]:
    """Count what was turned away, as (where, reason, count), the most frequent first."""
    found = _rejected_rows(run_dir / "crystals" / "rejected.parquet")
    for split in ("train", "val"):
        shards = sorted((run_dir / "pairs" / split).glob("shard-*.parquet"))
        found += _drafts(f"pairs, {split}", shards, tables.PAIRS)
    for folder in sorted((run_dir / "base").glob("*")):
        shards = sorted(folder.glob("shard-*.parquet"))
        found += _drafts(f"base {folder.name}", shards, tables.BASE)
    return found


def _rejected_rows(path: Path) -> list[tuple[str, str, int]]:
    if not path.exists():
        return []
    reasons = read_table(path, tables.REJECTED, ["reason"]).column(0)
    return _ordered("source rows", Counter(reasons.to_pylist()))


def _drafts(where: str, shards: Iterable[Path], schema: pa.Schema) -> list[tuple[str, str, int]]:
    """Count the language model's turned away drafts, and the draws that were given up."""
    drafts: Counter[str] = Counter()
    given_up: Counter[str] = Counter()
    for shard in shards:
        table = read_table(shard, schema, ["rejections", "status"])
        drafts.update(_value_counts(pc.list_flatten(table.column("rejections"))))
        given_up.update(_value_counts(table.column("status")))
    del given_up["ok"]
    return _ordered(f"{where}: drafts", drafts) + _ordered(f"{where}: given up", given_up)


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    pairs = pc.value_counts(column.drop_null()).to_pylist()
    return {pair["values"]: pair["counts"] for pair in pairs}


def _ordered(where: str, counted: Counter[str]) -> list[tuple[str, str, int]]:
    ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return [(where, reason, count) for reason, count in ranked]
