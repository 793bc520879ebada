"""CIF as text: its tokens, its data blocks, and the names and values of one block.

The grammar is that of CIF 1.1 (Hall, Allen and Brown, Acta Cryst. A47, 655 (1991);
International Tables G, chapter 2.2): `data_` or `loop_` inside a text field, a quoted value or a
comment has no meaning. Line endings of every system and a byte order mark are accepted.

The tokens are read here because the installed libraries lose what the tests ask for: pymatgen's
`CifFile` fails where a text field contains `data_`, `loop_` or a name, ASE's `parse_cif` fails on
save frames, and both silently keep the last of two values of one name.
"""

import codecs
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Literal

from flowllm.data.rejected import RejectedError

TokenKind = Literal["data", "loop", "save", "name", "value"]

UNKNOWN = ("?", ".")
"""CIF's words for a value that is unknown, and for one that does not apply; some programs quote
them."""

_OF_CRYSTAL = re.compile(
    r"_cell_(length|angle|formula|modulation|wave)_|_symmetry_|_space_group_"
    r"|_atom_site_(?!aniso)|_chemical_formula_sum$"
)

_QUOTED = re.compile(r"'(.*?)'(?=\s|$)|\"(.*?)\"(?=\s|$)")
_NUMBER = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?:\([0-9.]*\)?)?")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a CIF.

    Attributes:
        kind: a block's heading, the word `loop_`, the start or end of a save frame, a data name,
            or a value.
        text: the token without its quotes; all but values in lower case.
        line: number of the line that the token begins in, from 0.
    """

    kind: TokenKind
    text: str
    line: int

    @property
    def value(self) -> str | None:
        """The text, None for a value that is unknown (`?`) or does not apply (`.`)."""
        return None if self.text in UNKNOWN else self.text


@dataclass(frozen=True)
class Block:
    """The names and values of one data block.

    Attributes:
        values: the values of each name that describes the crystal; one value where the name is in
            no loop, None for a value that is unknown or does not apply. Names are in lower case,
            with `_` for `.` and `-`, and without a final `_`, because CIF dictionaries and
            programs differ in these.
    """

    values: Mapping[str, Sequence[str | None]]

    def first(self, name: str) -> str | None:
        """Return the first known value of a name, None where it has none."""
        return next((value for value in self.values.get(name, ()) if value is not None), None)


def read_cif_text(path: Path) -> str:
    """Return the text of a CIF file; see `decode_cif`."""
    return decode_cif(path.read_bytes())


def decode_cif(raw: bytes) -> str:
    """Return the text of a CIF file's bytes.

    CIF is ASCII. Other characters occur in names of authors and in remarks only, so bytes that are
    not UTF-8 are replaced. UTF-16, Notepad's "Unicode", is recognized by its byte order mark.
    """
    is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return raw.decode("utf-16" if is_utf16 else "utf-8-sig", errors="replace")


def split_blocks(text: str) -> list[str]:
    """Cut a CIF into the texts of its blocks that contain a cell or atoms.

    Blocks about the journal, the authors or the diffraction data have neither and are left out.

    Args:
        text: a CIF; nothing in it needs to be correct.

    Returns:
        One text per block, with its heading, in the order of the file; empty where no block
        contains a cell or atoms.
    """
    lines = _lines(text)
    starts: list[int] = []
    crystals: set[int] = set()
    for token in _tokens(lines):
        if token.kind == "data":
            starts.append(token.line)
        elif token.kind == "name" and starts and _is_of_crystal(token.text):
            crystals.add(starts[-1])
    bounds = pairwise([*starts, len(lines)])
    return ["\n".join(lines[start:end]) + "\n" for start, end in bounds if start in crystals]


def read_block(text: str) -> Block:
    """Read the names and values of a text with one data block, without its save frames.

    Raises:
        RejectedError: bad_cif, where the values of a loop do not fill its last row, or a name is
            given twice with different values. Names that do not describe the crystal are ignored.
    """
    values: dict[str, list[str | None]] = {}
    tokens = [*_outside_save_frames(_tokens(_lines(text)))]
    i = 0
    while i < len(tokens):
        token = tokens[i]
        i += 1
        if token.kind == "name":
            cells = _tokens_of_kind(tokens, i, "value")
            _add(values, token, [_joined(cells)])
            i += len(cells)
        elif token.kind == "loop":
            names = _tokens_of_kind(tokens, i, "name")
            cells = _tokens_of_kind(tokens, i + len(names), "value")
            i += len(names) + len(cells)
            _add_loop(values, names, cells)
    return Block(values)


def parse_number(text: str, name: str) -> float:
    """Return the number of a value, without the uncertainty in parentheses after it.

    Args:
        text: the value.
        name: its data name, for the message.

    Raises:
        RejectedError: bad_cif, where it is not a finite decimal number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not math.isfinite(float(match[1])):
        raise RejectedError("bad_cif", f"{name}: {text!r} is not a number")
    return float(match[1])


def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))


def _is_of_crystal(name: str) -> bool:
    return re.match(r"_cell[_.]|_atom_site[_.](?!aniso)", name) is not None


def _tokens(lines: Sequence[str]) -> Iterator[Token]:
    """Yield the tokens of a CIF; a text field, between lines that begin with `;`, is one."""
    number = 0
    while number < len(lines):
        line = lines[number]
        start = 0
        if line.startswith(";"):
            end = _end_of_field(lines, number)
            # Further tokens may follow the closing semicolon in its line.
            yield Token("value", "\n".join([line[1:], *lines[number + 1 : end]]).strip(), number)
            number, start = end, 1
        if number < len(lines):
            yield from _tokens_of_line(lines[number], start, number)
        number += 1


def _end_of_field(lines: Sequence[str], first: int) -> int:
    """Return the number of the line that ends a text field, the number of lines where none does."""
    later = range(first + 1, len(lines))
    return next((number for number in later if lines[number].startswith(";")), len(lines))


def _tokens_of_line(line: str, start: int, number: int) -> Iterator[Token]:
    """Yield the tokens of a line from the character `start` to its end or its comment."""
    while match := _WORD.search(line, start):
        word = match[0]
        if word.startswith("#"):
            return
        if word[0] in "'\"":
            quoted = _QUOTED.match(line, match.start())
            # Without a closing quote the rest of the line is the value.
            text = line[match.start() + 1 :] if quoted is None else quoted[1] or quoted[2] or ""
            yield Token("value", text, number)
            start = len(line) if quoted is None else quoted.end()
        else:
            yield _classified(word, number, leading=not line[: match.start()].strip())
            start = match.end()


def _classified(word: str, line: int, *, leading: bool) -> Token:
    """Return the token of an unquoted word; a heading must be the first word of its line."""
    lower = word.lower()
    if leading and lower.startswith(("data_", "global_")):
        return Token("data", lower, line)
    if lower == "loop_":
        return Token("loop", lower, line)
    if leading and lower.startswith("save_"):
        return Token("save", lower, line)
    if word.startswith("_"):
        return Token("name", lower, line)
    return Token("value", word, line)


def _outside_save_frames(tokens: Iterator[Token]) -> Iterator[Token]:
    inside = False
    for token in tokens:
        if token.kind == "save":
            inside = token.text != "save_"
        elif not inside:
            yield token


def _tokens_of_kind(tokens: Sequence[Token], start: int, kind: TokenKind) -> list[Token]:
    """Return the consecutive tokens of one kind from `start` on."""
    return [*takewhile(lambda token: token.kind == kind, islice(tokens, start, None))]


def _joined(cells: Sequence[Token]) -> str | None:
    """Return the value of a name in no loop.

    Several words in one line are joined: they are a symbol with spaces that lacks its quotes.
    """
    words = [cell.value for cell in cells if cell.line == cells[0].line]
    return words[0] if len(words) == 1 else " ".join(filter(None, words)) or None


def _add_loop(values: dict[str, list[str | None]], names: list[Token], cells: list[Token]) -> None:
    if not any(_OF_CRYSTAL.match(_key(name)) for name in names):
        return
    if len(cells) % len(names):
        raise RejectedError(
            "bad_cif",
            f"line {names[0].line + 1}: a loop of {len(names)} names has {len(cells)} values, "
            "which do not fill its rows",
        )
    for column, name in enumerate(names):
        _add(values, name, [cell.value for cell in cells[column :: len(names)]])


def _add(values: dict[str, list[str | None]], name: Token, given: list[str | None]) -> None:
    key = _key(name)
    if _OF_CRYSTAL.match(key) and values.setdefault(key, given) != given:
        raise RejectedError(
            "bad_cif",
            f"line {name.line + 1}: {name.text} is given a second time, with other values",
        )


def _key(name: Token) -> str:
    return re.sub(r"[.-]", "_", name.text).rstrip("_")
