"""Derived seeds: stable, and apart for everything they are named for."""

import hashlib
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flowllm.seeds import derive, generator

words = st.text("abcdefghij-0123456789", max_size=8)
keys = st.lists(st.one_of(words, st.integers(-(10**9), 10**9)), max_size=4).map(tuple)


def test_derivation_is_the_documented_digest():
    text = "42\x1fstr:sample_pairs\x1fint:7"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    assert derive(42, "sample_pairs", 7) == int.from_bytes(digest, "big") // 2


def test_another_process_derives_the_same():
    program = "from flowllm.seeds import derive; print(derive(42, 'train', 3))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert int(done.stdout) == derive(42, "train", 3)


@given(st.integers(0, 2**32), keys, st.integers(0, 2**32), keys)
def test_seeds_differ_where_names_differ(seed, key, other_seed, other_key):
    assert 0 <= derive(seed, *key) < 2**63
    assert (derive(seed, *key) == derive(other_seed, *other_key)) == (
        (seed, key) == (other_seed, other_key)
    )


@given(st.integers(0, 2**31 - 1))
def test_numpy_integers_are_integers(number):
    assert derive(1, "draw", np.int64(number)) == derive(1, "draw", number)
    assert derive(1, "draw", np.int32(number)) == derive(1, "draw", number)


def test_a_number_is_not_its_text():
    assert derive(1, "a", 2) != derive(1, "a", "2")
    assert derive(1, "a", "b") != derive(1, "ab")


def test_seeds_are_spread_evenly():
    draws = np.array([derive(42, "draw", i) for i in range(4000)]) / 2**63
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    chi_squared = ((counts - 200) ** 2 / 200).sum()
    assert chi_squared < 43.8  # 99.9 % of uniform samples, 19 degrees of freedom


def test_generators_of_neighbouring_draws_are_not_correlated():
    first, second = (
        np.array([generator(seed, "x", i).normal() for i in range(2000)]) for seed in (1, 2)
    )
    neighbours = np.corrcoef(first[:-1], first[1:])[0, 1]
    seeds = np.corrcoef(first, second)[0, 1]
    assert abs(neighbours) < 0.08  # 3.5 standard errors
    assert abs(seeds) < 0.08
    assert generator(1, "x", 0).normal() == first[0]
