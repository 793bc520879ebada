"""The keys that differ between two settings."""

from hypothesis import given
from hypothesis import strategies as st

from flowllm.config.settings_diff import changed_keys

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=8,
)
SETTINGS = st.dictionaries(st.text("abc", min_size=1, max_size=2), VALUES, max_size=4)


def lines(was: dict, now: dict) -> list[str]:
    return [one.line() for one in changed_keys(was, now)]


def test_a_nested_key_is_named_by_its_path():
    was = {"seed": 1, "train_rfm": {"learning_rate": 0.001, "steps": 10}}
    now = {"seed": 1, "train_rfm": {"learning_rate": 0.0001, "steps": 10}}
    assert lines(was, now) == ["train_rfm.learning_rate: 0.001 → 0.0001"]


def test_the_changes_are_sorted_by_key():
    assert lines({"b": 1, "a": {"x": 1}}, {"b": 2, "a": {"x": 2}}) == ["a.x: 1 → 2", "b: 1 → 2"]


def test_a_list_is_compared_as_a_whole():
    assert lines({"a": [1, 2]}, {"a": [1, 3]}) == ["a: [1, 2] → [1, 3]"]


def test_a_key_that_one_side_lacks_is_a_change():
    assert lines({"a": {"x": None}}, {"a": {}}) == ["a.x: null → (no such key)"]
    assert lines({}, {"a": {"x": "é"}}) == ['a: (no such key) → {"x": "é"}']


def test_true_and_one_differ():
    assert lines({"a": True}, {"a": 1}) == ["a: true → 1"]


@given(SETTINGS)
def test_equal_settings_have_no_changes(settings):
    assert changed_keys(settings, settings) == []


@given(SETTINGS, SETTINGS)
def test_the_opposite_direction_has_the_same_keys_with_the_values_exchanged(one, other):
    back = [(found.key, found.now, found.was) for found in changed_keys(other, one)]
    assert [(found.key, found.was, found.now) for found in changed_keys(one, other)] == back
