"""What may differ when a run is resumed."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from agent.process.changes import find_differences

NAMES = st.sampled_from("abcd")
VALUES = st.none() | st.booleans() | st.integers(0, 3) | st.lists(st.integers(0, 1), max_size=2)
TREES = st.recursive(
    st.dictionaries(NAMES, VALUES),
    lambda inner: st.dictionaries(NAMES, VALUES | inner | st.lists(inner, max_size=2)),
    max_leaves=12,
)


def refused(recorded, present, defaults):
    found = find_differences(recorded, present, defaults)
    return [difference.key for difference in found if difference.kind != "gone"]


@given(TREES, TREES)
def test_the_same_settings_differ_in_nothing(settings, defaults):
    assert list(find_differences(settings, settings, defaults)) == []


@given(TREES, st.data())
def test_settings_at_their_defaults_may_come_and_settings_may_go(settings, data):
    recorded = copy.deepcopy(settings)
    for node in nodes(recorded):
        for name in data.draw(st.sets(st.sampled_from(sorted(node)))) if node else ():
            del node[name]
    assert refused(recorded, settings, settings) == []
    assert refused(settings, recorded, {}) == []


@given(TREES, st.data())
def test_another_value_is_refused_and_named(settings, data):
    paths = [path for path in leaves(settings) if path]
    if not paths:
        return
    *inner, last = data.draw(st.sampled_from(paths))
    present = copy.deepcopy(settings)
    node = present
    for step in inner:
        node = node[step]
    node[last] = "another"
    key = ".".join(map(str, (*inner, last)))
    assert refused(settings, present, settings) == [key]
    without = copy.deepcopy(settings)
    node = without
    for step in inner:
        node = node[step]
    if isinstance(node, dict):
        del node[last]
        assert refused(without, present, settings) == [key]


def nodes(tree):
    """Every dict of a tree."""
    if isinstance(tree, dict):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if is_table(tree) else ():
        yield from nodes(value)


def leaves(tree, path=()):
    """Paths of every value that is no dict and no list of dicts."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from leaves(value, (*path, name))
    elif is_table(tree):
        for index, value in enumerate(tree):
            yield from leaves(value, (*path, index))
    else:
        yield path


def is_table(tree):
    return isinstance(tree, list) and bool(tree) and all(isinstance(v, dict) for v in tree)
