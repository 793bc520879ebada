"""CHGNet as a torch-sim model against chgnet itself, and its behavior on unphysical crystals."""

import contextlib
import io
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_sim as ts
from chgnet.model import CHGNet, StructOptimizer
from torch_sim.models.interface import validate_model_outputs

from crystals import caesium_chloride, fcc, mp_20_sample, perovskite, rattled, rocksalt, supercell
from flowllm.crystal import Crystal
from flowllm.errors import FlowllmError
from flowllm.relax import chgnet as adapter
from flowllm.relax.models import load_potential
from flowllm.relax.relaxer import relax

LIMITS = {"max_force": 0.1, "max_steps": 100, "max_seconds": float("inf")}


@pytest.fixture(scope="module")
def potential():
    return load_potential("chgnet", torch.device("cpu"))


@pytest.fixture(scope="module")
def model(potential):
    return potential.model


@pytest.fixture(scope="module")
def chgnet():
    with contextlib.redirect_stdout(io.StringIO()):
        return CHGNet.load(use_device="cpu")


def textbook() -> list[Crystal]:
    return [
        rattled(rocksalt(), 0.1, 1),
        rattled(perovskite(), 0.1, 2),
        fcc(),
        rattled(supercell(caesium_chloride(), (2, 2, 1)), 0.2, 3),
    ]


def single_points(potential, crystals):
    """Evaluate crystals without relaxing them."""
    infinite = float("inf")
    return relax(potential, crystals, max_force=infinite, max_steps=0, max_seconds=infinite)


def state_of(crystals):
    structures = [crystal.to_structure() for crystal in crystals]
    return ts.initialize_state(structures, torch.device("cpu"), torch.float64)


def check_against_chgnet(model, chgnet, crystals):
    """Compare energies, forces and stresses of a batch with chgnet's own per crystal."""
    output = model(state_of(crystals))
    first = 0
    for place, crystal in enumerate(crystals):
        theirs = chgnet.predict_structure(crystal.to_structure(), task="efs")
        forces = output["forces"][first : first + crystal.num_atoms].numpy()
        first += crystal.num_atoms
        energy = float(output["energy"][place]) / crystal.num_atoms
        assert energy == pytest.approx(float(theirs["e"]), abs=1e-5)
        np.testing.assert_allclose(forces, theirs["f"], atol=2e-3)
        stress = output["stress"][place].numpy() * 160.21766208  # GPa
        np.testing.assert_allclose(stress, theirs["s"], atol=5e-3)


def test_a_batch_has_chgnets_energies_forces_and_stresses(model, chgnet):
    check_against_chgnet(model, chgnet, textbook())


def test_real_crystals_have_chgnets_energies_forces_and_stresses(model, chgnet):
    crystals = mp_20_sample("val", 12).values()
    check_against_chgnet(model, chgnet, [rattled(c, 0.1, n) for n, c in enumerate(crystals)])


def test_torch_sim_accepts_the_model(model):
    validate_model_outputs(model, torch.device("cpu"), torch.float64)


def test_the_graph_is_that_of_chgnets_converter(chgnet):
    """Bonds and angles are compared as sets, because their order is arbitrary."""
    crystal = rattled(perovskite(), 0.2, 5)
    structure = crystal.to_structure()
    theirs = chgnet.graph_converter(structure)
    ours = adapter.neighbor_graph(
        np.array(structure.cart_coords), np.array(structure.lattice.matrix), 6.0, 3.0
    )

    def bonds(edges, images):
        return [(*map(int, e), *map(int, i)) for e, i in zip(edges, images, strict=True)]

    our_bonds = bonds(ours.edges, ours.images)
    their_bonds = bonds(theirs.atom_graph.tolist(), theirs.neighbor_image.tolist())
    assert sorted(our_bonds) == sorted(their_bonds)
    our_angles = {(our_bonds[a[2]], our_bonds[a[4]]) for a in ours.angles}
    their_angles = {(their_bonds[a[2]], their_bonds[a[4]]) for a in theirs.bond_graph.tolist()}
    assert our_angles == their_angles
    assert len(ours.angles) == len(theirs.bond_graph)
    # Each undirected bond is two directed ones of opposite directions.
    for number, bond in enumerate(ours.undirected):
        i, j, *image = our_bonds[number]
        back = our_bonds.index((j, i, *(-x for x in image)))
        assert ours.undirected[back] == bond
    assert len(ours.representatives) * 2 == len(our_bonds)


def test_relaxation_takes_the_course_of_chgnets_own_relaxer(potential, chgnet):
    """Batched FIRE against ASE's FIRE one by one: steps, energies, final structures."""
    crystals = textbook()
    relaxed = relax(potential, crystals, **LIMITS)
    with contextlib.redirect_stdout(io.StringIO()):
        relaxer = StructOptimizer(model=chgnet, use_device="cpu")
    for crystal, ours in zip(crystals, relaxed, strict=True):
        theirs = relaxer.relax(crystal.to_structure(), fmax=0.1, steps=100, verbose=False)
        energies = theirs["trajectory"].energies
        num_atoms = crystal.num_atoms
        assert ours.converged
        assert ours.num_steps == len(energies)
        assert ours.initial_energy_per_atom == pytest.approx(energies[0] / num_atoms, abs=1e-5)
        assert ours.final_energy_per_atom == pytest.approx(energies[-1] / num_atoms, abs=1e-4)
        forces = np.linalg.norm(theirs["trajectory"].forces[-1], axis=1)
        assert ours.max_force == pytest.approx(forces.max(), abs=2e-3)
        final = theirs["final_structure"].lattice
        np.testing.assert_allclose(sorted(ours.crystal.lengths), sorted(final.abc), atol=2e-3)
        assert ours.crystal.formula == crystal.formula


def test_a_batch_changes_nothing_for_its_members(potential):
    """A crystal takes the same steps alone and in a batch that others join and leave."""
    crystals = textbook()
    together = relax(potential, crystals * 2, **LIMITS)
    for crystal, first, second in zip(crystals, together[:4], together[4:], strict=True):
        (alone,) = relax(potential, [crystal], **LIMITS)
        for other in (first, second):
            assert other.num_steps == alone.num_steps
            assert other.final_energy_per_atom == pytest.approx(
                alone.final_energy_per_atom, abs=2e-5
            )


def test_small_batches_fill_up_again(potential, monkeypatch):
    crystals = textbook()
    expected = relax(potential, crystals, **LIMITS)
    monkeypatch.setattr("flowllm.relax.relaxer.CPU_BATCH_LOAD", 1.0)  # one crystal at a time
    found = relax(potential, crystals, **LIMITS)
    assert [one.num_steps for one in found] == [one.num_steps for one in expected]


def test_single_points_give_crystals_back_as_they_are(potential):
    crystals = textbook()
    for crystal, result in zip(crystals, single_points(potential, crystals), strict=True):
        assert result.crystal is crystal
        assert result.final_energy_per_atom == result.initial_energy_per_atom


def crystal(numbers, coords, lengths, angles=(90, 90, 90)):
    return Crystal.from_arrays(numbers, coords, lengths, angles)


HOPELESS = {
    "unknown_element": crystal([95, 8], [[0, 0, 0], [0.5, 0.5, 0.5]], [4, 4, 4]),
    "overlapping_atoms": crystal([11, 17], [[0, 0, 0], [0, 0, 0]], [4, 4, 4]),
    "isolated_atoms": crystal([11, 17], [[0, 0, 0], [0.5, 0.5, 0.5]], [8, 8, 8]),
    "too_sparse": crystal([11], [[0, 0, 0]], [60, 60, 60]),
    "too_dense": crystal([11] * 20, np.linspace(0, 0.95, 60).reshape(20, 3), [2, 2, 2]),
    "flat_cell": crystal([11], [[0, 0, 0]], [0.1, 0.1, 2000.0]),
    "no_volume": crystal([11], [[0, 0, 0]], [0.0005, 0.0005, 0.0005]),
}


@pytest.mark.parametrize("reason", HOPELESS)
def test_what_cannot_be_computed_has_a_reason_and_the_others_go_on(potential, reason):
    good = rattled(rocksalt(), 0.1, 1)
    first, bad, last = relax(potential, [good, HOPELESS[reason], good], **LIMITS)
    assert bad.failure is not None
    assert bad.failure.reason == reason
    assert bad.crystal is None
    assert bad.failure.detail
    (alone,) = relax(potential, [good], **LIMITS)
    for result in (first, last):
        assert result.converged
        assert result.num_steps == alone.num_steps
        assert result.final_energy_per_atom == pytest.approx(alone.final_energy_per_atom, abs=1e-5)


def test_chgnet_knows_the_elements_that_its_training_touched(potential, chgnet):
    """Its 94 embeddings start as 64 normal numbers each, so with lengths of about 8.

    Five embeddings still have that length; the next shortest, that of neon, has 1.5 times it.
    """
    lengths = chgnet.atom_embedding.embedding.weight.detach().norm(dim=1)
    untouched = {number + 1 for number in (lengths < 10).nonzero().flatten().tolist()}
    assert untouched == {84, 85, 86, 87, 88}
    assert potential.known_elements == set(range(1, 95)) - untouched


@pytest.mark.parametrize("symbol", ["Po", "At", "Rn", "Fr", "Ra", "Am"])
def test_elements_that_chgnet_never_learned_have_no_energy(potential, symbol):
    (result,) = single_points(potential, [rocksalt("Pb", symbol, 6.6)])
    assert result.failure.reason == "unknown_element"
    assert result.failure.detail == f"the potential was not fitted to {symbol}"


def test_nothing_but_hopeless_crystals(potential):
    results = relax(potential, list(HOPELESS.values()), **LIMITS)
    assert [result.failure.reason for result in results] == list(HOPELESS)


def test_the_step_limit_is_no_failure_and_the_time_limit_is_one(potential):
    far = rattled(supercell(rocksalt(), (2, 2, 2)), 0.3, 4)
    (short,) = relax(potential, [far], **LIMITS | {"max_steps": 3})
    assert (short.converged, short.num_steps, short.failure) == (False, 5, None)
    assert short.final_energy_per_atom < short.initial_energy_per_atom
    (slow,) = relax(potential, [far], **LIMITS | {"max_force": 1e-9, "max_seconds": 0.2})
    assert slow.failure.reason == "too_slow"
    assert slow.seconds > 0.2


class Faulty(torch.nn.Module):
    """CHGNet that gives NaN or raises for crystals with a given element."""

    def __init__(self, model, element, error=None):
        super().__init__()
        self.model, self.element, self.error = model, element, error
        self.device, self.dtype = model.device, model.dtype
        self.memory_scales_with = model.memory_scales_with

    def forward(self, state):
        present = state.atomic_numbers == self.element
        if present.any() and self.error is not None:
            raise self.error
        output = self.model(state)
        output["forces"][present] = float("nan")
        return output


def failed(potential, *arguments):
    return replace(potential, model=Faulty(potential.model, *arguments))


def test_nan_forces_fail_one_crystal_only(potential):
    crystals = [rocksalt(), rocksalt("K"), rattled(rocksalt(), 0.1, 1)]
    fine, bad, also_fine = relax(failed(potential, 19), crystals, **LIMITS)
    assert bad.failure.reason == "not_finite"
    assert fine.failure is None
    assert also_fine.converged


class Exploding(Faulty):
    """CHGNet that expands the cell of crystals with a given element."""

    def forward(self, state):
        output = self.model(state)
        pulled = state.system_idx[state.atomic_numbers == self.element]
        output["stress"][pulled] = -torch.eye(3).to(output["stress"])
        return output


def test_a_cell_that_explodes_ends_with_a_reason(potential):
    crystals = [rattled(rocksalt(), 0.1, 1), rocksalt("K"), fcc()]
    exploding = replace(potential, model=Exploding(potential.model, 19))
    fine, bad, also_fine = relax(exploding, crystals, **LIMITS)
    assert bad.failure.reason == "isolated_atoms"  # no neighbor within the cutoff
    assert bad.crystal is None
    assert fine.converged
    assert also_fine.converged


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: no memory"), ValueError("x")])
def test_an_exception_ends_one_crystal_only(potential, error):
    crystals = [rocksalt(), rattled(rocksalt(), 0.1, 1), rocksalt("K"), fcc(), fcc("Al", 4.05)]
    results = relax(failed(potential, 19, error), crystals, **LIMITS)
    assert [result.failure is None for result in results] == [True, True, False, True, True]
    assert results[2].failure.reason == "failed"
    assert str(error) in results[2].failure.detail


def test_a_crystal_that_collapses_has_no_energy(potential):
    """The network's energies at tiny distances are meaningless, so the final state is checked."""
    close = crystal([1, 1], [[0, 0, 0], [0.05, 0, 0]], [5, 5, 5])
    (result,) = single_points(potential, [close])
    assert result.failure.reason == "overlapping_atoms"
    assert "0.25 angstrom" in result.failure.detail


OTHERS = {"mace": "mace", "mattersim": "mattersim", "sevennet": "sevenn", "orb": "orb_models"}
"""Packages of the other potentials by `potential.name`."""


@pytest.mark.parametrize("name", OTHERS)
def test_other_potentials_take_the_same_way_where_they_are_installed(name):
    """Rock salt relaxes to within 3 % of its constant; an actinide beyond plutonium is rejected."""
    pytest.importorskip(OTHERS[name])
    try:
        other = load_potential(name, torch.device("cpu"))
    except FlowllmError as error:
        pytest.skip(f"its weights are not on this machine: {error}")
    validate_model_outputs(other.model, torch.device("cpu"), other.model.dtype)
    crystals = [rattled(rocksalt(), 0.1, 1), HOPELESS["unknown_element"], fcc()]
    salt, unknown, copper = relax(other, crystals, **LIMITS)
    assert unknown.failure.detail == "the potential was not fitted to Am"
    assert salt.converged
    assert copper.converged
    assert salt.crystal.lengths[0] * 2**0.5 == pytest.approx(5.64, rel=0.03)
    # The Materials Project's energies without their corrections: rock salt -3.38, copper -4.10.
    assert salt.final_energy_per_atom == pytest.approx(-3.38, abs=0.1)
    assert copper.final_energy_per_atom == pytest.approx(-4.10, abs=0.1)


def test_a_potential_that_is_not_installed_says_how(monkeypatch):
    monkeypatch.setitem(sys.modules, "mace.calculators", None)  # as if it were not installed
    with pytest.raises(FlowllmError, match=r"mace needs packages .* docs/energies\.md"):
        load_potential("mace", torch.device("cpu"))


def test_no_such_potential():
    with pytest.raises(FlowllmError, match=r"potential\.name: unknown potential 'lj'"):
        load_potential("lj", torch.device("cpu"))
