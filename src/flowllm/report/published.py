"""Values that others published, as rows beside ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

PAPER_VALUES = Path(__file__).with_name("paper_values.yaml")

PUBLISHED_NOTE = (
    "Shaded rows are published values: [S] in the paper's text, [2nd] quoted by others, "
    "[C] constants in public code. A dash there: our copy of the paper lacks its tables' cells."
)
"""What a caption says of them."""


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
