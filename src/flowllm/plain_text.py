"""Foreign text as plain text: without secrets of addresses, and without commands to programs."""

import re
import unicodedata

_ADDRESS = re.compile(r"\b(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<rest>[^\s\"'<>`]+)", re.IGNORECASE)

_LOOSE_QUERY = re.compile(r"\?[\w.~-]+=[^\s\"'<>`]+")
"""A query without the beginning of its address, as in errors of http.client."""

HIDDEN = "[hidden]"

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""Characters that begin a formula in a spreadsheet (OWASP, CSV injection)."""

_MARKDOWN = re.compile(r"([\\`*\[\]|])")


def redacted(text: str) -> str:
    """Return a text with the passwords, queries and fragments of its addresses hidden.

    A signed address (`?X-Amz-Signature=...`) or a token in a query gives access to everybody who
    reads a log.
    """
    return _LOOSE_QUERY.sub(f"?{HIDDEN}", _ADDRESS.sub(_redacted_address, text))


def _redacted_address(found: re.Match[str]) -> str:
    rest = found["rest"]
    end = re.search(r"[/?#]", rest)
    host, path = (rest, "") if end is None else (rest[: end.start()], rest[end.start() :])
    if "@" in host:
        host = f"{HIDDEN}@{host.rpartition('@')[2]}"
    if query := re.search(r"[?#]", path):
        path = f"{path[: query.start() + 1]}{HIDDEN}"
    return found["scheme"] + host + path


def printable(text: str, keep: str = "") -> str:
    """Return a text with its control characters as Python escapes.

    A terminal executes escape sequences, and direction marks change the displayed order of a text.

    Args:
        text: text of any origin.
        keep: control characters that stay.
    """
    return "".join(one if one in keep or _is_plain(one) else _written_out(one) for one in text)


def _is_plain(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _written_out(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def spreadsheet_text(cell: object) -> object:
    """Return a cell of a CSV file, with an apostrophe before text that a spreadsheet would run.

    Numbers do not change, negative ones included. To read an id back, remove the first apostrophe
    of a cell that begins with one: texts that begin with an apostrophe get a second one.
    """
    if isinstance(cell, str) and cell.startswith((*FORMULA_STARTS, "'")):
        return f"'{cell}"
    return cell


def markdown_text(text: str) -> str:
    """Return a text that Markdown shows unchanged: HTML, links and columns are escaped."""
    one_line = " ".join(printable(text, keep="\n\t\r").split("\n"))
    escaped = _MARKDOWN.sub(r"\\\1", one_line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
