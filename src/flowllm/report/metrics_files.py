"""Results that the report shows: metrics per method, properties per crystal, predictions."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from flowllm.errors import FlowllmError
from flowllm.evaluate.aggregate import FORMAT
from flowllm.evaluate.hull import EnergySource
from flowllm.io import schemas
from flowllm.io.file_errors import check_form, read_json
from flowllm.io.tables import read_table
from flowllm.report import forms

PER_CRYSTAL_COLUMNS = (
    *("id", "num_elements", "e_above_hull", "hull_compounds"),
    *("duplicate_group", "novel", "sun"),
)
"""Columns of `schemas.METRICS_PER_CRYSTAL` that the report reads."""

REQUESTED_COLUMNS = ("asked", "got", "met", "all_met")
"""Further columns of `schemas.REQUESTED_METRICS`, for a base with conditions."""


@dataclass(frozen=True)
class Result:
    """Metrics of one method by one source of energies.

    Attributes:
        numbers: the JSON of the stage metrics.
        per_crystal: the columns `PER_CRYSTAL_COLUMNS` of every crystal, and `REQUESTED_COLUMNS`
            where its base has conditions.
    """

    numbers: dict[str, Any]
    per_crystal: pa.Table

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.numbers["setting"])

    @property
    def row(self) -> dict[str, Any]:
        """All numbers of the method by their names, as a row for any table."""
        return {
            "setting": self.method,
            "drawn": self.numbers["counts"]["drawn"],
            **self.numbers["rates"],
            **self.numbers["means"],
            **self.numbers["distances"],
        }

    @property
    def e_above_hull(self) -> list[float]:
        """E_hull of the crystals that have one, eV per atom."""
        known: list[float] = self.per_crystal.column("e_above_hull").drop_null().to_pylist()
        return known

    @property
    def kind(self) -> EnergySource:
        """Source of the energies."""
        source: EnergySource = self.numbers["protocol"]["energies"]
        return source


def read_results(paths: Sequence[Path]) -> list[Result]:
    """Read the JSON files of the metrics and the tables per crystal beside them.

    Raises:
        FlowllmError: a file is missing, is not JSON, or has another form or version. The message
            names the stage to run again.
    """
    results = []
    for path in paths:
        numbers = _read_numbers(path, FORMAT, "metrics", forms.Metrics)
        schema, columns = schemas.METRICS_PER_CRYSTAL, [*PER_CRYSTAL_COLUMNS]
        if numbers.get("wishes"):
            schema, columns = schemas.REQUESTED_METRICS, [*columns, *REQUESTED_COLUMNS]
        per_crystal = read_table(path.with_suffix(".parquet"), schema, columns)
        results.append(Result(numbers, per_crystal))
    return results


def of_kind(results: Sequence[Result], kind: EnergySource) -> list[Result]:
    """Return the results by one source of energies."""
    return [result for result in results if result.kind == kind]


def once_per_method(results: Sequence[Result]) -> list[Result]:
    """Return one result per method, for numbers that do not depend on the source of energies."""
    found: dict[str, Result] = {}
    for result in results:
        found.setdefault(result.method, result)
    return list(found.values())


def first_of_each_sweep(results: Sequence[Result]) -> list[Result]:
    """Return the first of the methods that differ only in their number of steps."""
    found: dict[tuple[str, ...], Result] = {}
    for result in results:
        row = result.numbers["sampling"]["setting"]
        how = (str(row.get(key)) for key in ("base", "flow", "keep_symmetry"))
        key = tuple(how) if row else (result.method,)
        found.setdefault(key, result)
    return list(found.values())


def read_predictions(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read the numbers of structure prediction, csp/{method}.json.

    Raises:
        FlowllmError: a file is missing, is not JSON, or has another form or version. The message
            names the stage to run again.
    """
    return [
        _read_numbers(path, schemas.CSP_FORMAT, "match_csp", forms.Prediction) for path in paths
    ]


def _read_numbers(path: Path, version: int, stage: str, form: type[forms.Form]) -> dict[str, Any]:
    cure = f"delete it and run the stage {stage} again: `snakemake {shlex.quote(str(path))}`"
    numbers = read_json(path, cure)
    if not isinstance(numbers, dict):
        raise FlowllmError(f"{path}: the file is not a JSON object with keys; {cure}")
    if numbers.get("format") != version:
        raise FlowllmError(
            f"{path}: the format is {numbers.get('format')!r}, expected {version}; {cure}"
        )
    check_form(numbers, form, path, cure)
    return numbers
