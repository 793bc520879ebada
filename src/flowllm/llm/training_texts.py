"""Training texts of the language model, and their order.

Both follow from the seed, the epoch and the row, so that a resumed run uses the same texts as an
uninterrupted one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowllm.config.sections.llm import FinetuneLlm
from flowllm.crystal import Crystal
from flowllm.io.tables import required_crystal
from flowllm.llm.crystal_text import Description
from flowllm.llm.prompts import (
    UNCONDITIONAL,
    Conditions,
    Example,
    PromptTokens,
    conditions_of,
    prompt_formula,
)
from flowllm.llm.transformations import translated
from flowllm.seeds import generator

IGNORED = -100
"""Label of a token that does not count in the loss; torch's own convention."""

GROUPED_BATCHES = 50
"""Number of batches within which texts are sorted by length.

More batches reduce the padding further, but shuffle the texts less."""


@dataclass(frozen=True)
class MicroBatch:
    """Padded texts that are evaluated together, in main memory.

    Attributes:
        input_ids: int64 (b, t), tokens.
        labels: int64 (b, t), the tokens that count in the loss, `IGNORED` elsewhere.
    """

    input_ids: Tensor
    labels: Tensor

    @property
    def num_targets(self) -> int:
        """Number of tokens that count in the loss; the first token of a text is not predicted."""
        return int(np.count_nonzero(self.labels[:, 1:].numpy() != IGNORED))


class TrainingTexts:
    """The crystals of one split as training texts.

    Attributes:
        too_long: number of rows left out because prompt and crystal exceed `max_tokens`.
        longest: tokens of the longest text that the remaining rows can have with these shares.
        longest_vector: longest lattice vector that the text of a row has, angstrom.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        path: Path,
        prompts: PromptTokens,
        *,
        max_tokens: int,
        infill_share: float,
        formula_share: float,
        properties_share: float,
        translate: bool,
        permute: bool,
        seed: int,
        split: str,
    ) -> None:
        """Read the crystals and leave out those whose texts are too long.

        Args:
            rows: rows of `schemas.CRYSTALS`.
            path: file of the rows, for messages.
            prompts: the prompts and the tokenizer.
            max_tokens: maximum number of tokens per text.
            infill_share: fraction of texts that ask for one hidden element of the crystal.
            formula_share: fraction of texts whose prompt gives only the formula.
            properties_share: fraction of texts whose prompt gives a random choice of the known
                conditions.
            translate: whether each crystal is translated, by another vector in every epoch.
            permute: whether its sites are reordered, differently in every epoch.
            seed: seed of the configuration.
            split: name of the split, which selects the random numbers.

        Raises:
            FlowllmError: a row has no crystal, or its crystal has no text.
        """
        self._prompts = prompts
        self._infill_share = infill_share
        self._formula_share, self._properties_share = formula_share, properties_share
        self._translate, self._permute = translate, permute
        self._seed, self._split = seed, split
        self._rows: list[tuple[int, Conditions, Crystal, Description]] = []
        self.too_long = self.longest = 0
        self.longest_vector = 0.0
        for number, row in enumerate(rows):
            crystal = required_crystal(row, path)
            known = conditions_of(prompts.prompts, row)
            description = prompts.crystal_text.describe(crystal)
            self.longest_vector = max(self.longest_vector, description.longest)
            tokens = self._most_tokens(known, description)
            if tokens > max_tokens:
                self.too_long += 1
            else:
                self.longest = max(self.longest, tokens)
                self._rows.append((number, known, crystal, description))

    def __len__(self) -> int:
        """Return the number of rows that are not too long."""
        return len(self._rows)

    def epoch(self, epoch: int) -> list[Example]:
        """Return one text per row; its task and its conditions are drawn again in every epoch."""
        rng = generator(self._seed, "finetune_llm", self._split, "conditions", epoch)
        return [
            self._example(known, self._augmented(crystal, description, number, epoch), rng)
            for number, known, crystal, description in self._rows
        ]

    def _example(
        self, known: Conditions, crystal: Description, rng: np.random.Generator
    ) -> Example:
        """Draw the task and the conditions of one text."""
        if rng.random() < self._infill_share:
            hidden = rng.choice(np.unique(crystal.atomic_numbers))
            return self._prompts.infilling(crystal, int(hidden))
        # The augmentation may have reordered the atoms, which changes a formula atom by atom.
        formula = prompt_formula(self._prompts.prompts, crystal.atomic_numbers)
        conditions = self._draw_conditions(replace(known, formula=formula), rng)
        return self._prompts.example(conditions, crystal.text)

    def _most_tokens(self, known: Conditions, crystal: Description) -> int:
        """Return the number of tokens of a crystal's longest possible text with these shares."""
        longest = known if self._properties_share else known.only(["formula"])
        examples = [self._prompts.example(longest, crystal.text)]
        if self._infill_share:
            hidden = np.unique(crystal.atomic_numbers).tolist()
            examples += [self._prompts.infilling(crystal, z) for z in hidden]
        return max(len(example.tokens) for example in examples)

    def _augmented(
        self, crystal: Crystal, description: Description, number: int, epoch: int
    ) -> Description:
        """Translate and reorder a crystal as drawn for the number of its row and the epoch."""
        if not (self._translate or self._permute):
            return description
        rng = generator(self._seed, "finetune_llm", self._split, "augmentation", epoch, number)
        if self._translate:
            description = self._prompts.crystal_text.describe(translated(crystal, rng))
        return description.shuffled(rng) if self._permute else description

    def _draw_conditions(self, known: Conditions, rng: np.random.Generator) -> Conditions:
        """Draw only the formula, a random non-empty choice of the known conditions, or none."""
        uniform, names = rng.random() * (1 - self._infill_share), known.given()
        if uniform < self._formula_share:
            return known.only(["formula"])
        if uniform < self._formula_share + self._properties_share:
            count = rng.integers(1, len(names), endpoint=True)
            return known.only(rng.choice(names, count, replace=False).tolist())
        return UNCONDITIONAL


def texts_of(
    split: str,
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    prompts: PromptTokens,
    section: FinetuneLlm,
    seed: int,
) -> TrainingTexts:
    """Return the texts of a split as the fine-tuning uses them.

    Args:
        split: train or val. Validation crystals are not augmented, so that validation losses with
            and without augmentation can be compared.
        rows: rows of `schemas.CRYSTALS`.
        path: file of the rows, for messages.
        prompts: the prompts and the tokenizer.
        section: fractions of the tasks, augmentation and maximum length of a text.
        seed: seed of the configuration.

    Raises:
        FlowllmError: a row has no crystal.
    """
    augmented = split == "train"
    return TrainingTexts(
        rows,
        path,
        prompts,
        max_tokens=section.max_tokens,
        infill_share=section.infill_share,
        formula_share=section.formula_share,
        properties_share=section.properties_share,
        translate=augmented and section.augment_translation,
        permute=augmented and section.augment_permutation,
        seed=seed,
        split=split,
    )


def lengths_of(examples: Sequence[Example]) -> list[int]:
    """Return the number of tokens of each text."""
    return [len(example.tokens) for example in examples]


def order_of_epoch(lengths: Sequence[int], batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random order of texts in which the texts of a batch have similar lengths.

    A random order is divided into groups of `GROUPED_BATCHES` batches. The texts of each group are
    sorted by length and divided into batches; finally, all batches are shuffled. Texts of an
    incomplete last batch are left out of the epoch.

    Args:
        lengths: tokens of each text.
        batch_size: texts per batch; at most the number of texts.
        rng: random number generator.

    Returns:
        Indices of the texts, int64 (batches, batch_size).
    """
    num_batches = len(lengths) // batch_size
    order = rng.permutation(len(lengths))[: num_batches * batch_size]
    tokens = np.asarray(lengths)
    batches = []
    for start in range(0, order.size, GROUPED_BATCHES * batch_size):
        group = order[start : start + GROUPED_BATCHES * batch_size]
        ascending = group[np.argsort(tokens[group], kind="stable")]
        batches.append(ascending.reshape(-1, batch_size))
    return rng.permutation(np.concatenate(batches))


def padding_share(batches: np.ndarray, lengths: Sequence[int], micro_batch_size: int) -> float:
    """Return the fraction of padding among all tokens that are evaluated.

    Args:
        batches: indices of the texts, (batches, batch_size).
        lengths: tokens of each text.
        micro_batch_size: texts that are padded together.
    """
    tokens = np.asarray(lengths)[batches]
    parts = np.split(tokens, range(micro_batch_size, tokens.shape[1], micro_batch_size), axis=1)
    padded = sum((part.max(axis=1) * part.shape[1]).sum() for part in parts)
    return float(1 - tokens.sum() / padded)


def micro_batches(
    examples: Sequence[Example], size: int, loss_on_prompt: bool, pad_token_id: int
) -> list[MicroBatch]:
    """Pad texts of similar length together, `size` texts per micro-batch; see `collate`."""
    by_length = sorted(examples, key=lambda example: len(example.tokens))
    return [
        collate(by_length[start : start + size], loss_on_prompt, pad_token_id)
        for start in range(0, len(by_length), size)
    ]


def collate(examples: Sequence[Example], loss_on_prompt: bool, pad_token_id: int) -> MicroBatch:
    """Pad texts on the right to the length of the longest.

    Any token can be used for padding: it follows the text, where a causal model's tokens do not
    depend on it, and its label excludes it from the loss. The vocabulary therefore needs no extra
    token, and the end token of an answer counts in the loss even if it is also used for padding.

    Args:
        examples: prompts with answers.
        loss_on_prompt: whether the tokens of the prompt count in the loss.
        pad_token_id: any token.
    """
    shape = (len(examples), max(len(example.tokens) for example in examples))
    input_ids = torch.full(shape, pad_token_id)
    labels = torch.full(shape, IGNORED)
    for i, example in enumerate(examples):
        tokens = torch.tensor(example.tokens)
        first = 0 if loss_on_prompt else example.prompt_length
        input_ids[i, : tokens.numel()] = tokens
        labels[i, first : tokens.numel()] = tokens[first:]
    return MicroBatch(input_ids, labels)
