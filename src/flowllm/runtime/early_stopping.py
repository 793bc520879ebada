"""Best weights of a training and early stopping, for every training loop."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class BestWeights:
    """Weights of the lowest validation loss so far, and the criterion of early stopping.

    Attributes:
        patience: validations without gain after which training stops, None for never.
        step: step of the lowest validation loss, 0 before the first validation.
        loss: that loss.
        evaluations_without_gain: validations since then.
        weights: tensors by name, of that step.
    """

    patience: int | None
    step: int = 0
    loss: float = math.inf
    evaluations_without_gain: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def update(self, step: int, loss: float, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Record a validation loss, and copy the weights if it is the lowest so far.

        Args:
            step: training step of the validation.
            loss: validation loss, finite.
            weights: returns the present weights; called only if they are copied.
        """
        if not loss < self.loss:  # NaN is no gain
            self.evaluations_without_gain += 1
            return
        self.step, self.loss, self.evaluations_without_gain = step, loss, 0
        self.weights = {name: value.clone() for name, value in weights().items()}

    @property
    def is_patience_over(self) -> bool:
        """Whether training should stop."""
        return self.patience is not None and self.evaluations_without_gain >= self.patience
