"""Names on the other side: level by level, within the entry's own filter, refused when they could go astray."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.topics import matches, parse_filter
from gateway.uplink.topic_map import TopicMap, parse_publish, parse_subscribe


def up(local: str, remote: str) -> TopicMap:
    return parse_publish([{"local": local, "remote": remote}]).named("gw-1")


def down(remote: str, local: str) -> TopicMap:
    return parse_subscribe([{"remote": remote, "local": local}]).named("gw-1")


def name(topics: TopicMap, topic: str) -> str | None:
    found = topics.find(topic)
    return found[1] if found is not None else None


@pytest.mark.parametrize(
    ("local", "remote", "topic", "expected"),
    [
        ("devices/#", "site/{gateway}/devices/#", "devices/press-07/state", "site/gw-1/devices/press-07/state"),
        ("devices/#", "site/{gateway}/devices/#", "devices", "site/gw-1/devices"),
        ("devices/#", "x/#", "devices/", "x/"),
        ("devices/+/state", "state/+", "devices/press-07/state", "state/press-07"),
        ("a/+/b/+/#", "+/{gateway}/+/#", "a/1/b/2/c/d", "1/gw-1/2/c/d"),
        ("state", "site/{gateway}/state", "state", "site/gw-1/state"),
        ("devices/#", "devices/#", "devices/devices/#x", None),
        ("#", "all/#", "a/b", "all/a/b"),
    ],
)
def test_a_topic_is_named_level_by_level(local: str, remote: str, topic: str, expected: str | None) -> None:
    """What a wildcard captured stands where the other filter has that wildcard."""
    assert name(up(local, remote), topic) == expected


@pytest.mark.parametrize(
    ("local", "topic"),
    [
        ("devices/#", "device/press-07"),
        ("devices/#", "devicesx/press-07"),
        ("devices/+", "devices/a/b"),
        ("devices/+", "devices"),
        ("#", "$SYS/uptime"),
        ("state", "state/x"),
    ],
)
def test_a_topic_that_the_entry_does_not_match_has_no_name(local: str, topic: str) -> None:
    """The twin: nothing goes up but what the map names."""
    assert name(up(local, local), topic) is None


@pytest.mark.parametrize(
    ("remote", "local", "topic"),
    [
        ("site/{gateway}/commands/#", "#", "site/gw-1/commands/$SYS/uptime"),
        ("site/{gateway}/commands/#", "#", "site/gw-1/commands"),
        ("site/{gateway}/commands/#", "devices/#", "site/gw-2/commands/press-07/x"),
        ("site/{gateway}/commands/+", "devices/+", "site/gw-1/commands/press-07/x"),
        ("+/x", "+", "$SYS/x"),
    ],
)
def test_a_command_reaches_nothing_outside_of_its_local_filter(remote: str, local: str, topic: str) -> None:
    """Whatever comes from upstream, a local topic that the entry's own filter does not match is not reached."""
    assert name(down(remote, local), topic) is None


def test_a_command_within_its_filter_is_named() -> None:
    """The allow twin."""
    assert name(down("site/{gateway}/commands/#", "devices/#"), "site/gw-1/commands/a/b") == "devices/a/b"


levels = st.text(alphabet="ab$/+#\0é{}", max_size=12)


@given(levels)
def test_no_topic_is_ever_named_outside_of_the_target_filter(topic: str) -> None:
    """Any text at all: what comes out is a topic name that the target filter matches."""
    for topics, target in ((down("a/#", "b/+/#".replace("+/", "")), "b/#"), (down("+/#", "+/#"), "+/#")):
        found = name(topics, topic)
        if found is not None:
            assert matches(parse_filter(target), parse_filter(found))
            assert not set("+#\0") & set(found)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("devices/#", "no list"),
        ([{"local": "a/#"}], "entry that is not"),
        ([{"local": "a/#", "remote": "b/#", "qos": 2}], "neither 0 nor 1"),
        ([{"local": "a/#", "remote": "b/#", "qos": True}], "neither 0 nor 1"),
        ([{"local": "a/#", "remote": "b/+"}], "wildcards differ"),
        ([{"local": "a/+/#", "remote": "b/#"}], "wildcards differ"),
        ([{"local": "a/#", "remote": "b/#", "retain": True}], "entry that is not"),
        ([{"local": "a/#/b", "remote": "b/#"}], "before the end"),
        ([{"local": "a/#", "remote": "b/{site}/#"}], "brace"),
        ([{"local": "a/#", "remote": "b/x{gateway}/#"}], "brace"),
        ([{"local": "$share/g/a", "remote": "b"}], "shared"),
        ([{"local": 7, "remote": "b"}], "no topic filter"),
        ([{"local": "a/#", "remote": "b/#"}, {"local": "a/+", "remote": "c/+"}], "both match 'a/any'"),
        ([{"local": f"a/{n}", "remote": "b"} for n in range(101)], "at most 100"),
    ],
)
def test_a_map_that_could_go_astray_is_refused(value: Any, says: str) -> None:
    """Each fault of a map is found when it is read, with what is wrong."""
    with pytest.raises(ValueError, match=says):
        parse_publish(value)


def test_commands_into_the_brokers_own_tree_are_refused() -> None:
    """`$SYS` and its like are the gateway's own word."""
    with pytest.raises(ValueError, match=r"starts with '\$'"):
        parse_subscribe([{"remote": "x/#", "local": "$SYS/#"}])


def test_the_qos_of_an_entry_is_one_unless_it_says_zero() -> None:
    """At least once is the default; an entry may ask for less."""
    both = parse_publish([{"local": "a", "remote": "a"}, {"local": "b", "remote": "b", "qos": 0}])
    assert [entry.qos for entry in both.entries] == [1, 0]
