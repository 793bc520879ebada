"""Axes in another order and turned: the same crystals, by pymatgen and by all distances."""

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from flow_pairs import BOUNDS, draft_of, prototypes
from flowllm.crystal import Crystal
from flowllm.rfm.axes import random_axes, with_axes
from flowllm.rfm.loader import PairBatch
from flowllm.rfm.manifold import lattice_parameters, target_velocity
from flowllm.rfm.start import crystal_lattice

TARGETS = [crystal for crystal in prototypes() if crystal.num_atoms == 6]


def pair_batch():
    """Real crystals of six atoms and drafts of them."""
    rng = np.random.default_rng(0)
    drafts = [draft_of(crystal, rng) for crystal in TARGETS]

    def stacked(crystals):
        coords = np.stack([crystal.frac_coords for crystal in crystals]).astype(np.float64)
        lattices = np.stack([crystal_lattice(crystal, BOUNDS) for crystal in crystals])
        return torch.from_numpy(coords), torch.from_numpy(lattices.astype(np.float64))

    elements = torch.tensor(np.stack([crystal.atomic_numbers for crystal in TARGETS])).long()
    (f0, l0), (f1, l1) = stacked(drafts), stacked(TARGETS)
    return PairBatch(elements, f0, f1, l0, l1)


def structures(elements, coords, lattices):
    parameters = (x.numpy() for x in lattice_parameters(lattices, BOUNDS))
    parts = zip(elements.numpy(), coords.numpy(), *parameters, strict=True)
    return [Crystal.from_arrays(*one).to_structure() for one in parts]


@pytest.mark.parametrize("seed", range(4))
def test_other_axes_describe_the_same_crystals(seed):
    batch = pair_batch()
    new = with_axes(batch, *random_axes(len(batch), np.random.default_rng(seed)))
    for side in ("start", "end"):
        before = structures(
            batch.elements, getattr(batch, f"{side}_coords"), getattr(batch, f"{side}_lattice")
        )
        after = structures(
            new.elements, getattr(new, f"{side}_coords"), getattr(new, f"{side}_lattice")
        )
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(one.distance_matrix, other.distance_matrix, atol=1e-4)
            assert StructureMatcher(ltol=0.01, stol=0.01, angle_tol=0.1).fit(one, other)


def test_targets_have_the_same_axes():
    batch = pair_batch()
    orders, signs = random_axes(len(batch), np.random.default_rng(1))
    new = with_axes(batch, orders, signs)
    old_coords, old_lattice = target_velocity(
        batch.start_coords, batch.end_coords, batch.start_lattice, batch.end_lattice
    )
    coords, lattice = target_velocity(
        new.start_coords, new.end_coords, new.start_lattice, new.end_lattice
    )
    for index, (order, sign) in enumerate(zip(orders.tolist(), signs, strict=True)):
        moved = old_coords[index][:, order] * torch.from_numpy(sign)
        torch.testing.assert_close(coords[index], moved, atol=1e-9, rtol=0)
        torch.testing.assert_close(lattice[index, :3], old_lattice[index, :3][order])
        supplements = torch.tensor([sign[1] * sign[2], sign[0] * sign[2], sign[0] * sign[1]])
        torch.testing.assert_close(lattice[index, 3:], supplements * old_lattice[index, 3:][order])


def test_every_description_is_drawn():
    orders, signs = random_axes(2000, np.random.default_rng(2))
    assert len(np.unique(np.hstack([orders, signs]), axis=0)) == 48
