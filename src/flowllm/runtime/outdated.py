"""Outputs of a run that were made with other settings than those of the configuration.

Snakemake makes such outputs again, unless it was told to accept them (`snakemake --touch`).
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowllm.config.model import Config
from flowllm.config.settings_diff import ChangedKey, changed_keys
from flowllm.config.stage_settings import stage_values
from flowllm.config.stages import STAGES
from flowllm.io.archive_index import read_index
from flowllm.runtime.provenance import RECORD_SUFFIX, read_record

_DEPTHS = ("", "*/", "*/*/")
"""Where records are; deeper folders are those of DFT runs, of which there may be many."""


@dataclass(frozen=True)
class Outdated:
    """Outputs of one stage that differ from the configuration by the same keys.

    Attributes:
        stage: the stage that made them.
        outputs: their paths.
        changes: the changed keys, from the record to the configuration.
    """

    stage: str
    outputs: tuple[Path, ...]
    changes: tuple[ChangedKey, ...]

    def line(self) -> str:
        """Return one line: stage, number of outputs, the first of them, changed keys."""
        first, number = self.outputs[0], len(self.outputs)
        which = str(first) if number == 1 else f"{number} outputs, the first {first}"
        said = ", ".join(one.line() for one in self.changes)
        return f"{self.stage}: {which}: made with other settings: {said}"


def outdated_outputs(config: Config, run_dir: Path, skip: Collection[str] = ()) -> list[Outdated]:
    """Compare the records of a run with the configuration.

    Outputs of rows that the configuration no longer has, and records of outputs that were deleted,
    are left out.

    Args:
        config: the configuration.
        run_dir: the run's folder; it need not exist.
        skip: stages that are left out, since they are about to run.

    Raises:
        FlowllmError: a record cannot be read.
    """
    found: dict[tuple[str, str], tuple[tuple[ChangedKey, ...], list[Path]]] = {}
    for output, record in _records(run_dir):
        if record["stage"] in STAGES and record["stage"] not in skip:
            changes = _changes(config, record)
            key = record["stage"], "\n".join(one.line() for one in changes)
            found.setdefault(key, (changes, []))[1].append(output)
    order = list(STAGES)
    return [
        Outdated(stage, tuple(outputs), changes)
        for (stage, _), (changes, outputs) in sorted(
            found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
        )
        if changes
    ]


def _records(run_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the outputs that are present or archived, with their records."""
    archived = read_index(run_dir)
    for depth in _DEPTHS:
        for path in sorted(run_dir.glob(f"{depth}_*{RECORD_SUFFIX}")):
            name = path.name.removeprefix("_").removesuffix(RECORD_SUFFIX)
            output = path.with_name(name)
            if output.exists() or str(output.relative_to(run_dir)) in archived:
                yield output, read_record(path)


def _changes(config: Config, record: Mapping[str, Any]) -> tuple[ChangedKey, ...]:
    """Return the keys in which a record differs from the configuration."""
    stage, kind = record["stage"], STAGES[record["stage"]].row
    name = record["settings"].get(kind, {}).get("name") if kind else None
    if kind is not None and name not in config.row_names(kind):
        return ()
    was = {
        "seed": record["seed"],
        "version": record.get("stage_version"),
        **record["settings"],
    }
    return tuple(changed_keys(was, stage_values(config, stage, name)))
