"""Constrained relaxation against ASE's FixSymmetry and its relaxation of the atoms alone."""

import contextlib
import io

import numpy as np
import pytest
import torch
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.spacegroup.symmetrize import symmetrize_rank1, symmetrize_rank2
from chgnet.model import CHGNetCalculator
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from torch_sim import initialize_state

from crystals import caesium_chloride, fcc, perovskite, rattled, rocksalt, supercell
from flowllm.crystal import Crystal
from flowllm.relax.constraints import Projection, symmetrized
from flowllm.relax.models import load_potential
from flowllm.relax.relaxer import relax

LIMITS = {"max_force": 0.05, "max_steps": 300, "max_seconds": float("inf")}


@pytest.fixture(scope="module")
def potential():
    return load_potential("chgnet", torch.device("cpu"))


@pytest.fixture(scope="module")
def calculator():
    with contextlib.redirect_stdout(io.StringIO()):
        return CHGNetCalculator(use_device="cpu")


def of_group(number, lattice, species, coords):
    return Crystal.from_structure(Structure.from_spacegroup(number, lattice, species, coords))


def ten_crystals():
    """Crystals of ten structure types, with strained cells and atoms moved off their sites."""
    rutile = of_group(136, Lattice.tetragonal(4.7, 3.0), ["Ti", "O"], [[0, 0, 0], [0.31, 0.31, 0]])
    wurtzite = of_group(
        186, Lattice.hexagonal(3.3, 5.2), ["Zn", "O"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.39]]
    )
    fluorite = of_group(225, Lattice.cubic(5.6), ["Ca", "F"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    pyrite = of_group(205, Lattice.cubic(5.5), ["Fe", "S"], [[0, 0, 0], [0.38, 0.38, 0.38]])
    nickeline = of_group(
        194, Lattice.hexagonal(3.7, 5.1), ["Ni", "As"], [[0, 0, 0], [1 / 3, 2 / 3, 0.25]]
    )
    calcite_like = of_group(
        166, Lattice.hexagonal(2.9, 14.3), ["Li", "Co", "O"], [[0, 0, 0.5], [0, 0, 0], [0, 0, 0.25]]
    )
    crystals = [
        rocksalt(a=5.9),
        perovskite(a=4.1),
        supercell(caesium_chloride(a=4.3), (2, 1, 1)),
        fcc(a=3.8),
        rutile,
        wurtzite,
        fluorite,
        pyrite,
        nickeline,
        calcite_like,
    ]
    return [rattled(crystal, 0.01, seed) for seed, crystal in enumerate(crystals)]


def group(crystal, symprec=0.01):
    return crystal.to_structure().get_space_group_info(symprec=symprec)[1]


def by_ase(crystal, calculator, *, keep_symmetry, fixed_cell):
    """Relax with ASE's constraint and filter; return energy per atom, steps, crystal."""
    atoms = AseAtomsAdaptor.get_atoms(crystal.to_structure(), msonable=False)
    if keep_symmetry:
        atoms.set_constraint(FixSymmetry(atoms, symprec=0.1))
    atoms.calc = calculator
    optimizer = FIRE(atoms if fixed_cell else FrechetCellFilter(atoms), logfile=None)
    optimizer.run(fmax=LIMITS["max_force"], steps=LIMITS["max_steps"])
    final = Crystal.from_structure(AseAtomsAdaptor.get_structure(atoms))
    return atoms.get_potential_energy() / len(atoms), optimizer.nsteps, final


@pytest.mark.parametrize(
    ("keep_symmetry", "fixed_cell"), [(True, False), (False, True), (True, True)]
)
def test_ten_crystals_in_a_batch_end_as_by_ase(potential, calculator, keep_symmetry, fixed_cell):
    given = ten_crystals()
    how = {"keep_symmetry": keep_symmetry, "fixed_cell": fixed_cell}
    relaxed = relax(potential, given, **LIMITS, **how)
    for crystal, ours in zip(given, relaxed, strict=True):
        energy, steps, final = by_ase(crystal, calculator, **how)
        assert ours.converged
        assert ours.final_energy_per_atom == pytest.approx(energy, abs=5e-4)
        assert abs(ours.num_steps - 2 - steps) <= 2
        if keep_symmetry:
            assert group(ours.crystal) == group(final) == group(crystal, 0.1)
        if fixed_cell:
            expected = symmetrized(crystal)[0] if keep_symmetry else crystal
            np.testing.assert_allclose(ours.crystal.lengths, expected.lengths, rtol=1e-6)
            np.testing.assert_allclose(ours.crystal.angles, expected.angles, rtol=1e-6)


def test_the_projections_are_ases():
    """Random forces and stresses of a batch, in which one crystal has failed."""
    pairs = [symmetrized(one) for one in ten_crystals()]
    crystals = [one for one, _ in pairs]
    broken = Crystal.from_arrays([11], [[0, 0, 0]], [0.0005] * 3, [90] * 3)
    structures = [one.to_structure() for one in [*crystals, broken]]
    state = initialize_state(structures, torch.device("cpu"), torch.float64)
    symmetries = [*(found for _, found in pairs), symmetrized(broken)[1]]
    rng = np.random.default_rng(1)
    forces = torch.from_numpy(rng.normal(size=state.positions.shape))
    stress = torch.from_numpy(rng.normal(size=(len(structures), 3, 3)))
    output = {"forces": forces.clone(), "stress": stress + stress.mT}
    given = output["stress"].clone()
    projection = Projection(symmetries, fixed_cell=False, device=torch.device("cpu"))
    projection.apply(state, output, {len(crystals): None})
    for number, symmetry in enumerate(symmetries[:-1]):
        cell = state.row_vector_cell[number].numpy()
        inverse = np.linalg.inv(cell)
        atoms = state.system_idx == number
        shifts = np.zeros((len(symmetry.rotations), 3))
        maps = (symmetry.rotations, shifts, symmetry.images)
        expected = symmetrize_rank1(cell, inverse, forces[atoms].numpy(), *maps)
        np.testing.assert_allclose(output["forces"][atoms].numpy(), expected, atol=1e-12)
        tensor = symmetrize_rank2(cell, inverse, given[number].numpy(), symmetry.rotations)
        np.testing.assert_allclose(output["stress"][number].numpy(), tensor, atol=1e-12)


def test_a_crystal_is_moved_to_its_exact_symmetry():
    for crystal in ten_crystals():
        exact, symmetry = symmetrized(crystal)
        assert exact.formula == crystal.formula
        assert group(exact, 1e-4) == group(crystal, 0.1)
        assert len(symmetry.rotations) > 1
        again, same = symmetrized(exact)
        np.testing.assert_allclose(again.lengths, exact.lengths, rtol=1e-5)
        assert len(same.rotations) == len(symmetry.rotations)


def test_a_crystal_without_symmetry_is_left_as_it_is():
    crystal = rattled(supercell(perovskite(), (2, 1, 1)), 0.4, 7)
    exact, symmetry = symmetrized(crystal)
    np.testing.assert_allclose(exact.lengths, crystal.lengths, rtol=1e-5)
    np.testing.assert_array_equal(symmetry.images, [np.arange(10)])
    np.testing.assert_array_equal(symmetry.rotations, [np.eye(3)])


def test_the_symmetry_changes_the_end_where_a_free_relaxation_leaves_it(potential):
    """A cubic perovskite with a distorted start relaxes to a lower group unless it is kept."""
    given = rattled(supercell(perovskite("Ca", "Ti", "O", 3.85), (2, 1, 1)), 0.05, 3)
    limits = LIMITS | {"max_force": 0.02}
    (free,) = relax(potential, [given], **limits)
    (kept,) = relax(potential, [given], **limits, keep_symmetry=True)
    expected = group(given, 0.1)
    assert group(kept.crystal, 1e-3) == expected
    assert group(free.crystal, 1e-3) != expected
    assert free.final_energy_per_atom < kept.final_energy_per_atom + 1e-4


def test_forces_of_a_fixed_cell_count_and_stresses_do_not(potential):
    """Compressed rock salt has no forces by symmetry and a large stress."""
    squeezed = rocksalt(a=5.0)
    (fixed,) = relax(potential, [squeezed], **LIMITS, fixed_cell=True)
    assert fixed.converged
    assert fixed.num_steps == 2  # no step was made
    np.testing.assert_array_equal(fixed.crystal.lengths, squeezed.lengths)
    (free,) = relax(potential, [squeezed], **LIMITS)
    assert free.num_steps > 2
    assert free.final_energy_per_atom < fixed.final_energy_per_atom - 0.01
