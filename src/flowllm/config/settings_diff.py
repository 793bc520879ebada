"""Differences of two settings of a stage, by key."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

ABSENT: Final = object()
"""Value of a key that one of the settings lacks."""


@dataclass(frozen=True)
class ChangedKey:
    """A key whose value differs between two settings.

    Attributes:
        key: path of the key, e.g. `train_rfm.learning_rate`.
        was: the older value; `ABSENT` if the older settings lack the key.
        now: the newer value; `ABSENT` if the newer settings lack the key.
    """

    key: str
    was: Any
    now: Any

    def line(self) -> str:
        """Return the change as text, e.g. `train_rfm.learning_rate: 0.001 → 0.0001`."""
        return f"{self.key}: {_shown(self.was)} → {_shown(self.now)}"


def changed_keys(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[ChangedKey]:
    """Return the keys whose values differ, sorted by their paths.

    Nested mappings are compared key by key, lists and values as a whole.

    Args:
        was: the older settings, e.g. of a provenance record or of Snakemake's metadata.
        now: the newer settings, e.g. from `stage_settings.stage_values`.
    """
    return sorted(_changed(was, now, ""), key=lambda one: one.key)


def _changed(was: Mapping[str, Any], now: Mapping[str, Any], above: str) -> Iterator[ChangedKey]:
    for name in was.keys() | now.keys():
        key, old, new = f"{above}{name}", was.get(name, ABSENT), now.get(name, ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changed(old, new, f"{key}.")
        elif old is ABSENT or new is ABSENT or _text(old) != _text(new):
            yield ChangedKey(key, old, new)


def _text(value: Any) -> str:
    """Return a value as JSON: `1` and `true` are equal in Python, but not in a configuration."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(value: Any) -> str:
    return "(no such key)" if value is ABSENT else _text(value)
