"""Values that others published, as rows beside ours."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PAPER_VALUES = Path(__file__).with_name("paper_values.yaml")

_NOTE = (
    "Published values, shaded on the page: [S] in the paper's text, [2nd] quoted by others, "
    "[C] constants in public code. A dash there: our copy of the paper lacks its tables' cells. "
)


def published_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what a caption says of the published rows of a table, with the source of each value.

    Args:
        rows: made by `published_rows`.
    """
    whose: dict[str, list[str]] = {}
    for row in rows:
        cells = [cell for cell in row.values() if isinstance(cell, Mapping)]
        for source in dict.fromkeys(f"[{cell['evidence']}] {cell['text']}" for cell in cells):
            whose.setdefault(source, []).append(row["setting"])
    if not whose:
        return ""
    said = (f"{', '.join(methods)}: {source}" for source, methods in whose.items())
    return f"{_NOTE}{'; '.join(said)}."


def published_rows(
    keys: Sequence[str], path: Path = PAPER_VALUES, *, every: bool = False
) -> list[dict[str, Any]]:
    """Return a row for each published method that has a value under some of the keys.

    Args:
        keys: the columns.
        path: file of the published values.
        every: also those of which no value is known, as a row of dashes.
    """
    values = yaml.safe_load(path.read_text())
    rows = []
    for method in values["methods"]:
        cells = {
            key: {"value": method[key]["value"], **values["sources"][method[key]["source"]]}
            for key in keys
            if method.get(key)
        }
        if cells or every:
            rows.append({"setting": method["method"], "published": True, **cells})
    return rows
