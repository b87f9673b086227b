"""Both indexes against a brute-force matcher, through any sequence of changes, down to nothing left."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.broker.routing import RetainedIndex, SubscriptionIndex
from gateway.broker.trie import LevelTrie

calm = settings(deadline=None)

level = st.sampled_from(["a", "b", "ab", "", "$s", "$"])
topics = st.lists(level, min_size=1, max_size=5).map("/".join).filter(bool)
filters = st.builds(
    lambda levels, rest: "/".join([*levels, *rest]),
    st.lists(st.one_of(level, st.just("+")), max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool)
subscribers = st.sampled_from(["x", "y", "z"])
subscriptions = st.dictionaries(st.tuples(filters, subscribers), st.integers(0, 2), max_size=12)


def matches(topic_filter: str, topic: str) -> bool:
    """Section 4.7 with a loop over levels, as plain as can be."""
    wanted, given_levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for at, name in enumerate(wanted):
        if name == "#":
            return True
        if at >= len(given_levels) or name not in ("+", given_levels[at]):
            return False
    return len(wanted) == len(given_levels)


def check_tree(trie: LevelTrie[Any], keys: int) -> None:
    """What the radix tree promises: labels of whole levels, a reason for every node, at most two nodes a key."""
    nodes, pending = 0, [trie.root]
    while pending:
        node = pending.pop()
        children = node.children or {}
        for name, child in children.items():
            nodes += 1
            assert child.label.startswith(f"{name}/")
            assert child.label.endswith("/")
            assert child.value is not None or len(child.children or {}) > 1
        assert node.children is None or node.children
        pending.extend(children.values())
    assert nodes <= 2 * keys


@calm
@given(subscriptions, topics)
def test_a_match_is_the_brute_force_match(wanted: dict[tuple[str, str], int], topic: str) -> None:
    """Everyone whose filter matches, with the highest of their QoS, and nobody else."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    expected: dict[str, int] = {}
    for (topic_filter, subscriber), qos in wanted.items():
        index.add(topic_filter, subscriber, qos)
        if matches(topic_filter, topic):
            expected[subscriber] = max(qos, expected.get(subscriber, 0))
    assert index.match(topic) == expected


@calm
@given(st.lists(topics, unique=True, max_size=15), filters)
def test_retained_topics_are_the_brute_force_match(stored: list[str], topic_filter: str) -> None:
    """Every topic that the filter matches, once."""
    index: RetainedIndex[str] = RetainedIndex(len)
    for topic in stored:
        index.set(topic, topic.upper())
    found = list(index.match(topic_filter))
    assert sorted(found) == sorted((topic, topic.upper()) for topic in stored if matches(topic_filter, topic))


@calm
@given(st.lists(st.tuples(st.booleans(), filters, subscribers, st.integers(0, 2)), max_size=30), topics)
def test_subscriptions_come_and_go_without_a_trace(changes: list[tuple[bool, str, str, int]], topic: str) -> None:
    """Through any changes the index answers like a plain dict, and ends as empty as it began."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    model: dict[tuple[str, str], int] = {}
    for adding, topic_filter, subscriber, qos in changes:
        if adding:
            index.add(topic_filter, subscriber, qos)
            model[topic_filter, subscriber] = qos
        else:
            known = model.pop((topic_filter, subscriber), None) is not None
            assert index.remove(topic_filter, subscriber) is known
        assert len(index) == len(model)
        check_tree(index._wild, len({name for name, _ in model if "+" in name or "#" in name}))
    expected: dict[str, int] = {}
    for (topic_filter, subscriber), qos in model.items():
        if matches(topic_filter, topic):
            expected[subscriber] = max(qos, expected.get(subscriber, 0))
    assert index.match(topic) == expected
    for topic_filter, subscriber in model:
        assert index.remove(topic_filter, subscriber)
    assert len(index) == 0
    assert index._wild.root.children is None
    assert index._exact == {}


@calm
@given(st.lists(st.tuples(st.booleans(), topics, st.binary(max_size=4)), max_size=30), filters)
def test_retained_messages_come_and_go_without_a_trace(
    changes: list[tuple[bool, str, bytes]], topic_filter: str
) -> None:
    """The same, with the bytes accounted for at every step."""
    index: RetainedIndex[bytes] = RetainedIndex(len)
    model: dict[str, bytes] = {}
    for setting, topic, message in changes:
        if setting:
            index.set(topic, message)
            model[topic] = message
        else:
            assert index.remove(topic) is (model.pop(topic, None) is not None)
        assert (len(index), index.total_bytes) == (len(model), sum(map(len, model.values())))
        assert index.get(topic) == model.get(topic)
        check_tree(index._topics, len(model))
    assert dict(index.match(topic_filter)) == {
        topic: message for topic, message in model.items() if matches(topic_filter, topic)
    }
    for topic in model:
        assert index.remove(topic)
    assert (len(index), index.total_bytes) == (0, 0)
    assert index._topics.root.children is None
