"""List what may leave a finished run's folder, move it to another folder, or delete it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flowllm.config.stages import STAGES
from flowllm.errors import FlowllmError
from flowllm.io.archive_index import output_time, read_index
from flowllm.llm.model_identity import merged_identity
from flowllm.runtime.archive import (
    PARTS,
    check_part,
    delete_part,
    move_away,
    outputs_of,
    size_of,
)
from flowllm.runtime.identity import identity_path, note_identity
from flowllm.runtime.log import log, setup_logging
from flowllm.runtime.provenance import find_records, read_provenance, read_record

LOCKS = Path(".snakemake/locks")
"""Where Snakemake keeps its locks, in the folder that it was started in."""


def run(
    run_dir: Path,
    /,
    *names: Annotated[str, Parameter(negative=())],
    to: Path | None = None,
    delete: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """List what may leave a run's folder and what that frees; move it elsewhere, or delete it.

    Without names, lists the parts of the run, their sizes, and what needs them later. Records, logs
    and tables stay, so that a finished run stays finished. `flowllm restore` brings parts back.

    Args:
        run_dir: The run's folder.
        names: Parts to move or delete, e.g. llm/model.
        to: Folder that receives the parts, outside of the run's folder.
        delete: Delete parts that the workflow makes again with the same content.

    Raises:
        FlowllmError: a part does not exist or may not be deleted, or the target is refused.
    """
    setup_logging(None)
    if not run_dir.is_dir():
        raise FlowllmError(f"{run_dir}: no such folder; name the run_dir of a run")
    if not names:
        if to is not None or delete:
            raise FlowllmError("name the parts to archive, e.g. llm/model")
        print("\n".join(listing(run_dir)))
        return
    if (to is None) == (not delete):
        raise FlowllmError("name a folder with --to, or give --delete")
    refuse_while_running()
    parts = [name.rstrip("/") for name in names]
    size = size_of(path for name in parts for path in check_part(run_dir, name, to))
    _note_model(run_dir)
    for name in parts:
        if to is None:
            delete_part(run_dir, name)
            continue
        for output in outputs_of(run_dir, name):
            move_away(run_dir, output, to)
    log.info("archive: %s freed (%s)", _gigabytes(size), ", ".join(parts))


def refuse_while_running() -> None:
    """Refuse to move files that a running workflow may read.

    Raises:
        FlowllmError: `snakemake` runs in this folder.
    """
    if LOCKS.is_dir() and any(LOCKS.iterdir()):
        raise FlowllmError(
            f"{LOCKS}: snakemake runs in this folder and may read the files; wait for its end. If "
            "it was killed, remove its locks: snakemake --unlock"
        )


def listing(run_dir: Path) -> list[str]:
    """Return a table of the parts of a run: size, how they are made again, what needs them."""
    rows = [("part", "size", "files", "if deleted", "needed by")]
    seconds = _seconds(run_dir)
    for name, part in PARTS.items():
        if outputs := outputs_of(run_dir, name):
            again = "not allowed: move it"
            if STAGES[part.stage].repeatable:
                took = seconds.get(part.stage)
                again = f"{part.stage} again" + (f", {took / 3600:.1f} h" if took else "")
            rows.append(
                (name, _gigabytes(size_of(outputs)), str(len(outputs)), again, part.needed_by)
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines += [
        f"archived: {name}, {_gigabytes(one.size)} in {one.place}"
        for name, one in read_index(run_dir).items()
    ]
    return [
        *lines,
        "A finished run stays finished without any of these. An extension that needs a moved part "
        "stops until `flowllm restore`.",
    ]


def _note_model(run_dir: Path) -> None:
    """Note the identity of a merged model that an earlier version has made."""
    model, adapter = run_dir / "llm" / "model", run_dir / "llm" / "adapter"
    record = read_provenance(model)
    if identity_path(model).exists() or not (model.is_dir() and adapter.is_dir() and record):
        return
    if output_time(adapter) <= output_time(model):
        facts = merged_identity(adapter, record["settings"], record["stage_version"])
        note_identity(model, facts)


def _seconds(run_dir: Path) -> dict[str, float]:
    """Return the wall time of each stage's jobs together, from their records."""
    spent: dict[str, float] = {}
    for stage, seconds in _times(run_dir):
        spent[stage] = spent.get(stage, 0.0) + seconds
    return spent


def _times(run_dir: Path) -> Iterator[tuple[str, float]]:
    for path in find_records(run_dir):
        record = read_record(path)
        yield record["stage"], record["seconds"]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"
