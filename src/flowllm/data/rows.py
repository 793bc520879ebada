"""Rows of a source: CSV files in MP-20's format, to which every kind of source is converted."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowllm.data.csv_file import read_csv
from flowllm.data.manifest import Split
from flowllm.errors import FlowllmError
from flowllm.io.files import atomic_path

REQUIRED_COLUMNS = ("material_id", "cif")
PROPERTY_COLUMNS = {
    "formation_energy_per_atom": "formation_energy_per_atom",
    "band_gap": "band_gap",
    "e_above_hull": "e_above_hull",
    "spacegroup.number": "space_group_number",
}
"""MP-20's optional columns and our names for them; its other columns follow from the cif."""

FILE_COLUMN = "file"
"""The file name of a row that comes from its own file, for the list of rejected rows."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One row of a source as text.

    Attributes:
        split: train, val or test; None where the source has no split.
        file: name of the file that the row comes from.
        row: number of the data row in the CSV file, from 0 without empty lines (as pandas counts).
        cells: the row's cells by column.
        problem: what is wrong with the row's cells, None where they fit the columns.
    """

    split: Split | None
    file: str
    row: int
    cells: Mapping[str, str]
    problem: str | None = None

    @property
    def material_id(self) -> str:
        """The source's name of the crystal."""
        return self.cells.get("material_id", "")


def read_rows(path: Path, split: Split | None) -> Iterator[SourceRow]:
    """Read a CSV file with at least the columns material_id and cif.

    Raises:
        FlowllmError: as `read_csv`, or a column is missing; the message names it.
    """
    lines = read_csv(path)
    _, columns = next(lines)
    _check_columns(path, columns)
    for number, (_, values) in enumerate(lines):
        yield _source_row(path, split, number, columns, values)


def count_rows(path: Path) -> int:
    """Count the data rows of a CSV file in MP-20's format.

    Raises:
        FlowllmError: as `read_rows`, or there is no data row.
    """
    count = sum(1 for _ in read_rows(path, None))
    if not count:
        raise FlowllmError(f"{path}: no row after the header; every split needs crystals")
    return count


def write_rows(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV file in MP-20's format atomically."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as handle,
    ):
        # All cells are quoted, since csv does not quote a single carriage return.
        writer = csv.DictWriter(handle, list(columns), lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)


def _check_columns(path: Path, columns: list[str]) -> None:
    for name in REQUIRED_COLUMNS:
        if name not in columns:
            raise FlowllmError(
                f"{path}: column {name!r} is missing (found {columns}); "
                "MP-20's format has material_id and cif"
            )


def _source_row(
    path: Path, split: Split | None, number: int, columns: list[str], values: list[str]
) -> SourceRow:
    cells = dict(zip(columns, values, strict=False))
    problem = None
    if len(values) != len(columns):
        problem = f"{len(values)} cells under {len(columns)} columns"
    return SourceRow(split, cells.get(FILE_COLUMN) or path.name, number, cells, problem)
