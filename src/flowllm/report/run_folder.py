"""What lies in a run's folder beside its results: training curves, and what was turned away.

Read where it exists, so that a report can be made of any part of a run.
"""

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from flowllm import tables
from flowllm.tables import read_table


@dataclass(frozen=True)
class Curve:
    """A training curve: columns by name, NaN where a row has no value."""

    name: str
    columns: dict[str, list[float]]


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


def read_invariance(run_dir: Path) -> pa.Table:
    """Read the increases in perplexity of the validation crystals; none where not measured."""
    path = run_dir / "llm" / "invariance.parquet"
    return read_table(path, tables.INVARIANCE) if path.exists() else tables.INVARIANCE.empty_table()


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
