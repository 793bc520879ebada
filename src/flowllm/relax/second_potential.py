"""A second potential that evaluates relaxed crystals once more, without moving them."""

from collections.abc import Sequence

import torch

from flowllm.relax.models import LABELS, LoadedPotential, load_potential
from flowllm.relax.relaxer import Relaxation, relax
from flowllm.runtime.log import log


class SecondPotential:
    """A potential as a judge of another one; without a name it evaluates nothing.

    Attributes:
        label: name of the potential with its version, None without a potential.
    """

    def __init__(self, name: str | None, device: torch.device) -> None:
        """Load the potential.

        Args:
            name: name in the configuration, or None.
            device: device of the potential.

        Raises:
            FlowllmError: the potential cannot be loaded.
        """
        self.label = None if name is None else LABELS[name]
        self._loaded: LoadedPotential | None = (
            None if name is None else load_potential(name, device, "potential.check")
        )

    def energies(self, relaxed: Sequence[Relaxation]) -> list[float | None]:
        """Return the energies of relaxed crystals in eV per atom, None for those without one."""
        found: list[float | None] = [None] * len(relaxed)
        if self._loaded is None:
            return found
        places = [place for place, one in enumerate(relaxed) if one.crystal is not None]
        crystals = [one.crystal for one in relaxed if one.crystal is not None]
        infinite = float("inf")
        results = relax(
            self._loaded, crystals, max_force=infinite, max_steps=0, max_seconds=infinite
        )
        for place, result in zip(places, results, strict=True):
            found[place] = result.final_energy_per_atom
        failures = [one.failure for one in results if one.failure is not None]
        if failures:
            log.warning(
                "potential.check: %s gives no energy for %d of %d relaxed crystals (first: %s)",
                self.label,
                len(failures),
                len(crystals),
                failures[0].detail,
            )
        return found
