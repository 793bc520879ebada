"""Selection of crystals for DFT: candidates, their control sample, reasons and probabilities."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_rows import settings
from flowllm.dft.selection import Relaxed, choose

DEFAULTS = settings("dft_inputs").dft_inputs


def section(**changes):
    given = {"selection": "candidates", "max_crystals": 10, "max_e_above_hull": 0.1}
    return DEFAULTS.model_copy(update=given | changes)


SIX = [
    Relaxed("a", "NaCl", 0.01, group="a", novel=False, known_as="mp-1"),
    Relaxed("b", "CsCl", 0.05, group="b", novel=True),
    Relaxed("c", "CsCl", 0.04, group="b", novel=True),
    Relaxed("d", "MgO", -0.02, group="d", novel=True),
    Relaxed("e", "SrO", 0.30, group="e", novel=True),
    Relaxed("f", "BaO", None, group="f", novel=True),
    Relaxed("g", "CaO", 0.00, group=None, novel=False),
]


def test_candidates_are_novel_one_per_class_and_near_the_hull():
    choices = choose(SIX, section(control_share=0), 1)
    assert {name for name, one in choices.items() if one.taken_as == "candidate"} == {"c", "d"}
    assert {one.taken_as for name, one in choices.items() if name not in "cd"} == {None}
    assert {name: one.probability for name, one in choices.items()} == {
        **dict.fromkeys("abefg", 0.0),
        **dict.fromkeys("cd", 1.0),
    }
    # e and f are representatives of their classes as well, although they are far from the hull.
    assert {name for name, one in choices.items() if one.leads_class} == {"c", "d", "e", "f"}


def test_the_reason_of_every_crystal():
    choices = choose(SIX, section(control_share=0, max_crystals=1), 1)
    parts = {
        "a": "known, matches mp-1",
        "b": "matches c, which is nearer to the hull",
        "c": "1 come before it, and max_crystals is 1",
        "d": "candidate 1: novel, the first of its class, e_above_hull -0.020 eV/atom",
        "e": "e_above_hull 0.300 eV/atom is not within 0.1",
        "f": "e_above_hull unknown is not within 0.1",
        "g": "the matcher cannot compare it",
    }
    for name, part in parts.items():
        assert part in choices[name].reason


def test_the_nearest_to_the_hull_come_first():
    crystals = [Relaxed(f"x{n}", "NaCl", 0.01 * (9 - n), f"x{n}", True) for n in range(10)]
    choices = choose(crystals, section(max_crystals=3, control_share=0), 1)
    assert {name for name, one in choices.items() if one.taken_as} == {"x9", "x8", "x7"}


@pytest.mark.parametrize("selection", ["candidates", "e_above_hull"])
def test_crystals_without_a_compound_in_the_hull_come_last(selection):
    """BaF at -2.7 eV/atom led a list, on a hull with barium and fluorine but without BaF2."""
    crystals = [
        Relaxed("bare", "BaF", -2.7, bare_hull=True, group="bare", novel=True),
        Relaxed("near", "NaCl", 0.02, group="near", novel=True),
        Relaxed("far", "CsCl", 0.05, group="far", novel=True),
    ]
    choices = choose(crystals, section(selection=selection, max_crystals=2, control_share=0), 1)
    assert {name for name, one in choices.items() if one.taken_as} == {"near", "far"}
    choices = choose(crystals, section(selection=selection, max_crystals=3, control_share=0), 1)
    assert choices["bare"].taken_as is not None
    if selection == "candidates":
        assert choices["bare"].reason == (
            "candidate 3: novel, the first of its class, e_above_hull -2.700 eV/atom; "
            "the hull has no compound of its elements"
        )


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 5), st.one_of(st.none(), st.floats(-1, 1))),
        max_size=30,
    ),
    st.sampled_from([0, 0.01, 0.05, 0.3, 0.5, 0.99, 1]),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_choices_do_not_depend_on_the_order_of_the_rows(rows, share, most, random):
    """Shards change the order in which rows are read; sizes and probabilities are as stated."""
    crystals = [
        Relaxed(f"{n}", "NaCl", distance, f"{group}", novel, None if novel else "mp-1")
        for n, (novel, group, distance) in enumerate(rows)
    ]
    given_section = section(control_share=share, max_crystals=most)
    choices = choose(crystals, given_section, 3)
    mixed = random.sample(crystals, len(crystals))
    assert choose(mixed, given_section, 3) == choices
    assert set(choices) == {one.name for one in crystals}
    counted = Counter(one.taken_as for one in choices.values())
    others = len(crystals) - counted["candidate"]
    assert counted["candidate"] <= most
    assert others * share <= counted["control"] < others * share + 1
    for one in choices.values():
        if one.taken_as != "candidate":
            assert one.probability == pytest.approx(counted["control"] / others)


def test_a_larger_control_sample_contains_the_smaller_and_the_seed_changes_it():
    crystals = [Relaxed(f"x{n}", "NaCl", 1.0, f"x{n}", True) for n in range(100)]

    def controls(share, seed):
        choices = choose(crystals, section(control_share=share), seed)
        return {name for name, one in choices.items() if one.taken_as == "control"}

    assert len(controls(0.1, 1)) == 10
    assert controls(0.1, 1) < controls(0.3, 1)
    assert controls(0.1, 1) != controls(0.1, 2)


def test_every_crystal_has_the_stated_probability_over_the_seeds():
    """Of 400 seeds, a crystal with p = 0.2 is drawn 80 times, with a deviation of 8."""
    crystals = [Relaxed(f"x{n}", "NaCl", 1.0, f"x{n}", True) for n in range(20)]
    fifth, drawn = section(control_share=0.2), Counter()
    for seed in range(400):
        choices = choose(crystals, fifth, seed)
        drawn.update(name for name, one in choices.items() if one.taken_as)
    assert sum(drawn.values()) == 400 * 4
    assert all(40 <= drawn[one.name] <= 120 for one in crystals)


@pytest.mark.parametrize(
    ("selection", "probability"),
    [("all", 1.0), ("random", 0.3), ("first", None), ("n_ary", None), ("e_above_hull", None)],
)
def test_probabilities_of_the_other_selections(selection, probability):
    crystals = [Relaxed(f"x{n}", "NaCl", 0.0) for n in range(10)]
    choices = choose(crystals, section(selection=selection, max_crystals=3), 1)
    assert {one.probability for one in choices.values()} == {probability}
    assert {one.taken_as for one in choices.values()} <= {"selected", None}
