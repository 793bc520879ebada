"""Reordered and reversed axes describe the same crystals, by pymatgen and by all distances."""

import numpy as np
import pytest
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from flow_pairs import BOUNDS, OPTIONS, draft_of, pair_row, prototypes
from flowllm.crystal import Crystal
from flowllm.io import schemas, tables
from flowllm.rfm.axes import random_axes
from flowllm.rfm.loader import PreparedPairs
from flowllm.rfm.manifold import lattice_parameters, target_velocity
from flowllm.rfm.pairs import prepare_shard

TARGETS = [crystal for crystal in prototypes() if crystal.num_atoms == 6]
ALL = np.stack([np.zeros(len(TARGETS), dtype=int), np.arange(len(TARGETS))], axis=1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Real crystals of six atoms and drafts of them, with given axes and with random axes."""
    folder = tmp_path_factory.mktemp("axes")
    rng = np.random.default_rng(0)
    rows = [pair_row(draft_of(crystal, rng), crystal, i) for i, crystal in enumerate(TARGETS)]
    tables.write_table(folder / "shard.parquet", rows, schemas.PAIRS, {})
    prepare_shard(folder / "shard.parquet", folder / "prepared", OPTIONS)
    return [
        PreparedPairs(
            [folder / "prepared"], OPTIONS.base_distribution, BOUNDS, augment_axes=augment
        )
        for augment in (False, True)
    ]


def structures(elements, coords, lattices):
    parameters = (x.numpy() for x in lattice_parameters(lattices.double(), BOUNDS))
    parts = zip(elements.numpy(), coords.numpy(), *parameters, strict=True)
    return [Crystal.from_arrays(*one).to_structure() for one in parts]


@pytest.mark.parametrize("seed", range(4))
def test_other_axes_describe_the_same_crystals(pairs, seed):
    given, drawn = (one.draw(ALL, np.random.default_rng(seed)) for one in pairs)
    assert not torch.equal(given.start_lattice, drawn.start_lattice)
    for side in ("start", "end"):
        before, after = (
            structures(b.elements, getattr(b, f"{side}_coords"), getattr(b, f"{side}_lattice"))
            for b in (given, drawn)
        )
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(one.distance_matrix, other.distance_matrix, atol=1e-3)
            assert StructureMatcher(ltol=0.01, stol=0.01, angle_tol=0.1).fit(one, other)


def test_targets_have_the_same_axes(pairs):
    given, drawn = (one.draw(ALL, np.random.default_rng(1)) for one in pairs)
    axes = random_axes(len(ALL), np.random.default_rng(1))
    before, after = (
        target_velocity(b.start_coords, b.end_coords, b.start_lattice, b.end_lattice)
        for b in (given, drawn)
    )
    for i, (order, sign) in enumerate(zip(axes.orders.tolist(), axes.signs, strict=True)):
        moved = before[0][i][:, order] * sign
        torch.testing.assert_close(after[0][i], moved, atol=1e-5, rtol=0)
        torch.testing.assert_close(after[1][i, :3], before[1][i, :3][order])
        supplements = torch.tensor([sign[1] * sign[2], sign[0] * sign[2], sign[0] * sign[1]])
        torch.testing.assert_close(after[1][i, 3:], supplements * before[1][i, 3:][order])


def test_a_share_has_the_axes_of_the_whole(pairs):
    whole = pairs[1].draw(ALL, np.random.default_rng(2))
    share = pairs[1].draw(ALL, np.random.default_rng(2), slice(1, None, 2))
    for name, value in vars(share).items():
        assert torch.equal(value, getattr(whole, name)[1::2]), name


def test_every_description_is_drawn():
    axes = random_axes(2000, np.random.default_rng(3))
    drawn = np.hstack([axes.orders.numpy(), axes.signs.numpy()])
    assert len(np.unique(drawn, axis=0)) == 48
