"""Arrow schemas of the potential's hull: its entries with their crystals, and second energies."""

import pyarrow as pa

from flowllm.io.schemas import HULL_ENTRIES, RELAXED

CRYSTAL = ("atomic_numbers", "frac_coords", "lengths", "angles")
"""Columns of a crystal."""

POTENTIAL_ENTRIES = pa.schema([*HULL_ENTRIES, *(RELAXED.field(name) for name in CRYSTAL)])
"""hull/potential.parquet: with the relaxed crystals, null in entries of a file."""


SECOND_ENERGIES = pa.schema(
    [
        RELAXED.field("id"),
        pa.field("check_potential", pa.string(), False, {"meaning": "potential.check"}),
        pa.field("check_energy_per_atom", pa.float64(), True, {"meaning": "eV/atom, by it"}),
    ]
)
"""second_energies/{method}.parquet, of the relaxed crystals, and second_energies/hull.parquet, of
the hull's entries; the same ids in the same order."""
