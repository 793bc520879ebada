"""Texts that are generated from the models: the comments of config.yaml, and its JSON schema.

Each key has its meaning, unit and source in one place, `Field(description=...)`. The reference in
the documentation (`docs/hooks.py`) is generated from `sections` as well. A test fails where a file
differs from the models. This command writes both files again:

    python -m flowllm.config.reference --write
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from flowllm.config.model import Config
from flowllm.config.stages import STAGES, ListName
from flowllm.errors import FlowllmError

WIDTH = 120
"""Characters per line of config.yaml."""

COMMENT_COLUMN = 30
"""Column of the comments behind the keys."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_DROPPED = ("title", "required", "default", "discriminator")
"""What a model's JSON schema has and an editor does not need."""

_LISTS: dict[ListName, tuple[str, ...]] = {
    "flow": ("flows",),
    "base": ("bases",),
    "csp_base": ("csp_bases",),
    "method": ("methods", "csp_methods"),
    "external": ("external_samples",),
}
"""The sections of which a stage's job is given one row."""

Json = dict[str, Any]

Value = TypeVar("Value")


@dataclass(frozen=True)
class SectionText:
    """What is written about a section.

    Attributes:
        name: the section's name.
        description: one phrase, without a period.
        stages: the stages that read it.
        keys: of each key the JSON schemas that it has in the section's models (a row of a list may
            be of several); empty where the section is a plain value.
        has_rows: whether the keys are those of each of its rows.
    """

    name: str
    description: str
    stages: tuple[str, ...]
    keys: Mapping[str, Sequence[Json]]
    has_rows: bool

    @property
    def heading(self) -> str:
        """The description as a sentence, and the stages that read the section."""
        sentence = f"{self.description[0].upper()}{self.description[1:]}."
        return f"{sentence} Read by {', '.join(self.stages)}." if self.stages else sentence


def sections() -> list[SectionText]:
    """Return what is written about each section, in the order of the model."""
    schema = Config.model_json_schema()
    found = []
    for name, about in schema["properties"].items():
        rows = about.get("items") or about.get("additionalProperties")
        keys: dict[str, list[Json]] = {}
        for model in _models(rows or about, schema):
            for key, field in model.get("properties", {}).items():
                keys.setdefault(key, []).append(field)
        found.append(SectionText(name, about["description"], _readers(name), keys, bool(rows)))
    return found


def resolve(field: Json, schema: Json) -> Json:
    """Return the schema that a reference names, and any other schema as it is."""
    name = field.get("$ref", "").rpartition("/")[2]
    resolved: Json = schema["$defs"][name] if name else field
    return resolved


def _models(field: Json, schema: Json) -> list[Json]:
    """Return a section's model, or all models that its rows may have."""
    model = resolve(field, schema)
    return [resolve(choice, schema) for choice in model.get("oneOf", [model])]


def _readers(name: str) -> tuple[str, ...]:
    return tuple(
        stage
        for stage, about in STAGES.items()
        if name in about.sections or (about.row is not None and name in _LISTS[about.row])
    )


def schema_text() -> str:
    """Return the JSON schema of config.yaml and of its overlays, as text.

    Nothing is required, since an overlay gives only what differs.
    """
    schema = Config.model_json_schema()
    resources = schema["properties"]["resources"]
    of_stage = resources.pop("additionalProperties")
    resources |= {"properties": dict.fromkeys(STAGES, of_stage), "additionalProperties": False}
    written = {"$schema": _DIALECT, "title": "FlowLLM's configuration", **_for_editors(schema)}
    return json.dumps(written, indent=2, ensure_ascii=False) + "\n"


def _for_editors(schema: Any) -> Any:
    """Return a schema without titles made of names, required keys, defaults and discriminators."""
    if isinstance(schema, list):
        return [_for_editors(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _for_editors(field) for name, field in value.items()}
        if key == "properties"
        else _for_editors(value)
        for key, value in schema.items()
        if key not in _DROPPED
    }


def commented(text: str) -> str:
    """Return config.yaml with the comments that the models give.

    The values, their order and the blank lines stay. So do the comments of the file's head (up to
    its first blank line), and those within lists of rows and within `resources`.

    Raises:
        FlowllmError: a section or key is unknown.
    """
    about = {section.name: section for section in sections()}
    lines, tokens = text.splitlines(), _tokens(text)
    head = lines.index("")
    written = lines[:head]
    section: SectionText | None = None
    described: list[Mapping[str, Sequence[Json]]] = []
    for number, line in enumerate(lines[head:], head):
        key = re.match(r"( *)(\w+):", line)
        is_value = number in tokens.ends or number in tokens.within
        if is_value and key and not key[1]:
            section = _known(about, key[2], "section")
            if section.keys:
                written += _heading(section, with_keys=section.keys not in described)
                described += [section.keys] if section.has_rows else []
                written.append(line[: tokens.ends[number]])
            else:
                written += _with_comment(line, number, tokens, section.description)
        elif section is None or section.has_rows or not line or number in tokens.within:
            if not line.startswith("#"):
                written.append(line)
        elif is_value and key and key[1] == "  ":
            fields = _known(section.keys, key[2], f"key of {section.name}")
            written += _with_comment(line, number, tokens, fields[0]["description"])
        elif is_value:
            written.append(line[: tokens.ends[number]])
    return "\n".join(written) + "\n"


@dataclass(frozen=True)
class _Tokens:
    """Where the values of a YAML text are.

    Attributes:
        ends: line to the column after its last token; a comment begins later.
        within: lines that continue a text of several lines.
        opens: lines that begin such a text; a comment cannot follow there.
    """

    ends: dict[int, int]
    within: set[int]
    opens: set[int]


def _tokens(text: str) -> _Tokens:
    found = _Tokens({}, set(), set())
    for token in yaml.scan(text):
        start, end = token.start_mark, token.end_mark
        if isinstance(token, yaml.ScalarToken) and start.line < end.line:
            last = end.line + bool(end.column)
            found.opens.add(start.line)
            found.within.update(range(start.line + 1, last))
            found.ends[start.line] = len(text.splitlines()[start.line])
        elif start.index < end.index:
            found.ends[end.line] = max(end.column, found.ends.get(end.line, 0))
    return found


def _known(given: Mapping[str, Value], name: str, what: str) -> Value:
    if name not in given:
        raise FlowllmError(f"config.yaml: unknown {what}: {name}; add it to src/flowllm/config")
    return given[name]


def _heading(section: SectionText, *, with_keys: bool) -> Iterator[str]:
    """Give the comment above a section, for a list with the meaning of its rows' keys."""
    yield from _wrapped(section.heading, "# ", "#   ")
    if section.has_rows and with_keys:
        for key, fields in section.keys.items():
            yield from _wrapped(f"{key}: {fields[0]['description']}", "#   ", "#     ")


def _with_comment(line: str, number: int, tokens: _Tokens, comment: str) -> list[str]:
    """Return a key's line with its comment behind it, or above it where it is too long."""
    value = line[: tokens.ends[number]]
    behind = f"{value.ljust(COMMENT_COLUMN - 2)}  # {comment}"
    if len(behind) <= WIDTH and number not in tokens.opens:
        return [behind]
    indent = " " * (len(line) - len(line.lstrip()))
    return [*_wrapped(comment, f"{indent}# ", f"{indent}# "), value]


def _wrapped(comment: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        comment,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare config.yaml and config.schema.json with the models, or write both again.

    Returns:
        The exit code: 1 where a file differs and is not written.
    """
    parser = argparse.ArgumentParser(prog="python -m flowllm.config.reference")
    parser.add_argument("--write", action="store_true", help="write the files that differ")
    parser.add_argument("--folder", type=Path, default=Path(), help="folder of config.yaml [.]")
    given = parser.parse_args(arguments)
    config, schema = given.folder / "config.yaml", given.folder / "config.schema.json"
    text = config.read_text(encoding="utf-8")
    differing = 0
    for path, expected in ((config, commented(text)), (schema, schema_text())):
        if path.exists() and path.read_text(encoding="utf-8") == expected:
            continue
        if given.write:
            path.write_text(expected, encoding="utf-8")
        else:
            differing = 1
            print(f"{path} differs from the models; run `{parser.prog} --write`", file=sys.stderr)
    return differing


if __name__ == "__main__":
    sys.exit(main())
