"""Hooks of MkDocs: two references written from the sources, and equations as MathML.

A page holds `{{ configuration }}` or `{{ artefacts }}` where the tables go. MathML is drawn by the
browser itself, so the pages need nothing from the internet.
"""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from flowllm.config.model import Config
from flowllm.config.stages import STAGES
from flowllm.io import schemas

ROOT = Path(__file__).parents[1]

_COMMENT = re.compile(r"(?:^|\s)#\s(.*)$")
_TARGET = re.compile(r"^->[^;:]*[;:]?\s*")
_KEY = re.compile(r"^(?:  )?(\w+):")
_EQUATION = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<![`$\\\w])\$(?!\s)([^$`\n]+?)(?<!\s)\$(?!\w)")
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the references and the equations of a page (MkDocs calls this)."""
    for name, write in (("configuration", configuration), ("artefacts", artefacts)):
        if f"{{{{ {name} }}}}" in markdown:
            markdown = markdown.replace(f"{{{{ {name} }}}}", "\n".join(write()))
    return equations(markdown)


def equations(markdown: str) -> str:
    """Turn `$$...$$` and `$...$` into MathML."""
    from latex2mathml.converter import convert

    markdown = _EQUATION.sub(lambda m: convert(m[1].strip(), display="block"), markdown)
    return _INLINE.sub(lambda m: convert(m[1]), markdown)


def configuration() -> Iterator[str]:
    """Give the lines of the configuration's reference: key, value, what it may be, meaning."""
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    values, comments = yaml.safe_load(text), _comments(text)
    schema = Config.model_json_schema()
    for name, section in schema["properties"].items():
        stages = [stage for stage, about in STAGES.items() if name in about.sections]
        rows = section.get("items") or section.get("additionalProperties")
        models = _models(rows or section, schema)
        described = " Or: ".join(model.get("description", "") for model in models)
        yield from ("", f"## {name}", "", described, "")
        if comment := _TARGET.sub("", comments.get((name,), "")):
            yield from (comment[0].upper() + comment[1:] + ".", "")
        if stages:
            yield from (f"A change reruns {_words(stages)} and what depends on their results.", "")
        fields: dict[str, list[Any]] = {}
        for model in models:
            for key, field in model.get("properties", {}).items():
                fields.setdefault(key, []).append(field)
        if not fields:
            yield f"`{json.dumps(values[name])}`: {_kind(section, schema)}"
            continue
        yield from ("| key | value | may be | meaning | unit, source |", "|---|---|---|---|---|")
        for key, forms in fields.items():
            shown = "" if rows else f"`{json.dumps(values[name][key], ensure_ascii=False)}`"
            said = forms[0].get("description", ""), comments.get((name, key), "")
            kinds = dict.fromkeys(_kind(form, schema) for form in forms)
            cells = [f"`{key}`", shown, " or ".join(kinds), *said]
            yield f"| {' | '.join(map(_cell, cells))} |"


def _models(section: Any, schema: Any) -> list[Any]:
    """The model of a section, or of a list's rows; each of them where a row may be of several."""
    model = _resolve(section, schema)
    return [_resolve(choice, schema) for choice in model.get("oneOf", [model])]


def _kind(field: Any, schema: Any) -> str:
    """What a value may be, from its JSON schema."""
    field = _resolve(field, schema)
    if "anyOf" in field:
        return " or ".join(_kind(choice, schema) for choice in field["anyOf"])
    if "enum" in field or "const" in field:
        return " or ".join(f"`{choice}`" for choice in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        items = field.get("prefixItems")
        if items:
            return f"{len(items)} times {_kind(items[0], schema)}"
        return f"list of {_kind(field['items'], schema)}"
    bounds = " and ".join(f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field)
    return " ".join(filter(None, (field.get("type", field.get("title", "")), bounds)))


def _resolve(field: Any, schema: Any) -> Any:
    reference = field.get("$ref", "").rpartition("/")[2]
    return schema["$defs"][reference] if reference else field


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """The comments of config.yaml by key, `(section,)` or `(section, key)`."""
    found: dict[tuple[str, ...], str] = {}
    section = ""
    for line in text.splitlines():
        key, comment = _KEY.match(line), _COMMENT.search(line)
        if key and not line.startswith(" "):
            section = key[1]
        if key and comment:
            found[(section, key[1]) if line.startswith(" ") else (section,)] = comment[1].strip()
    return found


def artefacts() -> Iterator[str]:
    """Give the lines of the artefacts' reference: each table with its columns."""
    meanings = _docstrings(inspect.getsource(schemas))
    for name, schema in vars(schemas).items():
        if not isinstance(schema, pa.Schema):
            continue
        path, _, rest = meanings[name].partition(": " if ": " in meanings[name] else "; ")
        yield from ("", f"## {name.lower().replace('_', ' ')}", "", f"`{path}`: {rest}", "")
        yield from ("| column | type | meaning |", "|---|---|---|")
        for field in schema:
            meaning = (field.metadata or {}).get(b"meaning", b"").decode()
            null = "" if field.nullable else ", never null"
            yield f"| `{field.name}` | {_type(field.type)}{null} | {_cell(meaning)} |"


def _type(kind: pa.DataType) -> str:
    """An Arrow type in words a reader of pandas knows."""
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} {_type(kind.value_type)}"
    if pa.types.is_list(kind):
        return f"list of {_type(kind.value_type)}"
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


def _docstrings(source: str) -> dict[str, str]:
    """What the string after each assignment of a module says."""
    body = ast.parse(source).body
    found = {}
    for statement, after in pairwise(body):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(statement, ast.Assign) and is_text:
            found[statement.targets[0].id] = " ".join(after.value.value.split())
    return found


def _words(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
