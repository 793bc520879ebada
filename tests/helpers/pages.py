"""The pages of the documentation, with their fenced blocks, commands, headings and links."""

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tiny_run import ROOT

TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")),
    *sorted((ROOT / "recipes").glob("*/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where the block begins, for messages and names of tests."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a bash block, without comment, as words."""

    place: str
    words: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page in their order, each with its line and language."""
    text = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page, line, match[2], textwrap.dedent(match[3]))


def commands() -> Iterator[Command]:
    """Yield the commands in the bash and console blocks of all pages but the tutorial."""
    for block in (one for page in PAGES if page != TUTORIAL for one in blocks(page)):
        if block.language in ("bash", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line.removeprefix("$ "), comments=True):
                    yield Command(block.place, tuple(words))


def links(page: Path) -> Iterator[str]:
    """Yield the targets of a page's links to files and headings of the repository."""
    for target in _LINK.findall(_prose(page)):
        if not re.match(r"[a-z]+:", target):
            yield target


def is_generated(page: Path) -> bool:
    """Return whether a part of a page is made by docs/hooks.py; MkDocs checks its anchors."""
    return re.search(r"^\{\{ \w+ \}\}$", page.read_text(encoding="utf-8"), re.MULTILINE) is not None


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs write them."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


def _prose(page: Path) -> str:
    return _COMMENT.sub("", _FENCE.sub("", page.read_text(encoding="utf-8")))
