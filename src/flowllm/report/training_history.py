"""Training curves, perplexities and rejections in the folder of a run.

A report can be made from any part of a run. All outputs of this part must exist: an output that has
a record but is missing is an error, since the report would lack its rows without saying so.
"""

import csv
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from flowllm.errors import FlowllmError
from flowllm.io import schemas
from flowllm.io.file_errors import explain
from flowllm.io.tables import read_table
from flowllm.llm.crystal_text import EXHAUSTED, Reason
from flowllm.runtime.provenance import RECORD_SUFFIX, provenance_path

ALL_FOUND: Mapping[str, int] = {}
"""The number of shards is unknown for every folder: all existing shards belong to the run."""

_KINDS = ("base/", "generated/", "relaxed/")
"""Folders that have a folder of shards per row of the configuration."""

_SHARD = re.compile(r"(?P<folder>.+)/shard-(?P<number>\d{5})\.parquet")


def shard_counts(words: Sequence[str]) -> dict[str, int]:
    """Return the number of shards by folder, from words such as `pairs/train=400`.

    Raises:
        FlowllmError: a word has another form.
    """
    counts = {}
    for word in words:
        folder, _, count = word.rpartition("=")
        if not folder or not count.isdecimal():
            raise FlowllmError(f"--shards is {word!r}, expected FOLDER=COUNT, e.g. pairs/train=400")
        counts[folder] = int(count)
    return counts


def belongs(output: str, shards: Mapping[str, int]) -> bool:
    """Return whether an output belongs to the run: it is no shard, or one with a valid number.

    Args:
        output: path relative to the run's folder.
        shards: number of shards of the run, by folder. If it names some folder of a kind, such as
            `base/`, those of this kind that it does not name belong to another configuration.
    """
    found = _SHARD.fullmatch(output)
    if found is None:
        return True
    # A method has one generated shard per relaxed shard.
    counts = _as_generated(shards) | dict(shards)
    folder = found["folder"]
    if folder in counts:
        return int(found["number"]) < counts[folder]
    kind = f"{folder.partition('/')[0]}/"
    return kind not in _KINDS or not any(one.startswith(kind) for one in counts)


def _as_generated(shards: Mapping[str, int]) -> dict[str, int]:
    """Return the shards of the folders `relaxed/` by the folders of their generated crystals."""
    return {
        f"generated/{folder.removeprefix('relaxed/')}": count
        for folder, count in shards.items()
        if folder.startswith("relaxed/")
    }


def list_shards(run_dir: Path, folder: str, shards: Mapping[str, int]) -> list[Path]:
    """Return the shards of a folder, in order.

    Args:
        run_dir: folder of the run.
        folder: folder of the shards, relative to that of the run, e.g. `pairs/train`.
        shards: number of shards of the run, by folder; of a folder not named here, all existing
            shards belong to the run.

    Raises:
        FlowllmError: a shard is missing.
    """
    if folder in shards:
        names = [f"shard-{number:05d}.parquet" for number in range(shards[folder])]
    else:
        names = [path.name for path in (run_dir / folder).glob("shard-*.parquet")]
        records = (run_dir / folder).glob(f"_shard-*.parquet{RECORD_SUFFIX}")
        names += [path.name.removeprefix("_").removesuffix(RECORD_SUFFIX) for path in records]
    paths = [run_dir / folder / name for name in sorted(set(names))]
    for path in paths:
        if not path.exists():
            raise _missing(path, provenance_path(path))
    return paths


def is_there(path: Path, recorded: Path | None = None) -> bool:
    """Return whether an output exists; False if it has never been made.

    Args:
        path: the output, or a file in it.
        recorded: the output that has the record, where `path` is a file in it.

    Raises:
        FlowllmError: the output has a record but is missing.
    """
    record = provenance_path(recorded or path)
    if not path.exists() and record.exists():
        raise _missing(path, record)
    return path.exists()


def _missing(path: Path, record: Path) -> FlowllmError:
    return FlowllmError(
        f"{path}: missing, so that the report would be incomplete. Make it again: `snakemake "
        f"{shlex.quote(str(path))}` with the options of the run; or, if it is not needed, also "
        f"delete its record {record}."
    )


@dataclass(frozen=True)
class Curve:
    """A training curve: columns by name, with NaN for empty cells."""

    name: str
    columns: dict[str, list[float]]


def read_curves(run_dir: Path) -> list[Curve]:
    """Read the existing training curves.

    Raises:
        FlowllmError: the curve of an existing model is missing, or a file is not a curve.
    """
    folders = {"Language model": run_dir / "llm" / "adapter"}
    flows = {path.parent for path in (run_dir / "rfm").glob("*/training_curve.csv")}
    for record in (run_dir / "rfm").glob(f"_*{RECORD_SUFFIX}"):
        flows.add(record.with_name(record.name.removeprefix("_").removesuffix(RECORD_SUFFIX)))
    for folder in sorted(flows):
        folders[f"Flow {folder.name}"] = folder
    paths = {name: folder / "training_curve.csv" for name, folder in folders.items()}
    return [
        Curve(name, _columns(path)) for name, path in paths.items() if is_there(path, path.parent)
    ]


def _columns(path: Path) -> dict[str, list[float]]:
    """Read a curve: a header with `step`, then rows of numbers and empty cells.

    Raises:
        FlowllmError: the file has another form; the message names the row.
    """
    cure = f"this is not a training curve; delete the folder {path.parent} and train again"
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            header, *rows = list(csv.reader(handle)) or [[]]
    except OSError as error:
        raise FlowllmError(explain(error, path)) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise FlowllmError(f"{path}: {error}; {cure}") from error
    if "step" not in header or len(set(header)) != len(header):
        raise FlowllmError(
            f"{path}: the first row is {header}, expected different names with `step`; {cure}"
        )
    columns: dict[str, list[float]] = {name: [] for name in header}
    for number, row in enumerate(rows):
        try:
            values = [float(text) if text else float("nan") for text in row]
        except ValueError as error:
            raise FlowllmError(f"{path}, row {number}: {error}; {cure}") from error
        if len(values) != len(header):
            raise FlowllmError(
                f"{path}, row {number}: {len(row)} cells under {len(header)} columns; {cure}"
            )
        for name, value in zip(header, values, strict=True):
            columns[name].append(value)
    return columns


def read_invariance(run_dir: Path) -> pa.Table:
    """Read the increases in perplexity of the validation crystals; empty if not measured."""
    path = run_dir / "llm" / "invariance.parquet"
    return (
        read_table(path, schemas.INVARIANCE) if is_there(path) else schemas.INVARIANCE.empty_table()
    )


def read_rejections(
    run_dir: Path, shards: Mapping[str, int] = ALL_FOUND
) -> list[tuple[str, str, int]]:
    """Count the rejections as (where, reason, count), the most frequent reason first.

    Redraws of single atoms (`llm.redraws`) are rejections, too: of a part of a text.

    Args:
        run_dir: folder of the run.
        shards: number of shards of the run, by folder. If it names some base, bases that it does
            not name belong to another configuration.

    Raises:
        FlowllmError: a shard is missing or damaged.
    """
    found = _rejected_rows(run_dir / "crystals" / "rejected.parquet")
    for split in ("train", "val"):
        paths = list_shards(run_dir, f"pairs/{split}", shards)
        found += _drafts(f"pairs, {split}", paths, schemas.PAIRS)
    bases = sorted(folder for folder in shards if folder.startswith("base/"))
    if not bases:
        bases = [f"base/{path.name}" for path in sorted((run_dir / "base").glob("[!.]*"))]
    for folder in bases:
        paths = list_shards(run_dir, folder, shards)
        found += _drafts(folder.replace("/", " "), paths, schemas.BASE)
    return found


def _rejected_rows(path: Path) -> list[tuple[str, str, int]]:
    if not is_there(path, path.parent):  # the stage prepare writes one record for its folder
        return []
    reasons = read_table(path, schemas.REJECTED, ["reason"]).column(0)
    return _ordered("source rows", Counter(reasons.to_pylist()))


def _drafts(where: str, shards: Iterable[Path], schema: pa.Schema) -> list[tuple[str, str, int]]:
    """Count the language model's rejected drafts, its redraws, and the draws without a crystal.

    A draw whose drafts were all rejected is given up. Another one has no crystal because no draft
    could be made, or because it is another model's sample that could not be read.
    """
    drafts: Counter[str] = Counter()
    redraws: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    for shard in shards:
        table = read_table(shard, schema, ["rejections", "redraws", "status"])
        drafts.update(_value_counts(pc.list_flatten(table.column("rejections"))))
        redraws[Reason.CLOSE_ATOMS] += pc.sum(table.column("redraws")).as_py() or 0
        statuses.update(_value_counts(table.column("status")))
    del statuses["ok"]
    given_up = Counter({EXHAUSTED: statuses.pop(EXHAUSTED, 0)})
    return (
        _ordered(f"{where}: drafts", drafts)
        + _ordered(f"{where}: redraws within drafts", +redraws)
        + _ordered(f"{where}: given up", +given_up)
        + _ordered(f"{where}: no crystal", statuses)
    )


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    pairs = pc.value_counts(column.drop_null()).to_pylist()
    return {pair["values"]: pair["counts"] for pair in pairs}


def _ordered(where: str, counted: Counter[str]) -> list[tuple[str, str, int]]:
    ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return [(where, reason, count) for reason, count in ranked]
