"""Interface of a sampling engine: what it is given, what it returns, and its methods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flowllm.llm.masks import MaskOptions, Scope


@dataclass(frozen=True)
class DraftRequest:
    """One text to be generated.

    Attributes:
        prompt: tokens of the prompt.
        seed: seed of this text's own random numbers.
        regex: regular expression that the text must match, or a grammar in the notation of
            xgrammar, which begins with the rule root; None for a free text.
        kept: tokens of the text that were sampled before; they follow the prompt and count towards
            the maximum number of tokens, and the expression describes what follows them.
        stops: function that is given each sampled token, several at once where the engine has
            them, and returns whether the text ends there; None for no such end.
        masked: part of the text in which atoms too near to earlier ones are masked (`llm.masks`).
    """

    prompt: tuple[int, ...]
    seed: int
    regex: str | None = None
    kept: tuple[int, ...] = ()
    stops: Callable[[Sequence[int]], bool] | None = None
    masked: Scope = "none"

    @property
    def start(self) -> tuple[int, ...]:
        """Return the tokens that the model continues."""
        return self.prompt + self.kept


@dataclass(frozen=True)
class Draft:
    """A generated text.

    Attributes:
        tokens: sampled tokens, including the end token if it was sampled, without those that were
            kept.
        truncated: whether the text reached the maximum number of tokens without its end token, or
            was ended by its request.
    """

    tokens: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class SamplingOptions:
    """Options of token sampling, the same for all texts of an engine.

    Attributes:
        temperature: temperature of the softmax; 0 selects the most likely token.
        top_p: cumulative probability of the nucleus, in (0, 1].
        max_tokens: maximum number of tokens per text.
        end_token_id: token that ends a text.
        allowed_tokens: tokens that may be sampled, None for the whole vocabulary.
        masks: options of the masks that requests may ask for, None if none does.
    """

    temperature: float
    top_p: float
    max_tokens: int
    end_token_id: int
    allowed_tokens: tuple[int, ...] | None
    masks: MaskOptions | None = None


class Engine(Protocol):
    """A language model that generates texts.

    Attributes:
        cached_prompt_tokens: prompt tokens that were read from a cache instead of being computed,
            summed over all texts so far.
    """

    cached_prompt_tokens: int

    def submit(self, key: int, request: DraftRequest) -> None:
        """Queue a text.

        Args:
            key: number that identifies the text; no other unfinished text may have it.
            request: the text to be generated.
        """
        ...

    def finished(self) -> list[tuple[int, Draft]]:
        """Generate until at least one text is finished; return the finished texts with their keys.

        At least one text must be queued.
        """
        ...

    def close(self) -> None:
        """Release the model's memory and processes. The engine cannot be used afterwards."""
        ...
