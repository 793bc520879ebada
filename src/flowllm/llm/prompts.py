"""Prompts: what the language model is asked, as text and as tokens.

Training and sampling use the same tokens: a prompt and its answer are turned into tokens each for
itself and joined, so no token spans the border, and an answer ends with the tokenizer's end token,
which the model learns to write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from pymatgen.core import Composition
from transformers import PreTrainedTokenizerBase

from flowllm.config.sections.llm import CONDITIONS, Prompts
from flowllm.crystal import MAX_ATOMIC_NUMBER, Crystal, cell_formula
from flowllm.errors import FlowllmError
from flowllm.llm.text import composition_of, element_symbol, encode

MAX_LENGTH_WRITTEN = 100
"""Angstrom; cells of few atoms are shorter."""

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


@dataclass(frozen=True)
class Conditions:
    """What a prompt gives of a crystal; None is left out.

    Attributes:
        formula: in the style of the prompts.
        elements: symbols, each once, by electronegativity.
        formation_energy_per_atom: eV.
        band_gap: eV.
        e_above_hull: eV per atom.
        space_group_number: 1 to 230.
    """

    formula: str | None = None
    elements: tuple[str, ...] | None = None
    formation_energy_per_atom: float | None = None
    band_gap: float | None = None
    e_above_hull: float | None = None
    space_group_number: int | None = None

    def given(self) -> tuple[str, ...]:
        """Names of what is given."""
        return tuple(name for name in CONDITIONS if getattr(self, name) is not None)

    def only(self, names: Sequence[str]) -> "Conditions":
        """Return just these of the conditions."""
        return Conditions(**{name: getattr(self, name) for name in names})

    def words(self, name: str) -> str:
        """Return one condition as a prompt writes it: energies with three decimal places."""
        value = getattr(self, name)
        if isinstance(value, tuple):
            return ", ".join(value)
        # Adding zero makes -0.0 and what rounds to it plain zero.
        return f"{round(value, 3) + 0.0:.3f}" if isinstance(value, float) else str(value)


UNCONDITIONAL = Conditions()
"""A prompt that gives nothing."""


def conditions_of(prompts: Prompts, row: Mapping[str, Any]) -> Conditions:
    """Return all that is known of a crystal.

    Args:
        prompts: for the formula's style.
        row: of `schemas.CRYSTALS`.
    """
    numbers = np.asarray(row["atomic_numbers"])
    names = Composition(cell_formula(numbers)).as_dict()
    known = {name: row.get(name) for name in CONDITIONS[2:]}
    return Conditions(prompt_formula(prompts, numbers), tuple(names), **known)


def prompt_text(prompts: Prompts, conditions: Conditions) -> str:
    """Return the prompt as text; it ends with the line break after which the answer starts.

    Args:
        prompts: the sentences.
        conditions: what they say; the sentence of what is not given is left out.
    """
    sentences = [prompts.introduction]
    for name in conditions.given():
        sentence = getattr(prompts, name)
        sentences.append(sentence.replace(f"{{{name}}}", conditions.words(name)))
    return f"{' '.join(sentences)}\n{prompts.instruction}\n"


def infill_text(prompts: Prompts, crystal: Crystal, atomic_number: int) -> str:
    """Return the prompt that asks for one hidden element of a crystal; its symbol is the answer.

    Args:
        prompts: the sentences, and the word in the symbol's place.
        crystal: the crystal.
        atomic_number: the element to hide, in all its atoms.
    """
    lines = encode(crystal).split("\n")
    for atom in np.flatnonzero(crystal.atomic_numbers == atomic_number):
        lines[2 + 2 * atom] = prompts.mask
    question = prompts.infill.replace("{mask}", prompts.mask)
    return "\n".join([f"{prompts.introduction} {question}", *lines, ""])


def prompt_formula(prompts: Prompts, atomic_numbers: np.ndarray) -> str:
    """Return a cell's formula in the style of the prompts.

    `Na Na Cl Cl` (atoms, in the order of the text), `Na2Cl2` (cell) or `NaCl` (reduced).
    """
    if prompts.formula_style == "atoms":
        return " ".join(element_symbol(int(z)) for z in atomic_numbers)
    if prompts.formula_style == "cell":
        return cell_formula(atomic_numbers)
    counts = composition_of(atomic_numbers)
    return Composition({element_symbol(z): count for z, count in counts.items()}).reduced_formula


class PromptTokens:
    """Prompts and answers as tokens of one tokenizer.

    Attributes:
        name: of the tokenizer, or the folder that it was loaded from.
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
        self.name: str = tokenizer.name_or_path or "the base model"
        self.end_token_id: int = tokenizer.eos_token_id
        self._tokenizer = tokenizer
        self._line_break = self._ids("\n")
        self.prompt = lru_cache(CACHED_PROMPTS)(self._prompt)

    def _prompt(self, conditions: Conditions) -> tuple[int, ...]:
        return self._begun(prompt_text(self.prompts, conditions))

    def _begun(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a prompt, begun as the tokenizer begins a text (Llama's <s>)."""
        ids = self._tokenizer(text)["input_ids"]
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

    def example(self, conditions: Conditions, text: str) -> Example:
        """Return one training text: prompt, answer, end token."""
        prompt = self.prompt(conditions)
        return Example((*prompt, *self.answer(text)), len(prompt))

    def infilling(self, crystal: Crystal, atomic_number: int) -> Example:
        """Return a text that asks for one hidden element of a crystal, and its symbol."""
        prompt = self._begun(infill_text(self.prompts, crystal, atomic_number))
        return Example((*prompt, *self.answer(element_symbol(atomic_number))), len(prompt))

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

    def answer_tokens(self) -> tuple[int, ...]:
        """Return the tokens that crystal texts of any elements and numbers consist of, and the end.

        They are what the tokenizer makes of texts with every number that a crystal text can have,
        so tokens of several digits, where it has such, are among them.
        """
        text = self.every_number_and_element()
        # Single characters too: a model may spell what the tokenizer joins.
        return tuple(sorted({token for part in (text, *set(text)) for token in self.answer(part)}))

    @staticmethod
    def every_number_and_element() -> str:
        """Return lines of crystal text with each number and symbol that one can have."""
        numbers = [
            *(f"{tenths / 10:.1f}" for tenths in range(10 * MAX_LENGTH_WRITTEN)),
            *(str(degrees) for degrees in range(181)),
            *(f"0.{hundredths:02d}" for hundredths in range(100)),
        ]
        lines = [" ".join([number] * 3) for number in numbers]
        atoms = [f"{element_symbol(z)}\n{lines[-1]}" for z in range(1, MAX_ATOMIC_NUMBER + 1)]
        return "\n".join([*lines, *atoms])

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def splits_digits(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer gives every digit a token of its own.

    Numbers cut at changing places (1|23|4) are harder to learn; the paper's base model splits them.
    """
    ids = tokenizer("1234567890", add_special_tokens=False)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return all(sum(character.isdigit() for character in piece) <= 1 for piece in pieces)
