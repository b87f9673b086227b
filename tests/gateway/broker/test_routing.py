"""The subscription index and the retained index, rule by rule."""

from __future__ import annotations

import tracemalloc

import pytest

from gateway.broker.routing import RetainedIndex, SubscriptionIndex

# Section 4.7 by example: filter, topic, whether they match.
MATCHES = [
    ("sport/tennis/player1/#", "sport/tennis/player1", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/ranking", True),
    ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
    ("sport/#", "sport", True),
    ("sport/#", "sporty", False),
    ("sport/#", "spor", False),
    ("sport/tennis/+", "sport/tennis/player1", True),
    ("sport/tennis/+", "sport/tennis/player1/ranking", False),
    ("sport/+", "sport", False),
    ("sport/+", "sport/", True),
    ("+/+", "/finance", True),
    ("/+", "/finance", True),
    ("+", "/finance", False),
    ("+", "finance", True),
    ("#", "/", True),
    ("#", "a/b/c", True),
    ("/#", "/", True),
    ("/#", "a", False),
    ("#", "$SYS/broker/uptime", False),
    ("#", "$SYS", False),
    ("+/#", "$SYS/broker", False),
    ("+/broker/uptime", "$SYS/broker/uptime", False),
    ("+", "$SYS", False),
    ("$SYS/#", "$SYS/broker/uptime", True),
    ("$SYS/#", "$SYS", True),
    ("$SYS/+/uptime", "$SYS/broker/uptime", True),
    ("$SYS/broker/uptime", "$SYS/broker/uptime", True),
    ("a/+", "a/$b", True),
    ("a/#", "a/$b", True),
    ("a/b", "a/b", True),
    ("a/b", "A/b", False),
    ("a/b", "a/b/", False),
    ("a/b/", "a/b", False),
    ("a//b", "a//b", True),
    ("a/+/b", "a//b", True),
    ("a/+/b", "a/b", False),
    ("a/+/b/#", "a/x/b", True),
    ("a/+/b/#", "a/x/b/c/d", True),
    ("a/+/b/#", "a/x/c", False),
    ("a/+/b/#", "a", False),
    ("a/+/b/#", "a/x", False),
    ("a/#", "a//", True),
    ("devices/x/#", "devices/xy/state", False),
    ("devices/x/#", "devices/x/../y/state", True),
    ("a", "\ufeffa", False),
    ("é", "e\u0301", False),
]


@pytest.mark.parametrize(("topic_filter", "topic", "expected"), MATCHES)
def test_a_subscription_matches_as_section_4_7_says(topic_filter: str, topic: str, expected: bool) -> None:
    """[MQTT-4.7.1-2, -3, MQTT-4.7.2-1, MQTT-4.7.3-4], alone in the index."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    index.add(topic_filter, "me", 1)
    assert index.match(topic) == ({"me": 1} if expected else {})


@pytest.mark.parametrize(("topic_filter", "topic", "expected"), MATCHES)
def test_a_retained_message_is_found_as_section_4_7_says(topic_filter: str, topic: str, expected: bool) -> None:
    """The same table from the other side."""
    index: RetainedIndex[bytes] = RetainedIndex(len)
    index.set(topic, b"message")
    assert list(index.match(topic_filter)) == ([(topic, b"message")] if expected else [])


def test_all_filters_together_match_what_each_matches_alone() -> None:
    """In one index, with the labels cut where the filters part."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    for topic_filter, _, _ in MATCHES:
        index.add(topic_filter, topic_filter, 0)
    for topic_filter, topic, expected in MATCHES:
        assert (topic_filter in index.match(topic)) is expected


def test_wildcards_below_a_shared_path_need_the_whole_path() -> None:
    """Filters that share several levels share one label; a topic that leaves it midway finds none of them."""
    for path, hit, misses in (
        ("a/b", "a/b", ("a", "a/c", "a/c/d", "b/b", "a/bb")),
        ("+/b", "x/b", ("x", "x/c", "x/c/d", "b")),
        ("a/+/c", "a/x/c", ("a", "a/x", "a/x/d", "a/x/d/e")),
    ):
        index: SubscriptionIndex[str] = SubscriptionIndex()
        for ending in ("#", "+", "+/x", "+/#"):
            index.add(f"{path}/{ending}", ending, 0)
        assert index.match(hit).keys() == {"#"}
        assert index.match(f"{hit}/x").keys() == {"#", "+", "+/#"}
        assert index.match(f"{hit}/y/x").keys() == {"#", "+/x", "+/#"}
        for miss in misses:
            assert index.match(miss) == {}


def test_levels_and_topics_may_be_long() -> None:
    """Nothing depends on a topic having fewer than some hundred characters or levels."""
    long, many = "x" * 300, "/".join("x" * 300)
    pluses = "/".join("+" * 300)
    index: SubscriptionIndex[str] = SubscriptionIndex()
    retained: RetainedIndex[str] = RetainedIndex(len)
    for topic_filter in (f"{long}/#", f"{long}/+", "+/y", pluses, f"{pluses}/y", f"{pluses}/#"):
        index.add(topic_filter, topic_filter, 0)
    deeper = "/".join("y" * 310)
    for topic in (long, many, f"{many}/x", deeper):
        retained.set(topic, topic)
    assert index.match(long).keys() == {f"{long}/#"}
    assert index.match(f"{long}/y").keys() == {f"{long}/#", f"{long}/+", "+/y"}
    assert index.match(many).keys() == {pluses, f"{pluses}/#"}
    assert index.match(f"{many}/y").keys() == {f"{pluses}/#", f"{pluses}/y"}
    assert sorted(retained.match(pluses)) == [(many, many)]
    assert sorted(topic for topic, _ in retained.match(f"{pluses}/#")) == [many, f"{many}/x", deeper]
    assert list(retained.match("+")) == [(long, long)]


def test_overlapping_filters_give_one_entry_with_the_highest_qos() -> None:
    """[MQTT-3.3.5-1], whatever the order of the subscriptions."""
    for qos in ((0, 1, 2, 1), (2, 1, 0, 0), (1, 2, 0, 1), (0, 0, 0, 2), (1, 0, 0, 0)):
        index: SubscriptionIndex[str] = SubscriptionIndex()
        for topic_filter, level in zip(("a/b", "a/+", "#", "+/b/#"), qos, strict=True):
            index.add(topic_filter, "me", level)
        index.add("a/b", "other", 1)
        assert index.match("a/b") == {"me": max(qos), "other": 1}


def test_each_subscriber_of_a_filter_is_found() -> None:
    """Subscribers of one filter do not hide each other, wild or exact."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    for topic_filter in ("a/b", "a/+"):
        for subscriber in ("x", "y", "z"):
            index.add(topic_filter, f"{subscriber} {topic_filter}", 2)
    assert len(index) == 6
    assert index.match("a/b") == {f"{s} {f}": 2 for s in "xyz" for f in ("a/b", "a/+")}


@pytest.mark.parametrize("topic_filter", ["a/b", "a/+", "a/#", "#", "+"])
def test_the_same_subscription_again_replaces_its_qos(topic_filter: str) -> None:
    """[MQTT-3.8.4-3]: up or down, and it is still one subscription."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    topic = "a" if topic_filter == "+" else "a/b"
    for qos in (1, 2, 0):
        index.add(topic_filter, "me", qos)
        assert index.match(topic) == {"me": qos}
        assert len(index) == 1
    assert index.remove(topic_filter, "me")
    assert index.match(topic) == {}
    assert len(index) == 0


@pytest.mark.parametrize("topic_filter", ["a/b", "a/+/c", "a/#", "#"])
def test_only_an_existing_subscription_can_be_removed(topic_filter: str) -> None:
    """[MQTT-3.10.4-1]: character by character, and only one's own."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    assert index.remove(topic_filter, "me") is False
    index.add(topic_filter, "me", 0)
    for other in ("a/c", "a", "a/+", "a/+/#", "a/b/#", "+/#", "a/+/c/d", "a/+/d"):
        assert index.remove(other, "me") is False
    assert index.remove(topic_filter, "other") is False
    assert len(index) == 1
    assert index.remove(topic_filter, "me") is True
    assert index.remove(topic_filter, "me") is False
    assert len(index) == 0


def test_removing_one_subscriber_leaves_the_others() -> None:
    """A filter lives as long as one subscriber has it."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    for topic_filter in ("a/b", "a/+"):
        index.add(topic_filter, "x", 1)
        index.add(topic_filter, "y", 2)
        assert index.remove(topic_filter, "x")
    assert index.match("a/b") == {"y": 2}
    assert len(index) == 2


def test_subscribers_are_told_apart_by_identity() -> None:
    """Sessions are hashable objects without an equality of their own."""

    class Session:
        pass

    first, second = Session(), Session()
    index: SubscriptionIndex[Session] = SubscriptionIndex()
    index.add("a/#", first, 0)
    index.add("a/#", second, 1)
    assert index.match("a") == {first: 0, second: 1}


def test_a_match_belongs_to_the_caller() -> None:
    """Changing the answer, or the index afterwards, changes nothing on the other side."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    for topic_filter in ("a", "+", "#"):
        index.add(topic_filter, "me", 1)
        found = index.match("a")
        found["intruder"] = 2
        assert index.match("a") == {"me": 1}
        index.remove(topic_filter, "me")
        assert found == {"me": 1, "intruder": 2}


# the retained index


def test_a_retained_message_replaces_the_one_before() -> None:
    """One message a topic, and the bytes of the last one count."""
    index: RetainedIndex[bytes] = RetainedIndex(len)
    index.set("a/b", b"first")
    index.set("a/b", b"2")
    assert index.get("a/b") == b"2"
    assert list(index.match("#")) == [("a/b", b"2")]
    assert (len(index), index.total_bytes) == (1, 1)


def test_a_removed_message_is_gone_from_every_answer() -> None:
    """[MQTT-3.3.1-10]: also for the filter that had found it."""
    index: RetainedIndex[bytes] = RetainedIndex(len)
    index.set("a/b", b"123")
    index.set("a/c", b"12")
    assert index.remove("a/b") is True
    assert index.remove("a/b") is False
    assert index.remove("a") is False
    assert index.get("a/b") is None
    assert list(index.match("a/b")) == []
    assert list(index.match("a/+")) == [("a/c", b"12")]
    assert (len(index), index.total_bytes) == (1, 2)


def test_a_filter_finds_every_topic_below_it_once() -> None:
    """`#` takes parent and all levels below, `+` exactly one level; `$` topics stay aside."""
    topics = ["a", "a/b", "a/b/c", "a/c", "b", "b/b", "$SYS/a", "$SYS", "/", "/a", "ab", "a/"]
    index: RetainedIndex[str] = RetainedIndex(len)
    for topic in topics:
        index.set(topic, topic)

    def found(topic_filter: str) -> list[str]:
        return sorted(topic for topic, _ in index.match(topic_filter))

    assert found("#") == sorted(topic for topic in topics if not topic.startswith("$"))
    assert found("+/#") == found("#")
    assert found("a/#") == ["a", "a/", "a/b", "a/b/c", "a/c"]
    assert found("+") == ["a", "ab", "b"]
    assert found("+/+") == ["/", "/a", "a/", "a/b", "a/c", "b/b"]
    assert found("+/b") == ["a/b", "b/b"]
    assert found("a/+/#") == ["a/", "a/b", "a/b/c", "a/c"]
    assert found("$SYS/#") == ["$SYS", "$SYS/a"]
    assert found("$SYS/+") == ["$SYS/a"]
    assert found("a/b") == ["a/b"]
    assert found("a/x") == []
    assert found("x/#") == []


def test_an_answer_stays_as_it_was_when_the_index_changes() -> None:
    """A subscriber's retained messages are sent over time; retained messages come and go meanwhile."""
    index: RetainedIndex[bytes] = RetainedIndex(len)
    for topic in ("a/b", "a/c", "a/d"):
        index.set(topic, b"x")
    for topic_filter in ("a/+", "a/b"):
        answer = index.match(topic_filter)
        next(answer)
        index.remove("a/c")
        index.set("a/e", b"y")
        assert all(message == b"x" for _, message in answer)


def test_a_message_that_counts_as_false_is_a_message() -> None:
    """An empty value is not the absence of one."""
    index: RetainedIndex[bytes] = RetainedIndex(len)
    index.set("a", b"")
    assert index.get("a") == b""
    assert list(index.match("+")) == [("a", b"")]
    assert list(index.match("a")) == [("a", b"")]
    assert len(index) == 1


# cost

DEEP = "/" * 65_535


def test_a_topic_of_tens_of_thousands_of_levels_is_only_long() -> None:
    """65,536 levels: no recursion, and the memory of the bytes, not of as many objects."""
    subscriptions: SubscriptionIndex[str] = SubscriptionIndex()
    retained: RetainedIndex[str] = RetainedIndex(len)
    wild = DEEP[:-2] + "/#"
    pluses = "+/" * 32_767 + "+"
    tracemalloc.start()
    for number in range(20):
        subscriptions.add(DEEP[:-9] + f"{number:05}/#", "deep", 1)
        retained.set(DEEP[:-9] + f"{number:05}", "deep")
    subscriptions.add(wild, "all", 1)
    subscriptions.add(pluses, "plus", 1)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Twenty of each, of which the twigs differ: about a copy of the text as key and as label where they part.
    assert used < 20 * 2 * 65_535 + 4 * 65_535
    assert subscriptions.match(DEEP) == {"all": 1}
    assert subscriptions.match("/" * 32_767) == {"plus": 1}
    assert subscriptions.match(DEEP[:-9] + "00007/a") == {"deep": 1}
    assert len(list(retained.match(DEEP[:-9] + "#"))) == 20
    assert len(list(retained.match("#"))) == 20
    assert list(retained.match(DEEP[:-9] + "+/a")) == []
    for number in range(20):
        assert subscriptions.remove(DEEP[:-9] + f"{number:05}/#", "deep")
        assert retained.remove(DEEP[:-9] + f"{number:05}")
    assert subscriptions.remove(wild, "all")
    assert subscriptions.remove(pluses, "plus")
    assert (len(subscriptions), len(retained)) == (0, 0)
