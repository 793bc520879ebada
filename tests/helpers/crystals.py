"""Textbook crystals built in code, and the real MP-20 rows that lie beside the repository."""

import csv
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from pymatgen.core import Composition, Lattice, Structure

from flowllm.crystal import Crystal

MP_20_SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "mp_20_sample"


def rocksalt(cation: str = "Na", anion: str = "Cl", a: float = 5.64) -> Crystal:
    """Rock salt: primitive cell, 2 atoms; a is the cubic lattice constant in angstrom."""
    lattice = Lattice([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]])
    return Crystal.from_structure(Structure(lattice, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]))


def caesium_chloride(cation: str = "Cs", anion: str = "Cl", a: float = 4.12) -> Crystal:
    """Caesium chloride: cubic cell, 2 atoms."""
    lattice = Lattice.cubic(a)
    return Crystal.from_structure(Structure(lattice, [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]]))


def perovskite(a_site: str = "Sr", b_site: str = "Ti", anion: str = "O", a: float = 3.9) -> Crystal:
    """Cubic perovskite: 5 atoms."""
    coords = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Crystal.from_structure(
        Structure(Lattice.cubic(a), [a_site, b_site, anion, anion, anion], coords)
    )


def fcc(element: str = "Cu", a: float = 3.61) -> Crystal:
    """Face-centred cubic metal: primitive cell, 1 atom."""
    edge = a / np.sqrt(2)
    return Crystal.from_arrays([_number(element)], [[0, 0, 0]], [edge] * 3, [60, 60, 60])


def rattled(crystal: Crystal, distance: float, seed: int) -> Crystal:
    """The crystal with each atom moved by `distance` in a random direction."""
    structure = crystal.to_structure()
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(len(structure), 3))
    steps *= distance / np.linalg.norm(steps, axis=1, keepdims=True)
    cart_coords = structure.cart_coords + steps
    frac_coords = structure.lattice.get_fractional_coords(cart_coords)
    return Crystal.from_arrays(crystal.atomic_numbers, frac_coords, crystal.lengths, crystal.angles)


def translated_and_permuted(crystal: Crystal, seed: int) -> Crystal:
    """The same crystal with another origin and another order of its atoms."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(crystal.num_atoms)
    return Crystal.from_arrays(
        crystal.atomic_numbers[order],
        crystal.frac_coords[order] + rng.random(3),
        crystal.lengths,
        crystal.angles,
    )


def supercell(crystal: Crystal, scaling: tuple[int, int, int] = (2, 1, 1)) -> Crystal:
    """The same crystal in a larger cell."""
    structure = crystal.to_structure()
    structure.make_supercell(scaling)
    return Crystal.from_structure(structure)


def small_mp_20_sample(split: str, count: int, max_atoms: int = 5) -> dict[str, Crystal]:
    """The first small cells of a split of the real MP-20 sample, for what is slow on large ones."""
    crystals = mp_20_sample(split, 20 * count)
    small = [name for name, crystal in crystals.items() if crystal.num_atoms <= max_atoms]
    assert len(small) >= count
    return {name: crystals[name] for name in small[:count]}


def mp_20_sample(split: str, count: int) -> dict[str, Crystal]:
    """The first rows of a split of the real MP-20 sample by material_id.

    Where the sample is missing, as in CI, these are up to `count` of the crystals that pymatgen
    ships; no two splits share one.
    """
    path = MP_20_SAMPLE / f"{split}.csv"
    if not path.exists():
        first = ("train", "val", "test").index(split)
        return dict(islice(list(shipped_crystals().items())[first::3], count))
    with path.open(newline="") as handle:
        rows = list(islice(csv.DictReader(handle), count))
    return {
        row["material_id"]: Crystal.from_structure(Structure.from_str(row["cif"], fmt="cif"))
        for row in rows
    }


@cache
def shipped_crystals() -> dict[str, Crystal]:
    """Primitive, Niggli-reduced AFLOW prototypes of MP-20's size: 20 atoms, elements to plutonium.

    One prototype beyond it is californium, for which CrystalNN has no radius.
    """
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    found = {}
    for number, entry in enumerate(AFLOW_PROTOTYPE_LIBRARY):
        structure = entry["snl"].structure
        if structure.is_ordered and len(structure) <= 20 and max(structure.atomic_numbers) <= 94:
            reduced = structure.get_primitive_structure().get_reduced_structure()
            found[f"aflow-{number:03d}"] = Crystal.from_structure(reduced)
    return found


def _number(symbol: str) -> int:
    from pymatgen.core import Element

    return Element(symbol).Z


def skutterudite(cation: str, anion: str, a: float = 9.04) -> Structure:
    """The primitive cell of Im-3, with the cation at 8c and the anion at 24g."""
    coords = [[0.25, 0.25, 0.25], [0, 0.335, 0.158]]
    whole = Structure.from_spacegroup("Im-3", Lattice.cubic(a), [cation, anion], coords)
    return whole.get_primitive_structure()


def spread(formula: str) -> Structure:
    """A structure of a formula whose atoms are 3.5 angstrom apart, so without any O-O or S-S."""
    symbols = [
        symbol
        for symbol, number in Composition(formula).get_el_amt_dict().items()
        for _ in range(int(number))
    ]
    side = next(n for n in range(1, 9) if n**3 >= len(symbols))
    grid = [
        [x / side, y / side, z / side]
        for x in range(side)
        for y in range(side)
        for z in range(side)
    ]
    return Structure(Lattice.cubic(3.5 * side), symbols, grid[: len(symbols)])
