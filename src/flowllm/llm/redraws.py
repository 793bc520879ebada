"""Drafts in pieces: where an atom is too near to one before it, the text is drawn again from there.

What was written before is kept, so that the atom has the model's own distribution, given what is
before it and given that it is far enough from it (rejection sampling, atom by atom). This differs
from the distribution of whole texts without near atoms, which would also weight the first atoms by
the probability that the following ones are far enough; only drawing whole texts again gives that.
Where an atom has no place, as in a cell that is too small, atoms before it are drawn again, too,
and at last the cell.

Each piece has its own random numbers, which follow from the seed of its draft and the number of
pieces before. They depend on no other text.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flowllm.llm.crystal_text import HEADER_LINES, Reason, Rejection
from flowllm.llm.engines.base import Draft, DraftRequest
from flowllm.llm.masks import Scope
from flowllm.llm.prompts import PromptTokens
from flowllm.llm.read_lines import blocked, read_lines
from flowllm.seeds import derive

MASKED_REDRAWS = 8
"""Redraws under a mask, after which earlier atoms are drawn again, too. One suffices unless no
value of the last coordinate is far enough; the next one may begin with other coordinates."""

MAX_RETURNS = 6
"""Returns to earlier atoms, after which a draft is rejected. The first goes back by one atom, or
orbit, and each by twice as many as the one before, so that the last ones reach the cell."""

Form = Callable[[str], str]
"""Form of a text: a function from what is written of it, up to the end of a line, to the regular
expression or grammar that the next piece must match (`CrystalText.first_lines`)."""


@dataclass(frozen=True)
class Apart:
    """How the atoms of drafts are kept apart.

    Attributes:
        min_distance: minimum distance of two atoms, or of an atom and its image, in angstrom.
        max_redraws: redraws per atom from the model's own distribution; the following ones are
            drawn under a mask. 0: each text is drawn under a mask from its beginning.
    """

    min_distance: float
    max_redraws: int


class Draw:
    """One draft of a crystal, which is drawn in one or several pieces.

    Attributes:
        tokens: tokens of the text so far.
        truncated: whether the text has no end token.
        redraws: number of redraws so far.
        masked: number of atoms so far that were drawn under a mask and whose last coordinate had
            masked values.
        rejection: reason why the draft is given up, None if it is not.
    """

    def __init__(
        self,
        prompts: PromptTokens,
        apart: Apart | None,
        *,
        prompt: tuple[int, ...],
        seed: int,
        form: Form | None,
    ) -> None:
        """Start a draft.

        Args:
            prompts: the prompts and the tokenizer.
            apart: how atoms are kept apart, None for not at all.
            prompt: tokens of the prompt.
            seed: seed of the draft.
            form: form of the text, None for a free text.
        """
        self._prompts, self._apart = prompts, apart
        self._prompt, self._seed, self._form = prompt, seed, form
        self.tokens: list[int] = []
        self.truncated = False
        self.redraws = self.masked = 0
        self.rejection: Rejection | None = None
        self._redraws_at: Counter[int] = Counter()
        self._reader: _Reader | None = None
        self._first_pieces = self._returns = 0
        self._scope: Scope = "text" if apart is not None and not apart.max_redraws else "none"

    def next_piece(self) -> DraftRequest:
        """Return the request of the next piece."""
        regex = None if self._form is None else self._form(self._prompts.decode(self.tokens))
        before = self.redraws + self._first_pieces
        request = DraftRequest(
            self._prompt,
            derive(self._seed, "redraw", before) if before else self._seed,
            regex,
            kept=tuple(self.tokens),
        )
        if self._apart is None:
            return request
        self._reader = _Reader(self._prompts, self._apart.min_distance, self.tokens, self._scope)
        return replace(request, stops=self._reader.read, masked=self._scope)

    def finish(self, piece: Draft) -> bool:
        """Add a finished piece; return whether another one has to be drawn.

        Args:
            piece: tokens that follow those that were kept.
        """
        self.tokens = [*self.tokens, *piece.tokens]
        self.truncated = piece.truncated
        if self._has_first_lines():
            self.tokens = self.tokens[: self._start_of(self._prompts.crystal_text.first_lines)]
            self._first_pieces += 1
            return True
        if self._apart is None:
            return False
        assert self._reader is not None
        line = self._reader.near_line_of(self.tokens)
        self.masked += self._reader.masked
        if line is None:
            return False
        redraws = self._redraws_at[line]
        if redraws == self._apart.max_redraws + MASKED_REDRAWS:
            if self._returns == MAX_RETURNS:
                detail = (
                    f"line {line + 1} has atoms nearer than {self._apart.min_distance} angstrom "
                    f"after {redraws} redraws and {MAX_RETURNS} returns to earlier atoms"
                )
                self.rejection = Rejection(Reason.CLOSE_ATOMS, detail)
                return False
            line, redraws = self._return_from(line), 0
        if self._apart.max_redraws:
            self._scope = "line" if redraws >= self._apart.max_redraws else "none"
        self._redraws_at[line] += 1
        self.redraws += 1
        self.tokens = self.tokens[: self._start_of(line)]
        return True

    def _return_from(self, line: int) -> int:
        """Count a return to earlier atoms, and return the line from which they are drawn again."""
        atom = (line - HEADER_LINES) // 2 - 2**self._returns
        self._returns += 1
        earlier = HEADER_LINES + 2 * atom if atom >= 0 else 0
        for later in [one for one in self._redraws_at if one >= earlier]:
            del self._redraws_at[later]
        return earlier

    def _has_first_lines(self) -> bool:
        """Return whether the text has only the lines that are drawn first, and its form a rest."""
        first = self._prompts.crystal_text.first_lines
        if self._form is None or not first or self.truncated:
            return False
        return self._prompts.decode(self.tokens).split("\n")[first:] == [""]

    def _start_of(self, line: int) -> int:
        """Return the number of tokens before a line, or before one above it.

        A tokenizer may have tokens that span the border of the line; all of such a token is drawn
        again, and so is the line before it.
        """
        breaks, start = 0, 0
        for position, token in enumerate(self.tokens):
            count, ends = self._prompts.line_breaks(token)
            breaks += count
            if breaks > line:
                break
            if count and ends:
                start = position + 1
        return start


class _Reader:
    """Reads the lines of a piece, as soon as they are finished, for their check.

    Attributes:
        masked: number of atoms whose last coordinate had masked values.
    """

    def __init__(
        self, prompts: PromptTokens, min_distance: float, kept: Sequence[int], scope: Scope
    ) -> None:
        """Read the lines that were kept.

        Args:
            prompts: the prompts and the tokenizer.
            min_distance: minimum distance of two atoms in angstrom.
            kept: tokens of the text before the piece.
            scope: part of the piece that is drawn under a mask.
        """
        self.masked = 0
        self._prompts = prompts
        self._kind = prompts.prompts.crystal_text, min_distance
        self._lines: tuple[str, ...] = ()
        # Tokens since the last one that ends a line, and the number of their lines that are read.
        self._tokens: list[int] = []
        self._num_read = 0
        self._near_line: int | None = None
        self._masked_lines = range(0)
        self.read(kept)
        first = len(self._lines)
        count = {"none": 0, "line": 1, "text": sys.maxsize - first}[scope]
        self._masked_lines = range(first, first + count)

    def read(self, tokens: Sequence[int]) -> bool:
        """Add sampled tokens; return whether a finished line has an atom too near to another."""
        self._tokens.extend(tokens)
        if any(self._prompts.line_breaks(token)[0] for token in tokens):
            *finished, begun = self._prompts.decode(self._tokens).split("\n")
            self._check_lines(finished[self._num_read :])
            self._num_read = len(finished)
            if not begun:
                self._tokens, self._num_read = [], 0
        return self._near_line is not None

    def near_line_of(self, tokens: Sequence[int]) -> int | None:
        """Return the line from which the whole text must be drawn again, None for no line."""
        lines = self._prompts.decode(tokens).split("\n")
        self._check_lines(lines[len(self._lines) :])
        return self._near_line

    def _check_lines(self, lines: Sequence[str]) -> None:
        """Check the lines that follow those that were checked."""
        for line in lines:
            if self._near_line is not None:
                return
            if len(self._lines) in self._masked_lines:
                first = line.rpartition(" ")[0]
                self.masked += blocked(*self._kind, self._lines, first) is not None
            self._lines += (line,)
            found = read_lines(*self._kind, self._lines)
            if found.is_near:
                self._near_line = found.check.redraw_line
