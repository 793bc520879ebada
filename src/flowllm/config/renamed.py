"""Keys of the configuration that were renamed."""

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "settings": "methods",
    "csp_settings": "csp_methods",
    "sample_pairs.draws_in_a_row": "sample_pairs.draws_per_prompt",
}
"""New name by old name, with the section of a key."""


def renamed_keys(values: Mapping[str, Any]) -> list[str]:
    """Return one line per key of a configuration that has its old name."""
    lines = []
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        inner = values.get(section, {}) if section else values
        if isinstance(inner, Mapping) and key in inner:
            lines.append(f"  {old}: this key is now named {new}; rename it in your file")
    return lines
