"""Arrow schemas of the potential's hull: its entries with their crystals, and second energies."""

from collections.abc import Collection

import pyarrow as pa

from flowllm.io import schemas

CRYSTAL = ("atomic_numbers", "frac_coords", "lengths", "angles")
"""Columns of a crystal."""

POTENTIAL_ENTRIES = pa.schema(
    [*schemas.HULL_ENTRIES, *(schemas.RELAXED.field(name) for name in CRYSTAL)]
)
"""hull/potential.parquet: with the relaxed crystals, null in entries of a file."""


def has_crystals(columns: Collection[str]) -> bool:
    """Return whether a hull with these columns has the relaxed crystals of its entries."""
    return {*CRYSTAL} <= {*columns}


SECOND_ENERGIES = pa.schema(
    [
        schemas.RELAXED.field("id"),
        pa.field("check_potential", pa.string(), False, {"meaning": "potential.check"}),
        pa.field("check_energy_per_atom", pa.float64(), True, {"meaning": "eV/atom, by it"}),
    ]
)
"""second_energies/{crystals}.parquet: the relaxed crystals of a method, or the entries of the hull
(hull.parquet), in their order."""
