"""Training texts of the language model, and the order in which they are seen.

All of it follows from the seed, the epoch and the row, so a resumed run sees what an undisturbed
one sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowllm.config.sections.llm import FinetuneLlm
from flowllm.crystal import Crystal
from flowllm.io.tables import crystal_of
from flowllm.llm.prompts import (
    UNCONDITIONAL,
    Conditions,
    Example,
    PromptTokens,
    conditions_of,
    prompt_formula,
)
from flowllm.llm.text import encode
from flowllm.llm.transformations import permuted, translated
from flowllm.seeds import generator

IGNORED = -100
"""Label of a token that the loss leaves out; torch's own convention."""

GROUPED_BATCHES = 50
"""Batches within which texts are sorted by length: enough to pad little, few enough to mix."""


@dataclass(frozen=True)
class MicroBatch:
    """Padded texts that go through the model at once.

    Attributes:
        input_ids: int64 (b, t).
        labels: int64 (b, t), the tokens that count in the loss, IGNORED elsewhere.
    """

    input_ids: Tensor
    labels: Tensor

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss; nothing predicts a text's first token."""
        return int((self.labels[:, 1:] != IGNORED).sum())


class TrainingTexts:
    """The crystals of one split as examples.

    Attributes:
        too_long: rows left out since prompt and crystal need more than `max_tokens` tokens.
        longest: tokens of the longest text that these shares allow, of the rows that are left.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        prompts: PromptTokens,
        *,
        max_tokens: int,
        infill_share: float,
        formula_share: float,
        properties_share: float,
        translate: bool,
        permute: bool,
        key: tuple[int, str],
    ) -> None:
        """Encode the crystals.

        Args:
            rows: rows of `schemas.CRYSTALS`.
            prompts: prompts as tokens.
            max_tokens: the most tokens of a text.
            infill_share: share of examples that ask for one hidden element of the crystal.
            formula_share: share of examples whose prompt gives the formula alone.
            properties_share: share whose prompt gives some of all that is known of the crystal.
            translate: whether each crystal is moved as a whole, anew every epoch.
            permute: whether its atoms are put into another order, anew every epoch.
            key: the seed, and a name for these texts.
        """
        self._prompts = prompts
        self._infill_share = infill_share
        self._formula_share, self._properties_share = formula_share, properties_share
        self._translate, self._permute = translate, permute
        self._seed, self._name = key
        self._rows: list[tuple[int, Conditions, Crystal]] = []
        self.too_long = self.longest = 0
        for number, row in enumerate(rows):
            crystal = crystal_of(row)
            assert isinstance(crystal, Crystal)
            known = conditions_of(prompts.prompts, row)
            tokens = self._most_tokens(known, crystal)
            if tokens > max_tokens:
                self.too_long += 1
            else:
                self.longest = max(self.longest, tokens)
                self._rows.append((number, known, crystal))

    def __len__(self) -> int:
        return len(self._rows)

    def epoch(self, epoch: int) -> list[Example]:
        """Return one example a row; its task and what its prompt gives are drawn every epoch."""
        draws = generator(self._seed, "finetune_llm", self._name, "conditions", epoch)
        return [
            self._example(known, self._augmented(crystal, number, epoch), draws)
            for number, known, crystal in self._rows
        ]

    def _example(self, known: Conditions, crystal: Crystal, draws: np.random.Generator) -> Example:
        if draws.random() < self._infill_share:
            hidden = draws.choice(np.unique(crystal.atomic_numbers))
            return self._prompts.infilling(crystal, int(hidden))
        # Its atoms may have got another order, which a formula atom by atom shows.
        formula = prompt_formula(self._prompts.prompts, crystal.atomic_numbers)
        conditions = self._draw(replace(known, formula=formula), draws)
        return self._prompts.example(conditions, encode(crystal))

    def _most_tokens(self, known: Conditions, crystal: Crystal) -> int:
        """Tokens of the longest example of a crystal that these shares allow."""
        longest = known if self._properties_share else known.only(["formula"])
        examples = [self._prompts.example(longest, encode(crystal))]
        if self._infill_share:
            hidden = np.unique(crystal.atomic_numbers).tolist()
            examples += [self._prompts.infilling(crystal, z) for z in hidden]
        return max(len(example.tokens) for example in examples)

    def _augmented(self, crystal: Crystal, number: int, epoch: int) -> Crystal:
        """Describe a crystal in the way that its row's number and the epoch draw."""
        if not (self._translate or self._permute):
            return crystal
        rng = generator(self._seed, "finetune_llm", self._name, "augmentation", epoch, number)
        if self._translate:
            crystal = translated(crystal, rng)
        return permuted(crystal, rng) if self._permute else crystal

    def _draw(self, known: Conditions, draws: np.random.Generator) -> Conditions:
        """Draw the formula alone, a choice of one to all that is known, or nothing."""
        kind, names = draws.random() * (1 - self._infill_share), known.given()
        if kind < self._formula_share:
            return known.only(["formula"])
        if kind < self._formula_share + self._properties_share:
            count = draws.integers(1, len(names), endpoint=True)
            return known.only(draws.choice(names, count, replace=False).tolist())
        return UNCONDITIONAL


def texts_of(
    split: str,
    rows: Sequence[Mapping[str, Any]],
    prompts: PromptTokens,
    section: FinetuneLlm,
    seed: int,
) -> TrainingTexts:
    """Return the texts that the fine-tuning makes of a split.

    Args:
        split: train or val; validation crystals stay as they are, so that the losses of all
            choices compare.
        rows: rows of `schemas.CRYSTALS`.
        prompts: prompts as tokens.
        section: shares, augmentation and the longest text.
        seed: the configuration's.
    """
    augmented = split == "train"
    return TrainingTexts(
        rows,
        prompts,
        max_tokens=section.max_tokens,
        infill_share=section.infill_share,
        formula_share=section.formula_share,
        properties_share=section.properties_share,
        translate=augmented and section.augment_translation,
        permute=augmented and section.augment_permutation,
        key=(seed, split),
    )


def lengths_of(examples: Sequence[Example]) -> list[int]:
    """Return the number of tokens of each text."""
    return [len(example.tokens) for example in examples]


def order_of_epoch(lengths: Sequence[int], batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a shuffled order in which neighbouring texts, and so batches, have similar lengths.

    A random order is cut into stretches of some batches; each is sorted by length, with its
    batches in random order again. An incomplete last batch is left to another epoch's order.

    Args:
        lengths: tokens of each text.
        batch_size: texts a batch; at most the number of texts.
        rng: source of the order.

    Returns:
        Indices of the texts, int64 (batches, batch_size).
    """
    num_batches = len(lengths) // batch_size
    order = rng.permutation(len(lengths))[: num_batches * batch_size]
    tokens = np.asarray(lengths)
    batches = []
    for start in range(0, order.size, GROUPED_BATCHES * batch_size):
        stretch = order[start : start + GROUPED_BATCHES * batch_size]
        ascending = stretch[np.argsort(tokens[stretch], kind="stable")]
        batches.append(ascending.reshape(-1, batch_size))
    return rng.permutation(np.concatenate(batches))


def padding_share(batches: np.ndarray, lengths: Sequence[int], micro_batch_size: int) -> float:
    """Share of padding among all tokens that go through the model."""
    tokens = np.asarray(lengths)[batches]
    parts = np.split(tokens, range(micro_batch_size, tokens.shape[1], micro_batch_size), axis=1)
    padded = sum((part.max(axis=1) * part.shape[1]).sum() for part in parts)
    return float(1 - tokens.sum() / padded)


def micro_batches(
    examples: Sequence[Example], size: int, loss_on_prompt: bool, pad_token_id: int
) -> list[MicroBatch]:
    """Pad examples of similar length together, `size` at once; see `collate`."""
    by_length = sorted(examples, key=lambda example: len(example.tokens))
    return [
        collate(by_length[start : start + size], loss_on_prompt, pad_token_id)
        for start in range(0, len(by_length), size)
    ]


def collate(examples: Sequence[Example], loss_on_prompt: bool, pad_token_id: int) -> MicroBatch:
    """Pad examples on the right to the longest of them.

    The padding is a token that exists already, behind what a causal model's tokens see and left
    out of the loss by its label, so that the vocabulary stays as it was and an end token of an
    answer counts.

    Args:
        examples: prompts with answers.
        loss_on_prompt: whether the prompt's tokens count in the loss too.
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
