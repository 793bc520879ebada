"""Keys of the configuration that have another name now."""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "settings": "methods",
    "csp_settings": "csp_methods",
    "sample_pairs.draws_in_a_row": "sample_pairs.draws_per_prompt",
}
"""Old name to new one, with the section where there is one."""


def renamed_keys(values: Mapping[str, Any]) -> list[str]:
    """Return a line for each key of a configuration that goes by its old name."""
    lines = []
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        inner = values.get(section, {}) if section else values
        if isinstance(inner, Mapping) and key in inner:
            lines.append(f"  {old}: this key is now named {new}; rename it in your file")
    return lines
