"""The HTML page, composed of tables, figures and records."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import jinja2

from flowllm.report.gallery import Candidate
from flowllm.report.table import Column, Table, show

TEMPLATE = "page.html.j2"
VIEWER = Path(__file__).with_name("viewer.js")


@dataclass(frozen=True)
class RenderedFigure:
    """A figure as files.

    Attributes:
        name: name of its files.
        caption: caption.
        files: contents of the files by suffix.
    """

    name: str
    caption: str
    files: dict[str, bytes]

    @property
    def svg(self) -> str:
        """The SVG in base64 for the page."""
        return base64.b64encode(self.files["svg"]).decode()


@dataclass(frozen=True)
class Detail:
    """A collapsible text."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    name: str
    title: str
    note: str = ""
    gallery: Sequence[Candidate] = field(default_factory=list)
    figures: Sequence[RenderedFigure] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    details: Sequence[Detail] = field(default_factory=list)


class Card(TypedDict):
    """A headline number: method, value, name of the number, and details in small print."""

    setting: str
    value: str
    what: str
    detail: str


def headline_cards(table: Table, what: str, hull: str) -> list[Card]:
    """Return the first method's rates of a stability table as cards.

    Args:
        table: a table of `quality_tables.sun_table`.
        what: source of the energies, as text.
        hull: reference hull, as text.
    """
    ours = next((row for row in table.rows if not row.get("published")), None)
    if ours is None:
        return []
    cards: list[Card] = []
    for key, title in (("stability_rate", "stable"), ("sun_rate", "S.U.N.")):
        shown = show(ours[key], Column(key, title, "rate"))
        cards.append(
            {
                "setting": ours["setting"],
                "value": shown.text,
                "what": f"{title}, {what}",
                "detail": f"{shown.detail} % (95 %); {hull}",
            }
        )
    return cards


def provenance_details(records: Sequence[dict[str, Any]]) -> list[Detail]:
    """Return versions and machines once, and the settings of each stage from its first record."""
    details = []
    environments: dict[str, list[str]] = {}
    for record in records:
        keys = ("commit", "hardware", "versions")
        text = json.dumps({key: record.get(key) for key in keys}, indent=2, sort_keys=True)
        environments.setdefault(text, []).append(record["stage"])
    for text, stages in environments.items():
        names = ", ".join(dict.fromkeys(stages))
        details.append(Detail(f"Commit, machine and versions of {names}", text))
    seen = set()
    for record in records:
        settings = json.dumps(record["settings"], indent=2, sort_keys=True)
        if (record["stage"], settings) in seen:
            continue
        seen.add((record["stage"], settings))
        head = f"{record['stage']}, seed {record['seed']}, {record['started']}"
        details.append(Detail(f"Settings of {head}", settings))
    return details


def render(
    *,
    title: str,
    subtitle: str,
    color: str,
    cards: Sequence[Card],
    sections: Sequence[Section],
    table_files: bool = True,
) -> str:
    """Return the page as one self-contained file; its only script rotates the gallery's crystals.

    Args:
        title: heading.
        subtitle: line below the heading.
        color: main color, #rrggbb.
        cards: headline numbers.
        sections: sections below the cards.
        table_files: whether the page names the files of its tables.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(TEMPLATE).render(
        title=title,
        subtitle=subtitle,
        color=color,
        cards=cards,
        sections=sections,
        table_files=table_files,
        viewer=VIEWER.read_text() if any(section.gallery for section in sections) else "",
    )
