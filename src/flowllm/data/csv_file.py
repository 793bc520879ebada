"""CSV files of users, read strictly: what programs interpret differently is an error."""

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowllm.errors import FlowllmError

_MAX_FIELD = 1 << 28
"""Characters per cell."""


def read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line and the cells of each row, the header first.

    A byte order mark and empty lines are left out, as in pandas.

    Raises:
        FlowllmError: the file is missing, empty, not UTF-8, not CSV, has another delimiter than the
            comma, or two columns with one name; the message names the file and the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle, large_fields():
            reader = csv.reader(handle, strict=True)
            columns = next((cells for cells in reader if cells), None)
            if columns is None:
                raise FlowllmError(f"{path}: the file is empty, expected CSV with a header")
            _check_header(path, columns)
            yield reader.line_num, columns
            yield from ((reader.line_num, cells) for cells in reader if cells)
    except OSError as error:
        raise FlowllmError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FlowllmError(
            f"{path}: not UTF-8 text ({error.reason}); convert it (Excel: CSV UTF-8)"
        ) from error
    except csv.Error as error:
        raise FlowllmError(
            f"{path}, line {reader.line_num}: not CSV ({error}); the file may be cut off, "
            "get it again"
        ) from error


def _check_header(path: Path, columns: list[str]) -> None:
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and delimiter in columns[0]:
            raise FlowllmError(
                f"{path}: the cells are separated by {name}; save the file with commas, "
                "and decimal points in numbers"
            )
    if double := [name for name, count in Counter(columns).items() if count > 1 and name]:
        raise FlowllmError(f"{path}: two columns are named {double[0]!r}; rename or delete one")


@contextmanager
def large_fields() -> Iterator[None]:
    """Raise the limit of the module csv for a cell, 131,072 characters, inside a `with` block."""
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
