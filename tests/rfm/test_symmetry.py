"""Kept symmetry: starts are moved onto their space group and keep it, checked by spglib."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from flow_pairs import BOUNDS, prototypes
from flowllm.crystal import Crystal
from flowllm.data.cif import crystal_from_cif, niggli_reduced
from flowllm.llm.crystal_text import Limits
from flowllm.llm.symmetric_text import SymmetricText
from flowllm.llm.text import decode, encode
from flowllm.rfm import symmetry
from flowllm.rfm.base_distribution import (
    LlmBaseDistribution,
    RejectedCrystalError,
    StartPoint,
    crystal_lattice,
)
from flowllm.rfm.manifold import lattice_parameters, lattice_vector, target_velocity
from flowllm.rfm.symmetry import KnownSymmetry, Operations, symmetric_start, symmetrize
from flowllm.rfm.symmetry_projection import SymmetryProjection
from flowllm.stages.refine import refine_batch, refinement_input, symmetric_task

CRYSTALS = [crystal for crystal in prototypes() if crystal.num_atoms <= 8]
SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "mp_20_sample" / "train.csv"
SHARP = 1e-3
"""Angstrom; tolerance below the rounding of text, for a space group that is exact."""

HEXAGONAL = {
    186: ("ZnO", Lattice.hexagonal(3.2495, 5.2069), [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.3821]]),
    194: ("Mg", Lattice.hexagonal(3.2094, 5.2108), [[1 / 3, 2 / 3, 0.25]]),
    164: ("CdI2", Lattice.hexagonal(4.244, 6.859), [[0, 0, 0], [1 / 3, 2 / 3, 0.2492]]),
}


def hexagonal(number):
    formula, lattice, coords = HEXAGONAL[number]
    elements = {"ZnO": ["Zn", "O"], "Mg": ["Mg"], "CdI2": ["Cd", "I"]}[formula]
    return Crystal.from_structure(Structure.from_spacegroup(number, lattice, elements, coords))


def hematite():
    """Fe2O3, whose rhombohedral angle of 55 degrees becomes 62.4, 62.4 and 60."""
    lattice = Lattice.hexagonal(5.035, 13.747)
    coords = [[0, 0, 0.3553], [0.3059, 0, 0.25]]
    structure = Structure.from_spacegroup("R-3c", lattice, ["Fe", "O"], coords)
    return Crystal.from_structure(niggli_reduced(structure.get_primitive_structure()))


def written(crystal):
    """Return a crystal after the rounding of text, or None if two atoms coincide in the text."""
    found = decode(encode(crystal), max_atoms=crystal.num_atoms)
    return found if isinstance(found, Crystal) else None


def symmetrized(crystal):
    parts = (crystal.frac_coords, crystal.lengths, crystal.angles)
    found = symmetrize(crystal.atomic_numbers, *(part.astype(float) for part in parts))
    parts = (found.coords, found.lengths, found.angles)
    return Crystal.from_arrays(crystal.atomic_numbers, *parts), found.operations


def kept_by(crystal):
    return SymmetryProjection([symmetrized(crystal)[1]], BOUNDS, torch.device("cpu"))


def space_group(crystal, tolerance=SHARP):
    return SpacegroupAnalyzer(crystal.to_structure(), tolerance).get_space_group_number()


def num_operations(crystal, tolerance=SHARP):
    analyzer = SpacegroupAnalyzer(crystal.to_structure(), tolerance)
    return len(analyzer.get_symmetry_operations())


def distance(crystal, other):
    """Return the largest displacement of an atom or change of a length, without translation."""
    ways = crystal.frac_coords.astype(float) - other.frac_coords
    ways -= ways.round()
    ways -= ways.mean(axis=0)
    furthest = np.linalg.norm(ways @ other.to_structure().lattice.matrix, axis=1).max()
    return max(furthest, np.abs(crystal.lengths - other.lengths).max())


class IdealField:
    """The velocity field from any crystals to the given ones."""

    lattice_mean, bounds = torch.zeros(6), BOUNDS

    def __init__(self, ends):
        self.coords = torch.from_numpy(np.stack([end.frac_coords for end in ends]))
        lattices = [crystal_lattice(end, BOUNDS) for end in ends]
        self.lattices = torch.from_numpy(np.stack(lattices))

    def __call__(self, elements, coords, lattice, time):
        assert elements.shape == coords.shape[:2]
        ways = target_velocity(coords, self.coords, lattice, self.lattices)
        rest = 1 / (1 - time)
        return rest[:, None, None] * ways[0], rest[:, None] * ways[1]


def carried(drafts, ends, keep_symmetry=True, num_steps=25):
    """Refine drafts with the ideal field; return the ends and the operations of each."""
    field, rng = IdealField(ends), np.random.default_rng(0)
    tasks = [
        refinement_input(draft, field, LlmBaseDistribution(0.0, 0.0, 0.0), rng) for draft in drafts
    ]
    if keep_symmetry:
        tasks = [symmetric_task(task, BOUNDS, Counter()) for task in tasks]
    section = SimpleNamespace(keep_symmetry=keep_symmetry, anneal_slope=0.0, integrator="euler")
    frames = refine_batch(tasks, field, section, num_steps, None)
    return frames[-1][1], [task.operations for task in tasks]


@pytest.mark.parametrize("number", HEXAGONAL)
def test_a_written_crystal_gets_its_group_back_and_keeps_it(number):
    """1/3 is written 0.33, so the text has a lower group, which a projection alone would keep."""
    crystal = hexagonal(number)
    draft = written(crystal)
    assert space_group(crystal) == number
    assert space_group(draft) != number
    assert space_group(symmetrized(draft)[0]) == number
    [end], _ = carried([draft], [crystal])
    assert space_group(end) == number
    assert distance(end, crystal) < 1e-5


def check_the_way_of(crystal):
    """Write, symmetrize and refine a crystal; return the distances of draft and end from it.

    Return None if the text has operations that the crystal does not have, because these are kept.
    """
    draft = written(crystal)
    if draft is None:
        return None
    moved, operations = symmetrized(draft)
    assert num_operations(moved) >= operations.order
    [end], [kept] = carried([draft], [crystal])
    assert num_operations(end) >= kept.order
    if not has_operations(crystal, kept):
        return None
    assert distance(end, crystal) < 1e-4
    return distance(draft, crystal), distance(end, crystal)


def has_operations(crystal, operations):
    """Return whether a crystal has the operations on axes and atoms within 1e-4."""
    coords = crystal.frac_coords.astype(float)
    ways = coords @ operations.rotations.transpose(0, 2, 1) - coords[operations.images]
    ways = ways - ways[:, :1]
    cell = crystal.to_structure().lattice.matrix
    gram = cell @ cell.T
    strains = operations.rotations.transpose(0, 2, 1) @ gram @ operations.rotations - gram
    return np.abs(ways - ways.round()).max() < 1e-4 and np.abs(strains).max() < 1e-2


@pytest.mark.parametrize("crystal", prototypes(), ids=lambda c: f"{c.formula}-{space_group(c)}")
def test_no_rounding_of_a_prototypes_text_is_locked_in(crystal):
    check_the_way_of(crystal)


@settings(max_examples=40, deadline=None)
@given(
    crystal=st.sampled_from(CRYSTALS),
    shift=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3),
    order=st.randoms(use_true_random=False),
)
def test_neither_origin_nor_order_of_the_atoms_matters(crystal, shift, order):
    atoms = order.sample(range(crystal.num_atoms), crystal.num_atoms)
    parts = (crystal.atomic_numbers[atoms], crystal.frac_coords[atoms] + np.array(shift))
    check_the_way_of(Crystal.from_arrays(*parts, crystal.lengths, crystal.angles))


def test_no_rounding_of_training_crystals_is_locked_in():
    """The median rounding is 0.026 angstrom, of which 0.014 would remain without the move."""
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE} is not there")
    with SAMPLE.open() as handle:
        rows = [row for row, _ in zip(csv.DictReader(handle), range(100), strict=False)]
    found = [check_the_way_of(crystal_from_cif(row["cif"], "primitive", 20)) for row in rows]
    kept = np.array([pair for pair in found if pair is not None])
    assert len(kept) > 90
    before, after = np.median(kept, axis=0)
    assert before > 0.02
    assert after < 1e-5


def test_starts_of_one_batch_do_not_mix():
    crystals = [crystal for crystal in CRYSTALS if crystal.num_atoms == 4][:8]
    drafts = [written(crystal) for crystal in crystals]
    together, _ = carried(drafts, crystals)
    for draft, crystal, end in zip(drafts, crystals, together, strict=True):
        [alone], _ = carried([draft], [crystal])
        assert distance(alone, end) < 1e-6


def test_the_move_leaves_exact_crystals_and_the_mean_where_they_are():
    for crystal in CRYSTALS:
        moved, _ = symmetrized(crystal)
        if num_operations(crystal) == num_operations(crystal, symmetry.TOLERANCE):
            assert distance(moved, crystal) < 1e-3
        draft = written(crystal)
        ways = symmetrized(draft)[0].frac_coords.astype(float) - draft.frac_coords
        np.testing.assert_allclose((ways - ways.round()).mean(axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("crystal", CRYSTALS, ids=lambda c: f"{c.formula}-{space_group(c)}")
def test_a_kept_velocity_moves_atoms_within_the_space_group(crystal):
    start, operations = symmetrized(written(crystal))
    velocity = 0.02 * torch.randn(1, start.num_atoms, 3, generator=torch.Generator().manual_seed(0))
    velocity -= velocity.mean(dim=1, keepdim=True)
    kept = kept_by(start).velocity(velocity)
    assert kept.dtype == velocity.dtype
    torch.testing.assert_close(kept_by(start).velocity(kept), kept, atol=1e-6, rtol=0)
    torch.testing.assert_close(kept.mean(dim=1), torch.zeros(1, 3), atol=1e-6, rtol=0)
    coords = start.frac_coords + kept[0].numpy()
    after = Crystal.from_arrays(start.atomic_numbers, coords, start.lengths, start.angles)
    # The crystal may become more symmetric, never less.
    assert num_operations(after) >= operations.order


def symmetric_lattice(crystal):
    return torch.from_numpy(crystal_lattice(symmetrized(crystal)[0], BOUNDS))[None]


def with_lattice(crystal, lattice):
    lengths, angles = (part[0].numpy() for part in lattice_parameters(lattice, BOUNDS))
    return Crystal.from_arrays(crystal.atomic_numbers, crystal.frac_coords, lengths, angles)


def assert_inside(lattice):
    angles = lattice_parameters(lattice, BOUNDS)[1]
    assert ((angles > BOUNDS[0]) & (angles < BOUNDS[1])).all()


@pytest.mark.parametrize(
    "crystal",
    [*CRYSTALS, hematite(), *(hexagonal(number) for number in HEXAGONAL)],
    ids=lambda c: f"{c.formula}-{space_group(c)}",
)
def test_no_strain_takes_a_lattice_out_of_its_group_or_bounds(crystal):
    """Small and large strains are applied one after another."""
    start, operations = symmetrized(crystal)
    kept = kept_by(crystal)
    lattice = symmetric_lattice(crystal)
    torch.testing.assert_close(kept.lattice(lattice, lattice), lattice, atol=1e-4, rtol=1e-5)
    for seed in range(12):
        noise = torch.randn(1, 6, generator=torch.Generator().manual_seed(seed))
        scale = torch.tensor([0.1, 0.1, 0.1, 1.0, 1.0, 1.0]) * (0.1 + seed / 6)
        lattice = kept.lattice(lattice, lattice + scale * noise)
        assert lattice.dtype == torch.float32
        assert_inside(lattice)
        assert num_operations(with_lattice(start, lattice)) >= operations.order


def test_hematite_is_held_at_the_bounds_and_not_cut_out_of_its_group():
    """A shorter c makes two angles smaller than the bounds; clipping them would give group 15."""
    crystal = hematite()
    kept, lattice = kept_by(crystal), symmetric_lattice(crystal)
    assert space_group(crystal) == 167
    way = torch.tensor([[0.02, 0.02, -0.03, 0.0, 0.0, 0.0]])
    for _ in range(40):
        lattice = kept.lattice(lattice, lattice + way)
        assert_inside(lattice)
        assert space_group(with_lattice(crystal, lattice)) == 167
    alpha, beta, gamma = lattice_parameters(lattice, BOUNDS)[1][0].tolist()
    assert alpha == pytest.approx(BOUNDS[0], abs=0.01)
    assert beta == pytest.approx(alpha, abs=1e-3)
    assert gamma == pytest.approx(60, abs=1e-3)
    # The lattice can leave the bounds again.
    back = kept.lattice(lattice, lattice - way)
    assert (lattice_parameters(back, BOUNDS)[1][0, :2] > alpha + 0.1).all()


@pytest.mark.parametrize("angle", [59.9004, 60.0, 119.9, 120.0996])
def test_a_symmetric_lattice_inside_the_bounds_stays(angle):
    """This is also true if it is nearer to them than the margin."""
    crystal = Crystal.from_arrays([11], [[0, 0, 0]], [4, 4, 5], [90, 90, 100])
    kept = kept_by(crystal)
    lattice = lattice_vector(
        torch.tensor([[4.0, 4, 5]]), torch.tensor([[90.0, 90, angle]], dtype=torch.double), BOUNDS
    ).float()
    torch.testing.assert_close(kept.lattice(lattice, lattice), lattice, atol=1e-3, rtol=1e-4)


def test_one_lattice_that_is_stepped_back_does_not_touch_the_others():
    crystals = [hematite(), hematite()]
    lattices = torch.cat([symmetric_lattice(crystal) for crystal in crystals])
    operations = [symmetrized(crystal)[1] for crystal in crystals]
    kept = SymmetryProjection(operations, BOUNDS, torch.device("cpu"))
    ways = torch.tensor([[0.8, 0.8, -0.8, 0, 0, 0], [0.05, 0.05, 0, 0, 0, 0]])
    after = kept.lattice(lattices, lattices + ways)
    for i, crystal in enumerate(crystals):
        alone = kept_by(crystal).lattice(lattices[[i]], (lattices + ways)[[i]])
        torch.testing.assert_close(after[[i]], alone, atol=1e-5, rtol=1e-5)
    assert (after[0] - lattices[0])[:3].abs().max() < 0.5
    torch.testing.assert_close(after[1, :2], lattices[1, :2] + 0.05, atol=1e-4, rtol=0)


@pytest.mark.parametrize("length", [-0.5, 0.0, float("nan")])
def test_a_lattice_that_is_no_cell_stays_none(length):
    """Its Gram matrix would give a positive length again, so the crystal would not fail."""
    kept, lattice = kept_by(hematite()), symmetric_lattice(hematite())
    broken = lattice.clone()
    broken[0, 2] = length
    after = kept.lattice(lattice, broken)
    torch.testing.assert_close(after, broken, equal_nan=True)
    torch.testing.assert_close(kept.lattice(after, lattice), broken, equal_nan=True)


def test_a_crystal_without_symmetry_keeps_its_velocities():
    rng = np.random.default_rng(0)
    crystal = Crystal.from_arrays([3, 8, 9], rng.random((3, 3)), [4, 5, 6.2], [70, 85, 99])
    velocity = torch.randn(1, 3, 3)
    torch.testing.assert_close(kept_by(crystal).velocity(velocity), velocity)
    lattice = lattice_vector(torch.tensor([[4.2, 5, 6]]), torch.tensor([[75.0, 80, 90]]), BOUNDS)
    kept = kept_by(crystal).lattice(symmetric_lattice(crystal), lattice)
    torch.testing.assert_close(kept, lattice, atol=1e-4, rtol=1e-4)


def start_of(crystal, bounds=BOUNDS):
    rng = np.random.default_rng(0)
    return refinement_input(
        crystal, SimpleNamespace(bounds=bounds), LlmBaseDistribution(0.0, 0.0, 0.0), rng
    ).start


def test_where_no_space_group_is_found_the_start_is_as_it_was():
    """spglib finds no operations for two coinciding atoms."""
    crystal = Crystal.from_arrays([11, 11], [[0, 0, 0], [0, 0, 0.005]], [4] * 3, [90] * 3)
    start = start_of(crystal)
    found = symmetric_start(crystal.atomic_numbers, start, BOUNDS)
    assert found.point is start
    assert (found.operations.order, found.is_determined) == (1, False)


def test_a_start_without_a_volume_is_as_it_was():
    """A simple base or noise can draw such angles; pymatgen silently uses others."""
    lengths, angles = torch.full((1, 3), 4.0), torch.full((1, 3), 120.05)
    lattice = lattice_vector(lengths, angles, BOUNDS)[0].numpy()
    start = StartPoint(np.zeros((1, 3)), lattice, reduced=False)
    found = symmetric_start(np.array([29]), start, BOUNDS)
    assert found.point is start
    assert not found.is_determined


FOURFOLD = {
    "rotations": np.array(
        [np.linalg.matrix_power([[0, -1, 0], [1, 0, 0], [0, 0, 1]], k) for k in range(4)]
    ),
    "translations": np.zeros((4, 3)),
}


def found_with(monkeypatch, operations, second=(0.5, 0.5, 0.3)):
    monkeypatch.setattr(symmetry.spglib, "get_symmetry", lambda *_, **__: operations)
    crystal = Crystal.from_arrays([11, 11], [[0, 0, 0], second], [4, 4.05, 5], [90] * 3)
    found = symmetric_start(crystal.atomic_numbers, start_of(crystal), BOUNDS)
    return found.operations.order, found.is_determined


def test_operations_that_are_no_group_are_not_used(monkeypatch):
    """Part of a group; two atoms taken to one; atoms taken to empty positions; no operations."""
    part = {name: values[[0, 1]] for name, values in FOURFOLD.items()}
    assert found_with(monkeypatch, FOURFOLD) == (4, True)
    assert found_with(monkeypatch, part) == (1, False)
    assert found_with(monkeypatch, FOURFOLD, (0.05, 0.02, 0)) == (1, False)
    assert found_with(monkeypatch, FOURFOLD, (0.4, 0.2, 0.5)) == (1, False)
    assert found_with(monkeypatch, None) == (1, False)


def test_the_tolerance_of_translations_does_not_matter(monkeypatch):
    """The translations of operations are known within the tolerance only."""
    shifts = np.array([0, 0.004, -0.003, 0.002])[:, None]
    rounded = FOURFOLD | {"translations": FOURFOLD["translations"] + shifts}
    assert found_with(monkeypatch, rounded) == (4, True)


def test_a_symmetric_cell_out_of_bounds_is_reduced_as_a_draft_would_be():
    crystal = hematite()
    stretched = replace(crystal, lengths=np.float32([5.03, 5.03, 5.0]), angles=np.float32([60] * 3))
    moved, operations = symmetrized(stretched)
    assert operations.order == 12
    assert moved.angles.min() < BOUNDS[0]
    found = symmetric_start(stretched.atomic_numbers, start_of(stretched), BOUNDS)
    lattice = torch.from_numpy(found.point.lattice)[None]
    assert_inside(lattice)
    assert found.point.reduced
    lengths, angles = (part[0].numpy() for part in lattice_parameters(lattice, BOUNDS))
    parts = (stretched.atomic_numbers, found.point.coords, lengths, angles)
    assert num_operations(Crystal.from_arrays(*parts)) >= 12


def test_a_symmetric_crystal_without_a_cell_in_bounds_is_rejected():
    crystal = replace(hematite(), angles=np.float32([62.4, 62.4, 60.3]))
    bounds = (60.2, 119.8)
    with pytest.raises(RejectedCrystalError, match="angles_out_of_bounds"):
        symmetric_start(crystal.atomic_numbers, start_of(crystal, bounds), bounds)


def test_the_identity_keeps_everything():
    identity = Operations.identity(2)
    np.testing.assert_array_equal(identity.coords_mean, np.eye(6))
    np.testing.assert_array_equal(identity.gram_mean, np.eye(9))


def test_the_group_of_a_text_is_kept_although_the_crystal_seems_to_have_more():
    """Atoms 0.05 angstrom from a mirror plane: the search finds the plane, the text has none."""
    text = "1\n4.0 5.0 6.0 90 90 90\nNa 1a\n0.00 0.00 0.00\nCl 1a\n0.50 0.51 0.50"
    decoded = SymmetricText().decode(text, Limits(2))
    crystal = decoded.crystal
    coords = crystal.frac_coords.astype(float)
    start = StartPoint(coords, crystal_lattice(crystal, BOUNDS), False)
    searched = symmetric_start(crystal.atomic_numbers, start, BOUNDS)
    assert searched.operations.order > 1
    known = KnownSymmetry.of_crystal(crystal, decoded.operations)
    kept = symmetric_start(crystal.atomic_numbers, start, BOUNDS, known)
    assert kept.is_determined
    assert kept.operations.order == 1
    np.testing.assert_array_equal(kept.point.coords, coords)


def test_noise_is_moved_onto_the_group_of_the_text():
    """Atoms half an angstrom away from their sites still get all operations of rutile."""
    text = "136\n4.6 3.0\nTi 2a\n0.00 0.00 0.00\nO 4f\n0.31 0.31 0.00"
    decoded = SymmetricText().decode(text, Limits(6))
    crystal = decoded.crystal
    noise = np.random.default_rng(0).normal(0, 0.03, crystal.frac_coords.shape)
    coords = np.mod(crystal.frac_coords + noise, 1)
    start = StartPoint(coords, crystal_lattice(crystal, BOUNDS), False)
    assert symmetric_start(crystal.atomic_numbers, start, BOUNDS).operations.order == 1
    known = KnownSymmetry.of_crystal(crystal, decoded.operations)
    kept = symmetric_start(crystal.atomic_numbers, start, BOUNDS, known)
    assert kept.operations.order == 16
    lengths, angles = lattice_parameters(torch.from_numpy(kept.point.lattice), BOUNDS)
    moved = Crystal.from_arrays(
        crystal.atomic_numbers, kept.point.coords, lengths.numpy(), angles.numpy()
    )
    assert SpacegroupAnalyzer(moved.to_structure(), symprec=SHARP).get_space_group_number() == 136
