"""Kept symmetry: what a crystal's space group leaves as it is, checked by spglib."""

import numpy as np
import pytest
import torch
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from flow_pairs import BOUNDS, prototypes
from flowllm.crystal import Crystal
from flowllm.rfm.manifold import lattice_parameters, lattice_vector
from flowllm.rfm.start import crystal_lattice
from flowllm.rfm.symmetry import TOLERANCE, KeptSymmetry, find_symmetry

CRYSTALS = [crystal for crystal in prototypes() if crystal.num_atoms <= 8]


def symmetry_of(crystal):
    parts = (crystal.frac_coords, crystal.lengths, crystal.angles)
    return find_symmetry(crystal.atomic_numbers, *(part.astype(float) for part in parts))


def kept_by(crystal):
    return KeptSymmetry([symmetry_of(crystal)], BOUNDS, torch.device("cpu"))


def space_group(crystal, tolerance=1e-3):
    return SpacegroupAnalyzer(crystal.to_structure(), tolerance).get_space_group_number()


def is_sharp(crystal):
    return space_group(crystal) == space_group(crystal, TOLERANCE)


def moved(crystal, velocity):
    coords = crystal.frac_coords + velocity
    return Crystal.from_arrays(crystal.atomic_numbers, coords, crystal.lengths, crystal.angles)


@pytest.mark.parametrize("crystal", CRYSTALS, ids=lambda c: f"{c.formula}-{space_group(c)}")
def test_a_kept_velocity_moves_atoms_within_the_space_group(crystal):
    rng = torch.Generator().manual_seed(0)
    velocity = 0.02 * torch.randn(1, crystal.num_atoms, 3, generator=rng)
    velocity -= velocity.mean(dim=1, keepdim=True)
    kept = kept_by(crystal).velocity(velocity)
    torch.testing.assert_close(kept_by(crystal).velocity(kept), kept, atol=1e-6, rtol=0)
    torch.testing.assert_close(kept.mean(dim=1), torch.zeros(1, 3), atol=1e-6, rtol=0)
    after = SpacegroupAnalyzer(moved(crystal, kept[0].numpy()).to_structure(), 1e-3)
    # It may become more symmetric, never less.
    assert len(after.get_symmetry_operations()) >= len(
        SpacegroupAnalyzer(crystal.to_structure(), 1e-3).get_symmetry_operations()
    )


@pytest.mark.parametrize("crystal", CRYSTALS, ids=lambda c: f"{c.formula}-{space_group(c)}")
def test_a_kept_lattice_has_the_symmetry_of_the_first(crystal):
    lattice = torch.from_numpy(crystal_lattice(crystal, BOUNDS))[None]
    kept = kept_by(crystal)
    # A cell within the tolerance of a more symmetric one takes its shape.
    change = kept.lattice(lattice)[:, :3] - lattice[:, :3]
    assert change.abs().max() < (1e-3 if is_sharp(crystal) else TOLERANCE)
    strained = lattice + 0.05 * torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    lengths, angles = (x[0].numpy() for x in lattice_parameters(kept.lattice(strained), BOUNDS))
    after = Crystal.from_arrays(crystal.atomic_numbers, crystal.frac_coords, lengths, angles)
    assert space_group(after) == space_group(crystal, TOLERANCE)


def test_a_crystal_without_symmetry_keeps_its_velocities():
    rng = np.random.default_rng(0)
    crystal = Crystal.from_arrays([3, 8, 9], rng.random((3, 3)), [4, 5, 6.2], [70, 85, 99])
    velocity = torch.randn(1, 3, 3)
    torch.testing.assert_close(kept_by(crystal).velocity(velocity), velocity)
    lattice = lattice_vector(torch.tensor([[4.2, 5, 6]]), torch.tensor([[75.0, 80, 90]]), BOUNDS)
    torch.testing.assert_close(kept_by(crystal).lattice(lattice), lattice, atol=1e-4, rtol=1e-4)


def test_the_rounding_of_text_hides_no_symmetry():
    """A third as 0.33 and a cell of 60 degrees in whole numbers."""
    fluorite = [[0, 0, 0], [0.25, 0.25, 0.25], [0.75, 0.75, 0.75]]
    corundum_like = [[0, 0, 0.0], [0.33, 0.67, 0.25], [0.67, 0.33, 0.75]]
    cubic = Crystal.from_arrays([20, 9, 9], fluorite, [3.9] * 3, [60] * 3)
    hexagonal = Crystal.from_arrays([12, 17, 17], corundum_like, [3.6, 3.6, 5.9], [90, 90, 120])
    velocity = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(2))
    velocity -= velocity.mean(dim=1, keepdim=True)
    torch.testing.assert_close(kept_by(cubic).velocity(velocity), torch.zeros(1, 3, 3))
    along_c = kept_by(hexagonal).velocity(velocity)
    torch.testing.assert_close(along_c[..., :2], torch.zeros(1, 3, 2), atol=1e-6, rtol=0)
    assert along_c[0, 1, 2].abs() > 0.01


def test_where_no_space_group_is_found_all_is_kept():
    """Two atoms in one place, which spglib refuses."""
    crystal = Crystal.from_arrays([11, 11], [[0, 0, 0], [0, 0, 0.005]], [4] * 3, [90] * 3)
    symmetry = symmetry_of(crystal)
    np.testing.assert_array_equal(symmetry.coords, np.eye(6))
    np.testing.assert_array_equal(symmetry.gram, np.eye(9))
