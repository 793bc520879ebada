"""Hooks of MkDocs: references written from the sources, pages of the root, equations as MathML.

A page holds `{{ configuration }}` or `{{ artefacts }}` where the tables go. MathML is drawn by the
browser itself, so the pages need nothing from the internet.
"""

import ast
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from flowllm.config.model import Config
from flowllm.config.reference import resolve, sections
from flowllm.io import hull_schemas, schemas

ROOT = Path(__file__).parents[1]

ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")
"""Files of the repository's root that are pages of the site, under their names in lower case."""

_EQUATION = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
_INLINE = re.compile(r"(?<![`$\\\w])\$(?!\s)([^$`\n]+?)(?<!\s)\$(?!\w)")
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the pages of the repository's root to the site (MkDocs calls this)."""
    from mkdocs.structure.files import File

    for name in ROOT_PAGES:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    return files


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
    values = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    schema = Config.model_json_schema()
    for section in sections():
        value = values[section.name]
        sentence = f"{section.description[0].upper()}{section.description[1:]}."
        yield from ("", f"## {section.name}", "", sentence, "")
        if section.stages:
            stages = _words(section.stages)
            yield from (f"A change reruns {stages} and what depends on their results.", "")
        if not section.keys:
            yield f"`{json.dumps(value)}`: {_kind(schema['properties'][section.name], schema)}"
            continue
        yield from ("| key | value | may be | meaning, unit, source |", "|---|---|---|---|")
        for key, fields in section.keys.items():
            shown = "" if section.has_rows else f"`{json.dumps(value[key], ensure_ascii=False)}`"
            kinds = dict.fromkeys(_kind(field, schema) for field in fields)
            cells = [f"`{key}`", shown, " or ".join(kinds), fields[0]["description"]]
            yield f"| {' | '.join(map(_cell, cells))} |"


def _kind(field: Any, schema: Any) -> str:
    """What a value may be, from its JSON schema."""
    field = resolve(field, schema)
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


def artefacts() -> Iterator[str]:
    """Give the lines of the artefacts' reference: each table with its columns."""
    modules = (schemas, hull_schemas)
    meanings = _docstrings("\n".join(map(inspect.getsource, modules)))
    found = [(name, value) for module in modules for name, value in vars(module).items()]
    for name, schema in found:
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
    if pa.types.is_map(kind):
        return f"map of {_type(kind.key_type)} to {_type(kind.item_type)}"
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


def _words(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
