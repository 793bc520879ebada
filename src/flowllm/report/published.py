"""Published values as rows of the report's tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

PAPER_VALUES = Path(__file__).with_name("paper_values.yaml")

_NOTE = (
    "Published values (shaded on the page) are from the paper's text [S], from quotations by "
    "others [2nd] or from constants in public code [C]; a dash is a value that we do not know. "
)


def published_note(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the part of a table's caption on its published rows, with the source of each value.

    Args:
        rows: rows of `published_rows`.
    """
    methods_of: dict[str, list[str]] = {}
    for row in rows:
        cells = [cell for cell in row.values() if isinstance(cell, Mapping)]
        for source in dict.fromkeys(f"[{cell['evidence']}] {cell['text']}" for cell in cells):
            methods_of.setdefault(source, []).append(row["setting"])
    if not methods_of:
        return ""
    sources = (f"{', '.join(methods)}: {source}" for source, methods in methods_of.items())
    return f"{_NOTE}{'; '.join(sources)}."


def published_rows(
    keys: Sequence[str], path: Path = PAPER_VALUES, *, every: bool = False
) -> list[dict[str, Any]]:
    """Return one row per published method that has a value in one of the columns.

    Args:
        keys: keys of the columns.
        path: file of the published values.
        every: whether methods without a value are included, as rows of dashes.
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
