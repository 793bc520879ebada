"""Translations and permutations against the paper's definitions (section 3), value by value."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from crystals import perovskite
from flowllm.llm.transformations import permuted, translated

SEEDS = st.integers(0, 2**32)


@given(SEEDS)
def test_translation_moves_every_atom_by_the_same_vector(seed):
    crystal = perovskite()
    moved = translated(crystal, np.random.default_rng(seed))
    shift = moved.frac_coords.astype(np.float64) - crystal.frac_coords
    angle = np.exp(2j * np.pi * shift)  # the same on the torus, wrapped or not
    np.testing.assert_allclose(angle, np.broadcast_to(angle[0], angle.shape), atol=1e-5)
    assert moved.frac_coords.min() >= 0
    assert moved.frac_coords.max() < 1
    for name in ("atomic_numbers", "lengths", "angles"):
        assert getattr(moved, name) is getattr(crystal, name)


@given(SEEDS)
def test_permutation_keeps_each_atom_with_its_place(seed):
    crystal = perovskite()
    shuffled = permuted(crystal, np.random.default_rng(seed))

    def atoms(of):
        return sorted(
            zip(of.atomic_numbers.tolist(), map(tuple, of.frac_coords.tolist()), strict=True)
        )

    assert atoms(shuffled) == atoms(crystal)
    assert shuffled.lengths is crystal.lengths


def test_translations_are_uniform_and_each_order_is_alike_likely():
    crystal, rng = perovskite(), np.random.default_rng(0)
    firsts = [translated(crystal, rng).frac_coords[0] for _ in range(2000)]
    np.testing.assert_allclose(np.mean(firsts, axis=0), 0.5, atol=0.03)
    np.testing.assert_allclose(np.var(firsts, axis=0), 1 / 12, atol=0.006)
    places = [
        np.flatnonzero((permuted(crystal, rng).frac_coords == crystal.frac_coords[0]).all(1))[0]
        for _ in range(2000)
    ]
    np.testing.assert_allclose(np.bincount(places) / 2000, 0.2, atol=0.03)
