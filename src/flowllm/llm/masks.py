"""Masks of the tokens with which an atom would be too near to one before it.

Where a text comes to an atom's last coordinate, its 100 values are known, and so are those that are
too near to earlier atoms. A token is masked if all values that it can lead to are too near. The
probabilities of the other tokens are then renormalized token by token: other than a redraw, this
keeps the first two coordinates, and moves the atom along the third axis of the cell.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor, inf, tensor

from flowllm.config.sections.llm import CrystalTextName
from flowllm.llm.read_lines import blocked

_COORDINATE = re.compile(r"0(?:\.([0-9])?([0-9])?)?")
"""A coordinate, or the beginning of one; with its digits after the point."""

Scope = Literal["none", "line", "text"]
"""Part of a text that is drawn under a mask: nothing, its first new line, or all of it."""


@dataclass(frozen=True)
class MaskOptions:
    """What masks need besides the text, the same for all texts of an engine.

    Attributes:
        crystal_text: kind of the texts.
        min_distance: minimum distance of two atoms in angstrom.
        texts: text of each token of crystal texts; that of the end token is a line break.
        numeric: those tokens that have only digits, points and a line break at their end.
    """

    crystal_text: CrystalTextName
    min_distance: float
    texts: dict[int, str]
    numeric: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the numeric tokens."""
        numeric = [t for t, text in self.texts.items() if re.fullmatch(r"[0-9.]*\n?", text)]
        object.__setattr__(self, "numeric", tuple(numeric))


class MaskedText:
    """One text that is drawn under a mask."""

    def __init__(self, options: MaskOptions, kept: Sequence[int], scope: Scope) -> None:
        """Read the tokens that were kept.

        Args:
            options: minimum distance and texts of the tokens.
            kept: tokens of the text that were sampled before.
            scope: part that is drawn under a mask.
        """
        self._options, self._scope = options, scope
        self._lines: tuple[str, ...] = ()
        self._line, self._num_read = "", 0
        self._ended = scope == "none"
        self._is_new = False
        self._read(kept)
        self._is_new = True

    def banned(self, written: Sequence[int]) -> list[int]:
        """Return the tokens that may not follow.

        Args:
            written: all tokens of the text that were sampled after those that were kept.
        """
        self._read(written[self._num_read :])
        self._num_read = len(written)
        first, _, number = self._line.rpartition(" ")
        if self._ended or first.count(" ") != 1:
            return []
        options, texts = self._options, self._options.texts
        near = blocked(options.crystal_text, options.min_distance, self._lines, first)
        if near is None:
            return []
        return [t for t in options.numeric if leads_nowhere(number + texts[t], near)]

    def _read(self, tokens: Sequence[int]) -> None:
        """Add tokens to the lines; a token that is not of crystal text ends the mask."""
        for token in tokens:
            if self._ended:
                return
            text = self._options.texts.get(token)
            if text is None:
                self._ended = True
                return
            head, *others = text.split("\n")
            self._line += head
            for other in others:
                self._lines += (self._line,)
                self._line = other
                self._ended = self._scope == "line" and self._is_new


def leads_nowhere(text: str, blocked: np.ndarray) -> bool:
    """Return whether all coordinates that begin with a text are blocked.

    Args:
        text: beginning of a coordinate, with a line break if it is complete.
        blocked: (100,), whether the coordinates 0.00 to 0.99 are blocked.
    """
    number, line_break, _ = text.partition("\n")
    found = _COORDINATE.fullmatch(number)
    if found is None:
        return False
    tenth, hundredth = found.groups()
    if line_break or hundredth:
        return bool(blocked[10 * int(tenth or 0) + int(hundredth or 0)])
    return tenth is not None and bool(blocked[10 * int(tenth) :][:10].all())


def mask_logits(
    logits: Tensor, texts: Sequence[MaskedText | None], written: Sequence[Sequence[int]]
) -> None:
    """Set the logits of tokens that are banned to -inf, in place.

    Args:
        logits: (b, v).
        texts: text of each row, None for a row without a mask.
        written: tokens of each text that were sampled after those that were kept.
    """
    rows: list[int] = []
    tokens: list[int] = []
    for row, (text, tokens_before) in enumerate(zip(texts, written, strict=True)):
        if text is not None:
            banned = text.banned(tokens_before)
            rows += [row] * len(banned)
            tokens += banned
    if rows:
        banned_rows, banned_tokens = tensor([rows, tokens]).to(logits.device)
        logits[banned_rows, banned_tokens] = -inf
