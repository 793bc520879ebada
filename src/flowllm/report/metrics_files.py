"""The results that the report shows: metrics and flags of the settings, structure prediction."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.errors import FlowllmError
from flowllm.evaluate.aggregate import FORMAT
from flowllm.io import schemas
from flowllm.io.file_errors import check_form, read_json
from flowllm.io.tables import read_table
from flowllm.report import forms

FLAGS = ("id", "num_elements", "e_above_hull", "duplicate_group", "novel", "sun")
"""What the report reads of each crystal."""


@dataclass(frozen=True)
class Result:
    """One method's metrics by one kind of energies.

    Attributes:
        numbers: the JSON of the metrics stage.
        flags: the columns `FLAGS` of every crystal.
    """

    numbers: dict[str, Any]
    flags: pa.Table

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.numbers["setting"])

    @property
    def row(self) -> dict[str, Any]:
        """All of the method's numbers by their names, for any of the tables."""
        return {
            "setting": self.method,
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


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Read the metrics' JSON files and the flags beside them.

    Raises:
        FlowllmError: a file is missing, is not JSON, has another form or is of another version.
    """
    results = []
    for path in paths:
        numbers = _read_numbers(path, FORMAT, "metrics", forms.Metrics)
        flags = read_table(path.with_suffix(".parquet"), schemas.METRICS_PER_CRYSTAL, FLAGS)
        results.append(Result(numbers, flags))
    return results


def of_kind(results: Sequence[Result], kind: str) -> list[Result]:
    """Return the results by one kind of energies, `potential` or `dft`."""
    return [result for result in results if result.kind == kind]


def once_per_method(results: Sequence[Result]) -> list[Result]:
    """Return one result a method, for numbers that do not depend on whose energies were used."""
    found: dict[str, Result] = {}
    for result in results:
        found.setdefault(result.method, result)
    return list(found.values())


def first_of_each_sweep(results: Sequence[Result]) -> list[Result]:
    """Return one, the first, of the methods that differ in their number of steps alone."""
    found: dict[tuple[str, ...], Result] = {}
    for result in results:
        row = result.numbers["sampling"]["setting"]
        key = (row["base"], str(row["flow"])) if row else (result.method,)
        found.setdefault(key, result)
    return list(found.values())


def read_predictions(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read the numbers of structure prediction, csp/{method}.json.

    Raises:
        FlowllmError: a file is missing, is not JSON, has another form or is of another version.
    """
    return [
        _read_numbers(path, schemas.CSP_FORMAT, "match_csp", forms.Prediction) for path in paths
    ]


def _read_numbers(path: Path, version: int, stage: str, form: type[forms.Form]) -> dict[str, Any]:
    cure = f"delete it and run the stage {stage} again: `snakemake {shlex.quote(str(path))}`"
    numbers = read_json(path, cure)
    if not isinstance(numbers, dict):
        raise FlowllmError(f"{path}: holds no JSON object with keys; {cure}")
    if numbers.get("format") != version:
        raise FlowllmError(f"{path}: format {numbers.get('format')!r}, expected {version}; {cure}")
    check_form(numbers, form, path, cure)
    return numbers
