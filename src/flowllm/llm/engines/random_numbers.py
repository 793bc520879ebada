"""Random numbers of all texts of a batch, on the device of the logits.

A text's numbers are copied to the device once, when it joins the batch. A step copies the texts'
lengths as one tensor and indexes the numbers there, so that the number of transfers per step does
not depend on the number of texts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowllm.llm.engines.top_p import uniforms_of


class RandomNumbers:
    """The random numbers of the texts of a batch, in rows that are used again."""

    def __init__(self, max_tokens: int, device: torch.device) -> None:
        """Start without texts.

        Args:
            max_tokens: maximum number of tokens of a text.
            device: device of the logits.
        """
        self._numbers = torch.zeros(0, max_tokens, dtype=torch.float64, device=device)
        self._free: list[int] = []
        self._new: dict[int, int] = {}

    def add(self, seed: int) -> int:
        """Return the row of a new text's numbers, which are those of `uniforms_of`."""
        if not self._free:
            self._enlarge()
        row = self._free.pop()
        self._new[row] = seed
        return row

    def keep(self, rows: Sequence[int]) -> None:
        """Free all rows except those of the texts that are still in the batch."""
        free = set(range(len(self._numbers))) - set(rows)
        self._free = sorted(free, reverse=True)
        for row in free:
            self._new.pop(row, None)

    def take(self, rows: Tensor, positions: Sequence[int]) -> Tensor:
        """Return one number per text, float64 (b,).

        Args:
            rows: rows of the texts, int64 (b,), on the device.
            positions: number of the token of each text, from 0.
        """
        self._copy_new()
        return self._numbers[rows, on_device(positions, self._numbers.device)]

    def _copy_new(self) -> None:
        """Copy the numbers of the texts that were added since the last call to the device."""
        if self._new:
            numbers = [uniforms_of(seed, self._numbers.shape[1]) for seed in self._new.values()]
            rows = on_device(list(self._new), self._numbers.device)
            self._numbers[rows] = torch.stack(numbers).to(self._numbers.device)
            self._new = {}

    def _enlarge(self) -> None:
        """Double the number of rows."""
        count = len(self._numbers)
        more = self._numbers.new_zeros(max(count, 64), self._numbers.shape[1])
        self._numbers = torch.cat([self._numbers, more])
        self._free = list(reversed(range(count, len(self._numbers))))


def on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Copy integers to a device, int64 (n,); a GPU copies them while the program continues."""
    made = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return made.to(device, non_blocking=True)
