"""Prompts: what the language model is asked, as text and as tokens.

Training and sampling use the same tokens: a prompt and its answer are turned into tokens each for
itself and joined, so no token spans the border, and an answer ends with the tokenizer's end token,
which the model learns to write.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from pymatgen.core import Composition
from transformers import PreTrainedTokenizerBase

from flowllm.config import Prompts
from flowllm.crystal import cell_formula
from flowllm.errors import FlowllmError
from flowllm.llm.text import composition_of, element_symbol

CACHED_PROMPTS = 65536
"""More than the distinct formulas of MP-20."""


@dataclass(frozen=True)
class Example:
    """One training text.

    Attributes:
        tokens: prompt, answer and end token.
        prompt_length: how many of them are the prompt.
    """

    tokens: tuple[int, ...]
    prompt_length: int


def prompt_text(prompts: Prompts, formula: str | None) -> str:
    """Return the prompt as text; it ends with the line break after which the answer starts.

    Args:
        prompts: the sentences.
        formula: what the formula sentence says, None to leave the sentence out.
    """
    first = prompts.introduction
    if formula is not None:
        first += " " + prompts.formula.replace("{formula}", formula)
    return f"{first}\n{prompts.instruction}\n"


def prompt_formula(prompts: Prompts, atomic_numbers: np.ndarray) -> str:
    """Return a cell's formula in the style of the prompts: `Na4Cl4` (cell) or `NaCl` (reduced)."""
    if prompts.formula_style == "cell":
        return cell_formula(atomic_numbers)
    counts = composition_of(atomic_numbers)
    return Composition({element_symbol(z): count for z, count in counts.items()}).reduced_formula


class PromptTokens:
    """Prompts and answers as tokens of one tokenizer.

    Attributes:
        end_token_id: what ends an answer.
    """

    def __init__(self, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> None:
        """Hold the sentences and the tokenizer.

        Raises:
            FlowllmError: the tokenizer has no end token.
        """
        if tokenizer.eos_token_id is None:
            raise FlowllmError(
                f"the tokenizer of {tokenizer.name_or_path} has no end token (eos_token); "
                "set one in its tokenizer_config.json"
            )
        self.prompts = prompts
        self.end_token_id: int = tokenizer.eos_token_id
        self._tokenizer = tokenizer
        self._line_break = self._ids("\n")
        self.prompt = lru_cache(CACHED_PROMPTS)(self._prompt)

    def _prompt(self, formula: str | None) -> tuple[int, ...]:
        """Return the tokens of a prompt, begun as the tokenizer begins a text (Llama's <s>)."""
        ids = self._tokenizer(prompt_text(self.prompts, formula))["input_ids"]
        # Some tokenizers also end every text; the answer is yet to come.
        return tuple(ids[:-1] if ids[-1] == self.end_token_id else ids)

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the tokens of an answer and the end token.

        SentencePiece (Llama-2) puts a space before every text. The answer stands after a line
        break, so it is taken from behind one, and has no such space.
        """
        with_break = self._ids("\n" + text)
        count = len(self._line_break)
        joined = with_break[:count] == self._line_break
        ids = with_break[count:] if joined else self._ids(text)
        return (*ids, self.end_token_id)

    def example(self, formula: str | None, text: str) -> Example:
        """Return one training text: prompt, answer, end token."""
        prompt = self.prompt(formula)
        return Example((*prompt, *self.answer(text)), len(prompt))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of sampled tokens, its end token and other special tokens left out."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def most_answer_tokens(self, elements: Sequence[int], max_atoms: int) -> int:
        """Return the number of tokens that any crystal text of so many atoms fits into.

        Args:
            elements: atomic numbers that may occur.
            max_atoms: number of atoms.
        """
        lattice = "100.0 100.0 100.0\n120 120 120\n"
        atom = "\n0.00 0.00 0.00\n"
        longest = max(len(self._ids(element_symbol(z) + atom)) for z in elements)
        return len(self._ids(lattice)) + max_atoms * longest + 1

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def splits_digits(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer gives every digit a token of its own.

    Numbers cut at changing places (1|23|4) are harder to learn; the paper's base model splits them.
    """
    ids = tokenizer("1234567890", add_special_tokens=False)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return all(sum(character.isdigit() for character in piece) <= 1 for piece in pieces)
