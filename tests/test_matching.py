"""Equivalence classes and novelty against StructureMatcher on all pairs, one by one."""

import itertools

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher

from crystals import (
    caesium_chloride,
    mp_20_sample,
    perovskite,
    rattled,
    rocksalt,
    supercell,
    translated_and_permuted,
)
from flowllm.evaluate.matching import (
    DEFAULT,
    LOOSE,
    Bucket,
    Candidate,
    equivalence_classes,
    match_bucket,
    rms_distance,
)
from flowllm.evaluate.validity import reduced_composition


def all_pairs_classes(crystals):
    """Classes by StructureMatcher.fit on every pair, with nothing skipped and nothing reused."""
    matcher = StructureMatcher()
    structures = {name: crystal.to_structure() for name, crystal in crystals.items()}
    label = {name: name for name in crystals}
    for first, second in itertools.combinations(sorted(crystals), 2):
        if matcher.fit(structures[first], structures[second]):
            kept, dropped = sorted((label[first], label[second]))
            label = {name: kept if old == dropped else old for name, old in label.items()}
    return label


def fast_classes(crystals):
    buckets = {}
    for name, crystal in crystals.items():
        buckets.setdefault(reduced_composition(crystal.atomic_numbers), {})[name] = crystal
    found = {}
    for members in buckets.values():
        found |= match_bucket(Bucket(members, frozenset(), {})).classes
    return found


def with_planted_duplicates(crystals):
    planted = dict(crystals)
    for index, (name, crystal) in enumerate(sorted(crystals.items())):
        kind = index % 5
        if kind == 0:
            planted[f"{name}-moved"] = translated_and_permuted(crystal, index)
        elif kind == 1 and crystal.num_atoms <= 6:
            planted[f"{name}-supercell"] = supercell(crystal)
        elif kind == 2:
            planted[f"{name}-rattled"] = rattled(crystal, 0.05, index)
        elif kind == 3:
            planted[f"{name}-far"] = rattled(crystal, 0.6, index)
    return planted


def test_classes_equal_all_pairs_on_real_crystals_with_planted_duplicates():
    crystals = with_planted_duplicates(mp_20_sample("train", 40))
    expected = all_pairs_classes(crystals)
    assert fast_classes(crystals) == expected
    assert len(set(expected.values())) < len(crystals)  # some were planted


def test_classes_do_not_depend_on_the_order():
    crystals = {
        f"c{index:02d}": rattled(perovskite(), distance, index)
        for index, distance in enumerate(np.linspace(0, 1.5, 7))
    }
    candidates = [Candidate(name, crystal) for name, crystal in crystals.items()]
    rng = np.random.default_rng(0)
    expected = equivalence_classes(candidates)
    for _ in range(3):
        rng.shuffle(candidates)
        assert equivalence_classes(candidates) == expected
    assert 1 < len(set(expected.values())) < len(crystals)


def test_polymorphs_differ_and_a_scaled_copy_does_not():
    crystals = {
        "a": rocksalt("Na", "Cl"),
        "b": caesium_chloride("Na", "Cl", 3.5),
        "c": rocksalt("Na", "Cl", a=6.4),  # StructureMatcher scales to one volume
    }
    assert fast_classes(crystals) == {"a": "a", "b": "b", "c": "a"}


def test_known_crystals_name_the_smallest_match_in_each_set():
    salt = rocksalt()
    bucket = Bucket(
        samples={"s1": salt, "s2": caesium_chloride("Na", "Cl", 3.5)},
        stable=frozenset({"s2"}),
        references={
            "train": {"mp-9": supercell(salt), "mp-2": translated_and_permuted(salt, 1)},
            "val": {},
        },
    )
    found = match_bucket(bucket)
    assert found.known == {"train": {"s1": "mp-2"}, "val": {}}
    assert found.stable_classes == {"s2": "s2"}
    assert found.failed == {}


def test_rms_distance_is_pymatgens_and_none_without_a_match():
    perfect = perovskite()
    moved = rattled(perfect, 0.1, 3)
    expected = StructureMatcher().get_rms_dist(perfect.to_structure(), moved.to_structure())
    assert rms_distance(perfect, moved, DEFAULT) == pytest.approx(expected[0])
    assert rms_distance(rocksalt(), caesium_chloride("Na", "Cl", 3.5), LOOSE) is None
    assert rms_distance(perfect, perfect, DEFAULT) == pytest.approx(0, abs=1e-6)


def test_rms_distance_worked_by_hand():
    # One of the two atoms of rock salt moved by d, so that after the best translation both are
    # off by d / 2; the unit is the cube root of the volume an atom, a / 2.
    salt, distance = rocksalt(a=5.64), 0.2
    structure = salt.to_structure()
    structure.translate_sites([1], [0, 0, distance], frac_coords=False)
    moved = type(salt).from_structure(structure)
    expected = (distance / 2) / (5.64**3 / 8) ** (1 / 3)
    assert rms_distance(salt, moved, DEFAULT) == pytest.approx(expected, rel=1e-4)
