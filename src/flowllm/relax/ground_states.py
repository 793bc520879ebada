"""Ground states of the elements, the corners of a potential's convex hull."""

from dataclasses import dataclass
from pathlib import Path

import yaml
from pymatgen.core import Element

from flowllm.crystal import Crystal

_FILE = Path(__file__).with_name("ground_states.yaml")


@dataclass(frozen=True)
class GroundState:
    """The crystal of lowest DFT energy of an element.

    Attributes:
        entry_id: id in the Materials Project.
        crystal: primitive cell.
    """

    entry_id: str
    crystal: Crystal


def ground_states() -> dict[str, GroundState]:
    """Return the ground states by element symbol, in the order of the atomic numbers."""
    given = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {
        symbol: GroundState(
            entry_id=one["entry_id"],
            crystal=Crystal.from_arrays(
                [Element(symbol).Z] * len(one["frac_coords"]),
                one["frac_coords"],
                one["lengths"],
                one["angles"],
            ),
        )
        for symbol, one in given.items()
    }
