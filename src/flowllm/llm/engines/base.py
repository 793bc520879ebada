"""What an engine that samples texts is given, returns, and offers."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """One text to be written.

    Attributes:
        prompt: tokens of the prompt.
        seed: of this text's own random numbers.
        regex: expression that the text must match, None for a free text.
    """

    prompt: tuple[int, ...]
    seed: int
    regex: str | None = None


@dataclass(frozen=True)
class Draft:
    """A written text.

    Attributes:
        tokens: the sampled tokens, with the end token where it came to that.
        truncated: whether it stopped for want of tokens.
    """

    tokens: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: of the softmax.
        top_p: nucleus probability.
        max_tokens: the most tokens of a text.
        end_token_id: what ends a text.
        allowed_tokens: no other is drawn; None for the whole vocabulary.
    """

    temperature: float
    top_p: float
    max_tokens: int
    end_token_id: int
    allowed_tokens: tuple[int, ...] | None


class Engine(Protocol):
    """What writes texts.

    Attributes:
        cached_prompt_tokens: tokens of prompts that were not computed again, in all texts so far.
    """

    cached_prompt_tokens: int

    def submit(self, key: int, request: Request) -> None:
        """Take on a text; the key tells it from the others being written."""
        ...

    def finished(self) -> list[tuple[int, Draft]]:
        """Write on until a text is finished; the finished ones with their keys."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
