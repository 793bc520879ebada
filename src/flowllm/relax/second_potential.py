"""A second potential that evaluates relaxed crystals once more, without moving them."""

from collections.abc import Sequence

import torch

from flowllm.crystal import Crystal
from flowllm.relax.models import LABELS, load_potential
from flowllm.relax.relaxer import relax
from flowllm.runtime.log import log


class SecondPotential:
    """A potential as a judge of another one.

    Attributes:
        label: name of the potential with its version.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Load the potential.

        Args:
            name: name in the configuration.
            device: device of the potential.

        Raises:
            FlowllmError: the potential cannot be loaded.
        """
        self.label = LABELS[name]
        self._loaded = load_potential(name, device, "potential.check")

    def energies(self, crystals: Sequence[Crystal | None]) -> list[float | None]:
        """Return the energies of crystals in eV per atom, None where there is no crystal or energy.

        The log has the number of crystals without an energy, and the first reason.
        """
        found: list[float | None] = [None] * len(crystals)
        present = {place: one for place, one in enumerate(crystals) if one is not None}
        infinite = float("inf")
        results = relax(
            self._loaded,
            list(present.values()),
            max_force=infinite,
            max_steps=0,
            max_seconds=infinite,
        )
        for place, result in zip(present, results, strict=True):
            found[place] = result.final_energy_per_atom
        failures = [one.failure for one in results if one.failure is not None]
        if failures:
            log.warning(
                "potential.check: %s gives no energy for %d of %d relaxed crystals (first: %s)",
                self.label,
                len(failures),
                len(present),
                failures[0].detail,
            )
        return found
