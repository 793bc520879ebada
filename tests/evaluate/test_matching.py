"""Equivalence classes and novelty against StructureMatcher on all pairs, one by one."""

import itertools
import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
from duplicates import fast_classes, with_planted_duplicates
from flowllm.crystal import Crystal
from flowllm.evaluate.matching import (
    DEFAULT,
    LOOSE,
    Bucket,
    ReducedCrystal,
    equivalence_classes,
    kept_greedily,
    match_bucket,
    rms_distance,
    rms_distance_or_error,
)
from flowllm.evaluate.validity import is_structurally_valid


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
    candidates = [ReducedCrystal(name, crystal) for name, crystal in crystals.items()]
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
    assert found.greedy_sun == {"s2"}
    assert found.failed == {}


def sheared(angle):
    """CsCl with one angle changed, degrees; neighbors in steps of 4 degrees match each other."""
    return Crystal.from_arrays([55, 17], [[0, 0, 0], [0.5] * 3], [4.12] * 3, [90, 90, angle])


def tetragonal(ratio):
    """CsCl with another c/a; scaled to one volume, c grows by the power 2/3 of the ratio."""
    return Crystal.from_arrays([55, 17], [[0, 0, 0], [0.5] * 3], [4, 4, 4 * ratio], [90] * 3)


@pytest.mark.parametrize(
    ("distorted", "by_default", "loosely"),
    [
        (tetragonal(1.30), True, True),  # c is 19 % longer
        (tetragonal(1.35), False, True),  # 22 %
        (tetragonal(1.45), False, True),  # 28 %
        (tetragonal(1.50), False, False),  # 31 %
        (sheared(94), True, True),
        (sheared(96), False, True),
        (sheared(99), False, True),
        (sheared(101), False, False),
    ],
)
def test_distortions_match_up_to_the_tolerances(distorted, by_default, loosely):
    """Lengths may differ by 20 or 30 %, angles by 5 or 10 degrees."""
    for tolerances, matches in ((DEFAULT, by_default), (LOOSE, loosely)):
        found = rms_distance(sheared(90), distorted, tolerances)
        assert (found is not None) == matches


EIGHT = {f"c{place}": sheared(angle) for place, angle in enumerate(range(90, 119, 4))}


def test_a_chain_of_matches_is_one_class_and_four_crystals_by_the_greedy_rule():
    candidates = [ReducedCrystal(name, crystal) for name, crystal in EIGHT.items()]
    assert set(equivalence_classes(candidates).values()) == {"c0"}
    assert kept_greedily(candidates) == {"c0", "c2", "c4", "c6"}
    backwards = kept_greedily(candidates[::-1])  # the rule depends on the order of the file
    assert backwards == {"c7", "c5", "c3", "c1"}


def slow_greedy_sun(crystals, stable, known):
    """FlowMM's rule written out: lists of all matches first, then one pass in the file's order."""
    matcher = StructureMatcher()
    structures = {name: crystal.to_structure() for name, crystal in crystals.items()}

    def matches(one, other):
        return matcher.get_rms_dist(one, other) is not None

    novel = [
        name
        for name in stable
        if not any(matches(structures[name], one.to_structure()) for one in known)
    ]
    duplicates_of = {
        name: [
            other
            for other in novel
            if other != name and matches(structures[name], structures[other])
        ]
        for name in novel
    }
    duplicates = []
    for name in novel:
        if name not in duplicates:
            duplicates.extend(duplicates_of[name])
    return {name for name in novel if name not in duplicates}


ANGLES = st.integers(0, 27).map(lambda step: 90 + 1.03 * step)
"""Degrees, none 5 from another: there pymatgen's answer depends on the order of the crystals."""


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(ANGLES, st.booleans()), min_size=1, max_size=6),
    st.lists(ANGLES, max_size=1),
)
def test_the_greedy_rule_is_the_slow_one(drawn, known):
    crystals = {f"s{place}": sheared(angle) for place, (angle, _) in enumerate(drawn)}
    stable = [name for name, (_, is_stable) in zip(crystals, drawn, strict=True) if is_stable]
    train = [sheared(angle) for angle in known]
    references = {"train": {f"mp-{place}": one for place, one in enumerate(train)}, "val": EIGHT}
    found = match_bucket(Bucket(crystals, frozenset(stable), references, ("train",)))
    assert found.greedy_sun == slow_greedy_sun(crystals, stable, train)
    # Chains join at least what direct matches do, so that classes are never more.
    novel = {name for name in stable if name not in found.known["train"]}
    assert len({found.classes[name] for name in novel}) <= len(found.greedy_sun)


def test_rms_distance_is_pymatgens_and_none_without_a_match():
    perfect = perovskite()
    moved = rattled(perfect, 0.1, 3)
    expected = StructureMatcher().get_rms_dist(perfect.to_structure(), moved.to_structure())
    assert rms_distance(perfect, moved, DEFAULT) == pytest.approx(expected[0])
    assert rms_distance(rocksalt(), caesium_chloride("Na", "Cl", 3.5), LOOSE) is None
    assert rms_distance(perfect, perfect, DEFAULT) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "lengths",
    [(1000, 0.01, 0.01), (0.01, 3, 1000), (0.01, 140, 140), (1e-3,) * 3, (1e6,) * 3, (3, 3, 1e6)],
)
def test_elongated_cells_are_refused_before_the_matcher_lists_their_lattice_points(lengths):
    """Each took 4 GB and more, or minutes, in pymatgen's search of lattice points."""
    coords = np.random.default_rng(0).random((20, 3))
    needle = Crystal.from_arrays([11, 17] * 10, coords, lengths, [90] * 3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pair in ((needle, rocksalt()), (rocksalt(), needle)):
        distance, error = rms_distance_or_error(*pair, LOOSE)
        assert distance is None
        assert "elongated to be compared" in error
    bucket = Bucket({"a": needle, "b": rocksalt()}, frozenset("ab"), {"train": {"c": needle}})
    found = match_bucket(bucket)
    assert set(found.failed) == {"a"}
    assert found.classes == {"b": "b"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_crystal_that_cannot_be_compared_is_in_no_class_also_alone_in_its_composition():
    """Nothing is known with its composition, and no other sample has it."""
    coords = np.random.default_rng(0).random((10, 3))
    needle = Crystal.from_arrays([11, 17] * 5, coords, [4, 4, 600], [90] * 3)
    for crystal, comparable in ((needle, False), (rocksalt(), True)):
        found = match_bucket(Bucket({"a": crystal}, frozenset("a"), {"train": {}}, ("train",)))
        assert found.classes == ({"a": "a"} if comparable else {})
        assert found.greedy_sun == (frozenset("a") if comparable else frozenset())
        assert set(found.failed) == (set() if comparable else {"a"})
        assert found.known == {"train": {}}


def test_lengths_beyond_all_measure_are_errors_and_not_valid():
    for lengths in ((1e38, 1, 1), (1e-38, 1, 1)):
        crystal = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.5] * 3], lengths, [90] * 3)
        distance, error = rms_distance_or_error(crystal, rocksalt(), LOOSE)
        assert distance is None
        assert error
        assert not is_structurally_valid(crystal)


def test_real_elongated_cells_are_compared():
    slab = Crystal.from_arrays([11, 17], [[0, 0, 0], [0.5, 0.5, 0.1]], [3, 3, 60], [90] * 3)
    assert rms_distance(slab, slab, LOOSE) == pytest.approx(0, abs=1e-6)


def test_rms_distance_worked_by_hand():
    # One of the two atoms of rock salt moved by d, so that after the best translation both are
    # off by d / 2; the unit is the cube root of the volume per atom, a / 2.
    salt, distance = rocksalt(a=5.64), 0.2
    structure = salt.to_structure()
    structure.translate_sites([1], [0, 0, distance], frac_coords=False)
    moved = type(salt).from_structure(structure)
    expected = (distance / 2) / (5.64**3 / 8) ** (1 / 3)
    assert rms_distance(salt, moved, DEFAULT) == pytest.approx(expected, rel=1e-4)
