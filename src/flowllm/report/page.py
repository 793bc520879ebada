"""The HTML page, composed of candidates, tables, figures and records."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from flowllm.report.gallery import Candidate
from flowllm.report.table import Table

TEMPLATE = "page.html.j2"
VIEWER = Path(__file__).with_name("viewer.js")

OPEN_CANDIDATES = 4
"""Candidates of a gallery that are shown at once; the others are folded."""


@dataclass(frozen=True)
class RenderedFigure:
    """A figure as files.

    Attributes:
        name: name of its files.
        caption: caption.
        files: contents of the files by suffix.
        on_page: whether the page shows it, besides its files.
    """

    name: str
    caption: str
    files: dict[str, bytes]
    on_page: bool = True

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
    """A section of the page.

    Attributes:
        name: name of its anchor.
        title: heading.
        note: text below the heading.
        gallery: crystals with their pictures.
        figures: figures.
        tables: tables.
        details: collapsible texts.
        folded: whether it is collapsed, below all sections that are not.
    """

    name: str
    title: str
    note: str = ""
    gallery: Sequence[Candidate] = field(default_factory=list)
    figures: Sequence[RenderedFigure] = field(default_factory=list)
    tables: Sequence[Table] = field(default_factory=list)
    details: Sequence[Detail] = field(default_factory=list)
    folded: bool = False

    @property
    def content(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.note or self.gallery or self.figures or self.tables or self.details)


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
    sections: Sequence[Section],
    files: bool = True,
) -> str:
    """Return the page as one self-contained file; its only script draws and rotates the crystals.

    Args:
        title: heading.
        subtitle: line below the heading.
        color: main color, #rrggbb.
        sections: sections; those that are folded follow the others.
        files: whether the page names the files of its tables and figures.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    viewer = VIEWER.read_text(encoding="utf-8")
    return environment.get_template(TEMPLATE).render(
        title=title,
        subtitle=subtitle,
        color=color,
        sections=[section for section in sections if not section.folded],
        folded=[section for section in sections if section.folded],
        files=files,
        open_candidates=OPEN_CANDIDATES,
        viewer=viewer if any(section.gallery for section in sections) else "",
    )
