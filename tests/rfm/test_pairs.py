"""Training pairs: matched atoms, angles within bounds, counts of all rows, complete batches."""

import itertools
import threading
from collections import Counter
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from scipy import stats

from flow_pairs import OPTIONS, draft_of, failed_row, open_pairs, pair_row, prototypes, write_pairs
from flowllm.crystal import Crystal
from flowllm.io import schemas, tables
from flowllm.rfm import loader
from flowllm.rfm.base_distribution import LlmBaseDistribution
from flowllm.rfm.loader import batches_per_epoch, plan_epoch, prefetched, size_groups
from flowllm.rfm.pairs import match_atoms, prepare_shard, read_counts


def torus_cost(start, end):
    """Return the summed squares of the shortest displacements without their mean."""
    ways = end - start - np.round(end - start)
    return float(((ways - ways.mean(axis=0)) ** 2).sum())


def best_cost_by_trying(elements, start, end):
    """Return the least cost over all permutations within elements and all translations.

    For one direction and one permutation the best translation is the mean of the differences after
    the first k of them in ascending order were increased by one cell, for some k.
    """
    n = len(elements)
    best = np.inf
    for order in itertools.permutations(range(n)):
        if any(elements[i] != elements[j] for i, j in enumerate(order)):
            continue
        cost = 0.0
        for d in range(3):
            ways = np.sort(np.mod(end[list(order), d] - start[:, d], 1.0))
            cuts = [np.concatenate([ways[k:], ways[:k] + 1]) for k in range(n)]
            cost += min(float(((cut - cut.mean()) ** 2).sum()) for cut in cuts)
        best = min(best, cost)
    return best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(0.0, 0.03))
def test_match_atoms_finds_the_best_matching_of_crystals_with_noise(seed, n, scale):
    """Atoms with distances larger than the noise, in any order and with any translation."""
    rng = np.random.default_rng(seed)
    elements = np.sort(rng.integers(1, 3, n))
    grid = np.array(list(itertools.product([0.1, 0.4, 0.75], repeat=3)))
    start = grid[rng.choice(len(grid), n, replace=False)]
    order = rng.permutation(n)
    order = order[np.argsort(elements[order], kind="stable")]
    end = np.mod(start + rng.normal(0, scale, (n, 3)) + rng.random(3), 1.0)[order]
    matched = match_atoms(elements, start, end)
    assert torus_cost(start, matched) <= best_cost_by_trying(elements, start, end) + 1e-9


def test_match_atoms_is_near_the_best_matching_of_any_points():
    """Unrelated points: more than 80 % reach the least cost, and the mean is 2 % above it."""
    rng = np.random.default_rng(0)
    found, least = [], []
    for _ in range(80):
        n = int(rng.integers(2, 6))
        elements = np.sort(rng.integers(1, 4, n))
        start, end = rng.random((2, n, 3))
        found.append(torus_cost(start, match_atoms(elements, start, end)))
        least.append(best_cost_by_trying(elements, start, end))
    assert (np.array(found) >= np.array(least) - 1e-9).all()
    assert np.mean(np.array(found) <= np.array(least) + 1e-9) > 0.8
    assert np.mean(found) < 1.05 * np.mean(least)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_match_atoms_is_never_longer_and_is_the_same_crystal(seed, n):
    """This is true of unrelated points, too."""
    rng = np.random.default_rng(seed)
    elements = np.sort(rng.integers(1, 4, n))
    start, end = rng.random((2, n, 3))
    matched = match_atoms(elements, start, end)
    assert ((matched >= 0) & (matched < 1)).all()
    assert torus_cost(start, matched) <= torus_cost(start, end) + 1e-9
    assert any(
        torus_equal(np.mod(end + matched[0] - end[j], 1.0), matched, elements)
        for j in np.flatnonzero(elements == elements[0])
    )


def torus_equal(points, others, elements):
    """Return whether two sets of atoms are equal, in any order within an element."""
    gaps = points[:, None] - others[None]
    gaps = np.abs(gaps - np.round(gaps)).max(-1) + (elements[:, None] != elements[None])
    return sorted(gaps.argmin(1)) == list(range(len(points))) and gaps.min(1).max() < 1e-6


def test_reduced_draft_is_matched_to_its_target(tmp_path):
    """A draft in a skewed cell of its target coincides with it after reduction and matching."""
    lattice = Lattice.from_parameters(3.5, 4.5, 5.6, 88, 93, 95)
    coords = np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.1], [0.35, 0.9, 0.6]])
    target = Structure(lattice, ["Li", "O", "O"], coords).get_reduced_structure()
    skewed = target.copy()
    skewed.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 1]], to_unit_cell=True)
    draft = Crystal.from_structure(skewed)
    assert draft.angles.min() < 59.9 or draft.angles.max() > 120.1
    rows = [pair_row(draft, Crystal.from_structure(target), 0)]
    shard = tmp_path / "shard.parquet"
    tables.write_table(shard, rows, schemas.PAIRS, {})
    counts = prepare_shard(shard, tmp_path / "pairs.arrow", OPTIONS)
    assert counts == Counter({"pairs": 1, "reduced": 1})
    batch = open_pairs([tmp_path / "pairs.arrow"]).batch(np.array([[0, 0]]))
    assert (batch.start_lattice[:, :3] - batch.end_lattice[:, :3]).abs().max() < 1e-4
    assert torus_cost(batch.start_coords[0].numpy(), batch.end_coords[0].numpy()) < 1e-8


def test_unmatched_pairs_keep_their_coordinates(tmp_path):
    rng = np.random.default_rng(0)
    targets = [c for c in prototypes() if c.num_atoms == 4][:3]
    drafts = [draft_of(target, rng) for target in targets]
    rows = [pair_row(d, t, i) for i, (d, t) in enumerate(zip(drafts, targets, strict=True))]
    tables.write_table(tmp_path / "shard.parquet", rows, schemas.PAIRS, {})
    prepare_shard(tmp_path / "shard.parquet", tmp_path / "a", replace(OPTIONS, match_atoms=False))
    batch = open_pairs([tmp_path / "a"]).batch(np.array([[0, 2], [0, 0]]))
    for found, index in enumerate((2, 0)):
        np.testing.assert_array_equal(batch.elements[found], drafts[index].atomic_numbers)
        np.testing.assert_array_equal(batch.start_coords[found], drafts[index].frac_coords)
        np.testing.assert_array_equal(batch.end_coords[found], targets[index].frac_coords)
        np.testing.assert_array_equal(batch.start_lattice[found, :3], drafts[index].lengths)
        np.testing.assert_array_equal(batch.end_lattice[found, :3], targets[index].lengths)


def test_every_draw_is_a_pair_of_its_own(tmp_path):
    write_pairs(tmp_path / "shard.parquet", prototypes()[:2], seed=0, draws_each=5)
    counts = prepare_shard(tmp_path / "shard.parquet", tmp_path / "a", OPTIONS)
    assert counts["pairs"] == 10
    assert counts["not_ok"] == 1
    assert read_counts(tmp_path / "a") == counts
    pairs = open_pairs([tmp_path / "a"])
    drafts = {
        pairs.batch(np.array([[0, row]])).start_lattice.numpy().tobytes() for row in range(10)
    }
    assert len(drafts) == 10


def test_too_many_atoms_are_counted(tmp_path):
    coords = np.random.default_rng(0).random((101, 3))
    big = Crystal.from_arrays([6] * 101, coords, [9, 9, 9], [90, 90, 90])
    rows = [pair_row(big, big, 0), failed_row(1)]
    tables.write_table(tmp_path / "shard.parquet", rows, schemas.PAIRS, {})
    counts = prepare_shard(tmp_path / "shard.parquet", tmp_path / "a", OPTIONS)
    assert counts == Counter({"pairs": 0, "too_many_atoms": 1, "not_ok": 1})
    assert len(open_pairs([tmp_path / "a"])) == 0


def test_prepared_files_repeat_byte_by_byte(tmp_path):
    write_pairs(tmp_path / "shard.parquet", prototypes()[:10], seed=0)
    for name in "ab":
        prepare_shard(tmp_path / "shard.parquet", tmp_path / name, OPTIONS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def noisy_pairs(tmp_path, base_distribution):
    """Return pairs of four atoms with a noisy base distribution, and the group of all of them."""
    crystals = [c for c in prototypes() if c.num_atoms == 4][:5]
    write_pairs(tmp_path / "shard.parquet", crystals, seed=0, draws_each=20)
    prepare_shard(
        tmp_path / "shard.parquet",
        tmp_path / "a",
        replace(OPTIONS, base_distribution=base_distribution),
    )
    pairs = open_pairs([tmp_path / "a"], base_distribution)
    return pairs, np.stack([np.zeros(len(pairs)), np.arange(len(pairs))], axis=1).astype(int)


def test_noise_is_drawn_on_reading_and_leaves_c1_alone(tmp_path):
    pairs, group = noisy_pairs(tmp_path, LlmBaseDistribution(0.02, 0.1, 0.0))
    placed, noisy = pairs.batch(group), pairs.draw(group, np.random.default_rng(1))
    way = noisy.start_coords - placed.start_coords
    way -= way.round()
    assert stats.kstest(way.numpy().ravel(), stats.norm(0, 0.02).cdf).pvalue > 1e-3
    lengths = (noisy.start_lattice - placed.start_lattice)[:, :3].numpy().ravel()
    assert stats.kstest(lengths, stats.norm(0, 0.1).cdf).pvalue > 1e-3
    assert torch.equal(noisy.end_coords, placed.end_coords)
    assert torch.equal(noisy.end_lattice, placed.end_lattice)
    assert noisy.start_coords.dtype == noisy.start_lattice.dtype == torch.float32
    again, other = (pairs.draw(group, np.random.default_rng(seed)) for seed in (1, 2))
    assert torch.equal(again.start_coords, noisy.start_coords)
    assert not torch.equal(other.start_coords, noisy.start_coords)


def test_a_share_of_a_group_has_the_whole_groups_noise(tmp_path):
    pairs, group = noisy_pairs(tmp_path, LlmBaseDistribution(0.02, 0.1, 1.0))
    whole = pairs.draw(group, np.random.default_rng(1))
    share = pairs.draw(group, np.random.default_rng(1), slice(1, None, 3))
    assert torch.equal(share.start_coords, whole.start_coords[1::3])
    assert torch.equal(share.start_lattice, whole.start_lattice[1::3])


# ---- order of training


def prefetching_threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_prefetched_items_come_in_order_one_ahead_of_their_use():
    made = []

    def items():
        for item in range(5):
            made.append(threading.current_thread().name)
            yield item

    used = []
    for item in prefetched(items()):
        used.append(item)
        assert len(made) <= len(used) + 1
    assert used == [0, 1, 2, 3, 4]
    assert all(name.startswith("prefetch") for name in made)
    assert not prefetching_threads()


def test_a_prefetching_thread_s_error_comes_in_place_of_its_item():
    def items():
        yield 1
        yield 2
        raise OSError("the file is gone")

    used = []
    with pytest.raises(OSError, match="gone"):  # noqa: PT012  the items before the error are used
        for item in prefetched(items()):
            used.append(item)
    assert used == [1, 2]
    assert not prefetching_threads()


def test_prefetching_ends_when_nothing_more_is_wanted():
    with closing(prefetched(itertools.count())) as items:
        assert next(items) == 0
        assert len(prefetching_threads()) == 1
    assert not prefetching_threads()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), max_size=30), min_size=1, max_size=5),
    st.integers(1, 7),
    st.integers(1, 40),
    st.integers(0, 100),
)
def test_an_epoch_deals_every_pair_once(sizes, batch_size, buffer_rows, seed):
    num_atoms = [np.array(shard, dtype=np.int32) for shard in sizes]
    kept, loader.BUFFER_ROWS = loader.BUFFER_ROWS, buffer_rows
    try:
        batches = list(plan_epoch(num_atoms, batch_size, np.random.default_rng(seed)))
        again = list(plan_epoch(num_atoms, batch_size, np.random.default_rng(seed)))
    finally:
        loader.BUFFER_ROWS = kept
    dealt = [tuple(row) for batch in batches for group in batch for row in group]
    expected = [(s, r) for s, shard in enumerate(sizes) for r in range(len(shard))]
    assert sorted(dealt) == expected
    assert len(batches) == batches_per_epoch(num_atoms, batch_size)
    lengths = [sum(map(len, batch)) for batch in batches]
    assert sum(length < batch_size for length in lengths) <= 1
    assert max(lengths, default=0) <= batch_size
    for batch in batches:
        for group in batch:
            assert len({num_atoms[shard][row] for shard, row in group}) == 1
    for batch, other in zip(batches, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(batch, other, strict=True))


def test_most_batches_hold_one_size():
    rng = np.random.default_rng(0)
    num_atoms = [rng.integers(1, 21, 3000).astype(np.int32) for _ in range(4)]
    batches = list(plan_epoch(num_atoms, 32, rng))
    assert sum(len(batch) == 1 for batch in batches) / len(batches) > 0.94


def test_epochs_differ_and_mix_shards():
    num_atoms = [np.full(100, 4, dtype=np.int32) for _ in range(3)]
    first, second = (
        list(plan_epoch(num_atoms, 10, np.random.default_rng(seed))) for seed in (1, 2)
    )
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert sum(len(np.unique(batch[0][:, 0])) > 1 for batch in first) > 20


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), max_size=20), min_size=1, max_size=4), st.integers(1, 5)
)
def test_size_groups_hold_every_pair_once(sizes, max_rows):
    num_atoms = [np.array(shard, dtype=np.int32) for shard in sizes]
    groups = list(size_groups(num_atoms, max_rows))
    dealt = sorted(tuple(row) for group in groups for row in group)
    assert dealt == [(s, r) for s, shard in enumerate(sizes) for r in range(len(shard))]
    assert all(len(group) <= max_rows for group in groups)


def test_reading_a_group_allocates_no_more_than_its_rows(tmp_path):
    """The files are memory-mapped, so Arrow allocates no memory for the pairs."""
    write_pairs(tmp_path / "shard.parquet", prototypes()[:20], seed=0, draws_each=20)
    prepare_shard(tmp_path / "shard.parquet", tmp_path / "a", OPTIONS)
    before = pa.total_allocated_bytes()
    pairs = open_pairs([tmp_path / "a"])
    assert len(pairs) == 400
    assert pa.total_allocated_bytes() - before < 4096
