"""CIF as text: its tokens, its data blocks, and the names and values of one block.

The grammar is that of CIF 1.1 (Hall, Allen and Brown, Acta Cryst. A47, 655 (1991);
International Tables G, chapter 2.2): a heading inside a text field, a quoted value or a comment
is none. Line endings of every system and a byte order mark are accepted.
"""

import codecs
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Literal

from flowllm.errors import FlowllmError

Kind = Literal["data", "loop", "save", "name", "value"]

UNKNOWN = ("?", ".")
"""CIF's words for a value that is unknown, and for one that does not apply. Programs quote them."""

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
        kind: a heading, the word `loop_`, the bounds of a save frame, a data name, or a value.
        text: the token without its quotes; names and headings in lower case. None for a value that
            is unknown (`?`) or does not apply (`.`).
        line: number of the line that it begins in, from 0.
    """

    kind: Kind
    text: str | None
    line: int


@dataclass(frozen=True)
class Block:
    """The names and values of one data block.

    Attributes:
        values: the values of each name that says something about the crystal; one value where the
            name is in no loop, None for a value that is unknown or does not apply. Names are in
            lower case with `_` for `.` and `-`, and without a `_` at their end, since the
            dictionaries and the programs differ in these.
    """

    values: Mapping[str, Sequence[str | None]]

    def first(self, *names: str) -> str | None:
        """Return the first value that one of the names has, in the order of the names."""
        for name in names:
            for value in self.values.get(name, ()):
                if value is not None:
                    return value
        return None


def read_cif_text(path: Path) -> str:
    """Return the text of a CIF file of any system; see `decode_cif`."""
    return decode_cif(path.read_bytes())


def decode_cif(raw: bytes) -> str:
    """Return the text of the bytes of a CIF file.

    CIF is ASCII: what else is in it are names and remarks, and an author's name in another encoding
    must not cost the crystal. Notepad's "Unicode" is UTF-16, which its byte order mark says.
    """
    is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return raw.decode("utf-16" if is_utf16 else "utf-8-sig", errors="replace")


def split_blocks(text: str) -> list[str]:
    """Cut a CIF into the texts of its blocks that contain a cell or atoms.

    Blocks of journals, of authors and of diffraction data have neither and are left out. pymatgen
    cuts inside of text fields too, and keeps only the last of the blocks that have one name.

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
    """Read the names and values of a text with one data block; save frames are left out.

    Raises:
        FlowllmError: the values of a loop do not fill its last row, or a name is given twice with
            different values. Only names that say something about the crystal matter.
    """
    values: dict[str, list[str | None]] = {}
    tokens = [*_outside_save_frames(_tokens(_lines(text)))]
    i = 0
    while i < len(tokens):
        token = tokens[i]
        i += 1
        if token.kind == "name":
            cells = _run(tokens, i, "value")
            _add(values, token, [_joined(cells)])
            i += len(cells)
        elif token.kind == "loop":
            names = _run(tokens, i, "name")
            cells = _run(tokens, i + len(names), "value")
            i += len(names) + len(cells)
            _add_loop(values, names, cells)
    return Block(values)


def read_number(text: str) -> float:
    """Return the number that a value says, without the uncertainty in parentheses behind it.

    Raises:
        ValueError: it is not a finite decimal number.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or not math.isfinite(float(match[1])):
        raise ValueError(f"{text!r} is not a number")
    return float(match[1])


def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\r|\n", text.removeprefix("\ufeff"))


def _is_of_crystal(name: str) -> bool:
    return re.match(r"_cell[_.]|_atom_site[_.](?!aniso)", name) is not None


def _tokens(lines: Sequence[str]) -> Iterator[Token]:
    number = 0
    while number < len(lines):
        line = lines[number]
        start = 0
        if line.startswith(";"):
            end = _end_of_field(lines, number)
            # What follows the closing semicolon on its line are further tokens.
            yield Token("value", "\n".join([line[1:], *lines[number + 1 : end]]).strip(), number)
            number, start = end, 1
        if number < len(lines):
            yield from _tokens_of_line(lines[number], start, number)
        number += 1


def _end_of_field(lines: Sequence[str], first: int) -> int:
    """Return the number of the line that ends a text field; of the line after the last if none."""
    later = range(first + 1, len(lines))
    return next((number for number in later if lines[number].startswith(";")), len(lines))


def _tokens_of_line(line: str, start: int, number: int) -> Iterator[Token]:
    while match := _WORD.search(line, start):
        word = match[0]
        if word.startswith("#"):
            return
        if word[0] in "'\"":
            quoted = _QUOTED.match(line, match.start())
            # A quote that nothing closes: the rest of the line is the value.
            text = line[match.start() + 1 :] if quoted is None else quoted[1] or quoted[2] or ""
            yield Token("value", None if text in UNKNOWN else text, number)
            start = len(line) if quoted is None else quoted.end()
        else:
            yield _classified(word, number, leading=not line[: match.start()].strip())
            start = match.end()


def _classified(word: str, line: int, *, leading: bool) -> Token:
    """Return the token that an unquoted word is; headings begin their line."""
    lower = word.lower()
    if leading and lower.startswith(("data_", "global_")):
        return Token("data", lower, line)
    if lower == "loop_":
        return Token("loop", lower, line)
    if leading and lower.startswith("save_"):
        return Token("save", lower, line)
    if word.startswith("_"):
        return Token("name", lower, line)
    return Token("value", None if word in UNKNOWN else word, line)


def _outside_save_frames(tokens: Iterator[Token]) -> Iterator[Token]:
    inside = False
    for token in tokens:
        if token.kind == "save":
            inside = token.text != "save_"
        elif not inside:
            yield token


def _run(tokens: Sequence[Token], start: int, kind: Kind) -> list[Token]:
    """Return the tokens of one kind that follow each other from `start` on."""
    return [*takewhile(lambda token: token.kind == kind, islice(tokens, start, None))]


def _joined(cells: Sequence[Token]) -> str | None:
    """Return the value of a name in no loop.

    Words that follow each other in one line belong together: a symbol with spaces that lacks its
    quotes.
    """
    words = [cell.text for cell in cells if cell.line == cells[0].line]
    return words[0] if len(words) == 1 else " ".join(filter(None, words)) or None


def _add_loop(values: dict[str, list[str | None]], names: list[Token], cells: list[Token]) -> None:
    if not any(_OF_CRYSTAL.match(_key(name)) for name in names):
        return
    if len(cells) % len(names):
        raise FlowllmError(
            f"line {names[0].line + 1}: a loop of {len(names)} names has {len(cells)} values, "
            "which do not fill its rows"
        )
    for column, name in enumerate(names):
        _add(values, name, [cell.text for cell in cells[column :: len(names)]])


def _add(values: dict[str, list[str | None]], name: Token, given: list[str | None]) -> None:
    key = _key(name)
    if _OF_CRYSTAL.match(key) and values.setdefault(key, given) != given:
        raise FlowllmError(
            f"line {name.line + 1}: {name.text} is given a second time, with other values"
        )


def _key(name: Token) -> str:
    return re.sub(r"[.-]", "_", name.text).rstrip("_")
