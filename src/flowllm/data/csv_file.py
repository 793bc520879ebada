"""CSV files of users: one reading, which refuses what another program would read otherwise."""

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowllm.errors import FlowllmError

_MAX_FIELD = 1 << 28


def read_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line and the cells of each row; the header is the first row.

    A byte order mark is left out, and so are empty lines, as in pandas.

    Raises:
        FlowllmError: the file is missing, empty, not UTF-8, not CSV, has another delimiter than the
            comma, or two columns of one name; the message names the file and the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle, _large_fields():
            reader = csv.reader(handle, strict=True)
            columns = next((cells for cells in reader if cells), None)
            if columns is None:
                raise FlowllmError(f"{path}: empty; expected CSV with a header")
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
            f"{path}, line {reader.line_num}: not CSV ({error}); is the file cut off? Get it again"
        ) from error


def _check_header(path: Path, columns: list[str]) -> None:
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and delimiter in columns[0]:
            raise FlowllmError(
                f"{path}: its cells are separated by {name}; save it with commas, "
                "and decimal points in numbers"
            )
    if double := [name for name, count in Counter(columns).items() if count > 1 and name]:
        raise FlowllmError(f"{path}: two columns are named {double[0]!r}; rename or delete one")


@contextmanager
def _large_fields() -> Iterator[None]:
    """Let a CSV cell hold a large CIF: the module's limit of 131,072 characters is for all."""
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)
