"""Prompts of the language model, as text and as tokens.

Training and sampling use the same tokens: a prompt and its answer are tokenized separately and
joined, so that no token spans the border. An answer ends with the tokenizer's end token, which the
model learns to generate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from pymatgen.core import Composition
from transformers import PreTrainedTokenizerBase

from flowllm.config.sections.llm import CONDITIONS, Prompts
from flowllm.crystal import cell_formula
from flowllm.errors import FlowllmError
from flowllm.llm.crystal_text import Description, composition_of
from flowllm.llm.crystal_texts import crystal_text
from flowllm.llm.text_parts import element_symbol

CACHED_PROMPTS = 65536
"""Prompts whose tokens are kept; more than the distinct formulas of MP-20."""


@dataclass(frozen=True)
class Example:
    """One training text.

    Attributes:
        tokens: tokens of the prompt and the answer, and the end token.
        prompt_length: number of tokens of the prompt.
    """

    tokens: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Conditions:
    """Conditions that a prompt gives; None is left out of the prompt.

    Attributes:
        formula: formula in the style of the prompts.
        elements: symbols of the distinct elements, by electronegativity.
        formation_energy_per_atom: formation energy in eV per atom.
        band_gap: band gap in eV.
        e_above_hull: energy above the convex hull in eV per atom.
        space_group_number: number of the space group, 1 to 230.
        own: values of the configuration's own properties, by name.
    """

    formula: str | None = None
    elements: tuple[str, ...] | None = None
    formation_energy_per_atom: float | None = None
    band_gap: float | None = None
    e_above_hull: float | None = None
    space_group_number: int | None = None
    own: tuple[tuple[str, float | str], ...] = ()

    def given(self) -> tuple[str, ...]:
        """Return the names of the conditions that are not None."""
        known = [name for name in CONDITIONS if getattr(self, name) is not None]
        return (*known, *(name for name, _ in self.own))

    def only(self, names: Sequence[str]) -> "Conditions":
        """Return only the named conditions."""
        known = {name: getattr(self, name) for name in CONDITIONS if name in names}
        return Conditions(**known, own=tuple(one for one in self.own if one[0] in names))

    def words(self, name: str) -> str:
        """Return the text of one condition in a prompt.

        Energies have three decimal places, and own numbers four significant digits.
        """
        own = dict(self.own)
        if name in own:
            return f"{own[name]:.4g}" if isinstance(own[name], float) else str(own[name])
        value = getattr(self, name)
        if isinstance(value, tuple):
            return ", ".join(value)
        # Adding zero changes -0.0, also as a result of rounding, to 0.0.
        return f"{round(value, 3) + 0.0:.3f}" if isinstance(value, float) else str(value)


UNCONDITIONAL = Conditions()
"""Conditions of a prompt without any condition."""


def conditions_of(prompts: Prompts, row: Mapping[str, Any]) -> Conditions:
    """Return all known conditions of a crystal.

    Args:
        prompts: configured prompts, for the style of the formula.
        row: row of `schemas.CRYSTALS`, or of `schemas.CRYSTALS_WITH_PROPERTIES`.
    """
    numbers = np.asarray(row["atomic_numbers"])
    names = Composition(cell_formula(numbers)).as_dict()
    known = {name: row.get(name) for name in CONDITIONS[2:]}
    values = {**dict(row.get("numbers") or ()), **dict(row.get("labels") or ())}
    own = tuple((name, values[name]) for name in prompts.properties if name in values)
    return Conditions(prompt_formula(prompts, numbers), tuple(names), **known, own=own)


def prompt_text(prompts: Prompts, conditions: Conditions) -> str:
    """Return the prompt as text; it ends with the line break after which the answer starts.

    Args:
        prompts: configured sentences.
        conditions: conditions; only the sentences of conditions that are not None are used.
    """
    sentences = [prompts.introduction]
    configured = prompts.sentences
    for name in conditions.given():
        sentence = configured[name]
        sentences.append(sentence.replace(f"{{{name}}}", conditions.words(name)))
    return f"{' '.join(sentences)}\n{prompts.instruction}\n"


def infill_text(prompts: Prompts, crystal: Description, atomic_number: int) -> str:
    """Return the prompt that asks for one hidden element of a crystal; its symbol is the answer.

    Args:
        prompts: configured sentences and the word that replaces the symbol.
        crystal: lines of the crystal.
        atomic_number: atomic number of the element, which is hidden in all its atoms.
    """
    question = prompts.infill.replace("{mask}", prompts.mask)
    text = crystal.hidden(atomic_number, prompts.mask).text
    return f"{prompts.introduction} {question}\n{text}\n"


def prompt_formula(prompts: Prompts, atomic_numbers: np.ndarray) -> str:
    """Return a cell's formula in the style of the prompts.

    The style atoms gives `Na Na Cl Cl` (in the order of the text), the style cell `Na2Cl2`, and the
    style reduced `NaCl`.
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
        prompts: configured prompts.
        crystal_text: the configured kind of crystal text.
        name: name of the tokenizer or the folder that it was loaded from.
        end_token_id: token that ends an answer.
        prompt: function that returns the tokens of the prompt with given `Conditions`.
        line_breaks: function that returns how many line breaks a token has, and whether it ends
            with one.
    """

    def __init__(self, prompts: Prompts, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check the tokenizer.

        Args:
            prompts: configured prompts.
            tokenizer: tokenizer of the model.

        Raises:
            FlowllmError: the tokenizer has no end token.
        """
        if tokenizer.eos_token_id is None:
            raise FlowllmError(
                f"{tokenizer.name_or_path}: its tokenizer has no end token. Set eos_token in "
                "tokenizer_config.json."
            )
        self.prompts = prompts
        self.crystal_text = crystal_text(prompts.crystal_text)
        self.name: str = tokenizer.name_or_path or "the base model"
        self.end_token_id: int = tokenizer.eos_token_id
        self._tokenizer = tokenizer
        self._line_break = self._ids("\n")
        self.prompt = lru_cache(CACHED_PROMPTS)(self._prompt)
        self.line_breaks = cache(self._line_breaks)

    def _prompt(self, conditions: Conditions) -> tuple[int, ...]:
        """Return the tokens of a prompt; used through the cache `prompt`."""
        return self._with_start(prompt_text(self.prompts, conditions))

    def _line_breaks(self, token: int) -> tuple[int, bool]:
        """Count the line breaks of a token; used through the cache `line_breaks`."""
        text = self.decode([token])
        return text.count("\n"), text.endswith("\n")

    def _with_start(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a prompt with the tokenizer's start token, if any (Llama: <s>)."""
        ids = self._tokenizer(text)["input_ids"]
        # Some tokenizers append the end token to every text, but the answer follows the prompt.
        return tuple(ids[:-1] if ids[-1] == self.end_token_id else ids)

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the tokens of an answer and the end token.

        SentencePiece (Llama-2) inserts a space before every text. Since the answer follows a line
        break, it is tokenized together with a preceding line break, which is then removed.
        """
        with_break = self._ids("\n" + text)
        count = len(self._line_break)
        joined = with_break[:count] == self._line_break
        ids = with_break[count:] if joined else self._ids(text)
        return (*ids, self.end_token_id)

    def example(self, conditions: Conditions, text: str) -> Example:
        """Return one training text: prompt, answer and end token."""
        prompt = self.prompt(conditions)
        return Example((*prompt, *self.answer(text)), len(prompt))

    def infilling(self, crystal: Description, atomic_number: int) -> Example:
        """Return a training text that asks for one hidden element; its symbol is the answer."""
        prompt = self._with_start(infill_text(self.prompts, crystal, atomic_number))
        return Example((*prompt, *self.answer(element_symbol(atomic_number))), len(prompt))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of sampled tokens without the end token and other special tokens."""
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def most_answer_tokens(self, elements: Sequence[int], max_atoms: int) -> int:
        """Return an upper bound of the number of tokens of a crystal text, end token included.

        Args:
            elements: atomic numbers that may occur.
            max_atoms: maximum number of atoms.
        """
        longest = max(len(self._ids(site)) for site in self.crystal_text.longest_sites(elements))
        return len(self._ids(self.crystal_text.longest_header())) + max_atoms * longest + 1

    def answer_tokens(self) -> tuple[int, ...]:
        """Return the tokens that can occur in crystal texts, and the end token, in ascending order.

        They come from texts with every element and number that a crystal text can have, so that
        tokens of several digits are included if the tokenizer has them.
        """
        text = self.crystal_text.every_line()
        # Single characters are included, since a model may spell what the tokenizer joins.
        return tuple(sorted({token for part in (text, *set(text)) for token in self.answer(part)}))

    def answer_texts(self) -> dict[int, str]:
        """Return the text of each of `answer_tokens`; that of the end token is a line break.

        Each token follows a line break, since SentencePiece (Llama-2) removes the first space of a
        text.
        """
        before = self.decode(self._line_break)
        texts = {
            t: self.decode([*self._line_break, t])[len(before) :] for t in self.answer_tokens()
        }
        return texts | {self.end_token_id: "\n"}

    def _ids(self, text: str) -> list[int]:
        """Return the tokens of a text without special tokens."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def splits_digits(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer splits numbers into single digits.

    Numbers that are split at varying places (1|23|4) are harder to learn. The tokenizer of the
    paper's base model splits them into digits.
    """
    ids = tokenizer("1234567890", add_special_tokens=False)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    return all(sum(character.isdigit() for character in piece) <= 1 for piece in pieces)
