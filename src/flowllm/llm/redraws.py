"""Drafts in pieces: where an atom is too near to one before it, the text is drawn again from there.

What was written before is kept, so that the atom has the model's own distribution, given what is
before it and given that it is far enough from it (rejection sampling, atom by atom). This differs
from the distribution of whole texts without near atoms, which would also weight the first atoms by
the probability that the following ones are far enough; only drawing whole texts again gives that.

Each piece has its own random numbers, which follow from the seed of its draft and the number of its
redraws before. They depend on no other text.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flowllm.llm.apart import LineCheck
from flowllm.llm.engines.base import Draft, DraftRequest
from flowllm.llm.prompts import PromptTokens
from flowllm.llm.text import Reason, Rejection
from flowllm.seeds import derive

Form = Callable[[str], str]
"""Form of a text: a function from what is written of it, up to the end of a line, to the regular
expression that the rest must match."""


@dataclass(frozen=True)
class Apart:
    """How the atoms of drafts are kept apart.

    Attributes:
        min_distance: minimum distance of two atoms, or of an atom and its image, in angstrom.
        max_redraws: maximum number of redraws per atom.
        check: function that returns the check of a new text, given the minimum distance.
    """

    min_distance: float
    max_redraws: int
    check: Callable[[float], LineCheck]


class Draw:
    """One draft of a crystal, which is drawn in one or several pieces.

    Attributes:
        tokens: tokens of the text so far.
        truncated: whether the text has no end token.
        redraws: number of redraws so far.
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
        self.redraws = 0
        self.rejection: Rejection | None = None
        self._redraws_at: Counter[int] = Counter()
        self._reader: _Reader | None = None

    def next_piece(self) -> DraftRequest:
        """Return the request of the next piece."""
        regex = None if self._form is None else self._form(self._prompts.decode(self.tokens))
        if self._apart is None:
            return DraftRequest(self._prompt, self._seed, regex)
        self._reader = _Reader(self._prompts, self._apart.check(self._apart.min_distance))
        self._reader.read(self.tokens)
        return DraftRequest(
            self._prompt,
            derive(self._seed, "redraw", self.redraws) if self.redraws else self._seed,
            regex,
            kept=tuple(self.tokens),
            stops=self._reader.read,
        )

    def finish(self, piece: Draft) -> bool:
        """Add a finished piece; return whether another one has to be drawn.

        Args:
            piece: tokens that follow those that were kept.
        """
        self.tokens = [*self.tokens, *piece.tokens]
        self.truncated = piece.truncated
        if self._apart is None:
            return False
        assert self._reader is not None
        line = self._reader.near_line_of(self.tokens)
        if line is None:
            return False
        if self._redraws_at[line] == self._apart.max_redraws:
            detail = (
                f"line {line + 1} has atoms nearer than {self._apart.min_distance} angstrom after "
                f"{self._apart.max_redraws} redraws"
            )
            self.rejection = Rejection(Reason.CLOSE_ATOMS, detail)
            return False
        self._redraws_at[line] += 1
        self.redraws += 1
        self.tokens = self.tokens[: self._start_of(line)]
        return True

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
    """Reads the lines of a text, as soon as they are finished, for its check."""

    def __init__(self, prompts: PromptTokens, check: LineCheck) -> None:
        self._prompts, self._check = prompts, check
        self._tokens: list[int] = []
        self._num_read = 0
        self._near_line: int | None = None

    def read(self, tokens: Sequence[int]) -> bool:
        """Add sampled tokens; return whether a finished line has an atom too near to another."""
        self._tokens.extend(tokens)
        if any(self._prompts.line_breaks(token)[0] for token in tokens):
            self._check_lines(self._prompts.decode(self._tokens).split("\n")[:-1])
        return self._near_line is not None

    def near_line_of(self, tokens: Sequence[int]) -> int | None:
        """Return the line from which the whole text must be drawn again, None for no line."""
        self._check_lines(self._prompts.decode(tokens).split("\n"))
        return self._near_line

    def _check_lines(self, lines: Sequence[str]) -> None:
        """Check the lines that follow those that were checked."""
        for line in lines[self._num_read :]:
            if self._near_line is None and self._check.add(line):
                self._near_line = self._check.redraw_line
        self._num_read = max(self._num_read, len(lines))
