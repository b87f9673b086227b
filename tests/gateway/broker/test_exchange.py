"""The exchange: subscriptions, retained messages and sessions of one broker, without a connection."""

from __future__ import annotations

import pytest

from gateway.broker import exchange as module
from gateway.broker.exchange import (
    MAX_STORED_SESSIONS,
    RETAINED_OVERHEAD,
    RETAINED_SHARE,
    SUBACK_FAILURE,
    Exchange,
    ExchangeLimits,
)
from gateway.policy import Decision
from mtls.errors import Reason
from tests.gateway.broker.doubles import linked, message, session


def exchange(levels: int = 8, subscriptions: int = 3, retained: int = 100_000) -> Exchange:
    return Exchange(ExchangeLimits(levels, subscriptions, retained))


def retained(made: Exchange) -> list[str]:
    return sorted(made.retained)


def test_a_topic_of_the_limit_is_handled_and_one_level_more_is_not() -> None:
    """For publishing and for subscribing, before the policy is asked."""
    made, client = exchange(levels=3), session()
    assert made.decide_publish(client, "a/b/c", False).allowed
    assert made.decide_subscribe(client, "a/+/#").allowed
    for deep in ("a/b/c/", "a/b/c/d/e/f", "/" * 400):
        denied = made.decide_publish(client, deep, False)
        assert denied == Decision(False, Reason.PUBLISH_DENIED, "", "limits.max_topic_levels", 0, "")
        denied = made.decide_subscribe(client, f"{deep}/#")
        assert denied == Decision(False, Reason.SUBSCRIBE_DENIED, "", "limits.max_topic_levels", 0, "")


def test_the_policy_decides_the_rest() -> None:
    """A retained PUBLISH is asked as such."""
    made, client = exchange(), session("c", "denied", "retain kept")
    assert not made.decide_publish(client, "denied", False).allowed
    assert not made.decide_subscribe(client, "denied").allowed
    assert made.decide_publish(client, "kept", False).allowed
    assert not made.decide_publish(client, "kept", True).allowed


def test_subscriptions_of_a_session_are_bounded() -> None:
    """Beyond the bound a new filter is refused, one that exists may be replaced."""
    made, client = exchange(subscriptions=2), session()
    for topic_filter in ("a", "b"):
        assert made.decide_subscribe(client, topic_filter).allowed
        made.subscribe(client, topic_filter, 0)
    full = Decision(False, Reason.SUBSCRIBE_DENIED, "", "limits.max_subscriptions_per_session", 0, "")
    assert made.decide_subscribe(client, "c") == full
    made.subscribe(client, "beyond", 0)  # as after a reload with a lower limit
    assert made.decide_subscribe(client, "c") == full
    made.unsubscribe(client, ["beyond"])
    assert made.decide_subscribe(client, "b").allowed
    assert made.decide_subscribe(session("other"), "c").allowed
    made.unsubscribe(client, ["a"])
    assert made.decide_subscribe(client, "c").allowed


def test_a_route_has_those_who_are_subscribed_and_may_receive() -> None:
    """With the highest QoS of their filters, and of the version of now."""
    made = exchange()
    one, two, denied = session("1"), session("2"), session("3", "a/b")
    for client, topic_filter, qos in ((one, "a/#", 0), (one, "a/+", 2), (two, "a/b", 1), (denied, "#", 1)):
        made.subscribe(client, topic_filter, qos)
    route = made.route("a/b")
    assert (route.topic, dict(route.targets), route.version) == ("a/b", {one: 2, two: 1}, made.version)
    assert dict(made.route("a/c").targets) == {one: 2, denied: 1}
    assert made.route("b").targets == ((denied, 1),)


def test_the_version_grows_with_every_change_of_subscriptions_and_rights() -> None:
    """And with nothing else: a remembered route is as good as its version."""
    made, client = exchange(), session()
    versions = [made.version]

    def noted() -> None:
        versions.append(made.version)

    made.subscribe(client, "a", 0)
    noted()
    made.subscribe(client, "a", 1)
    noted()
    made.unsubscribe(client, ["a"])
    noted()
    made.changed()
    noted()
    assert versions == [1, 2, 3, 4, 5]
    made.unsubscribe(client, ["a", "never"])
    made.retain(message())
    made.open(client)
    assert made.version == 5


def test_unsubscribing_ends_filter_route_and_retained_messages_on_their_way() -> None:
    """Of the filters that existed; their names are given back."""
    made, client = exchange(), session()
    linked(client)
    for topic_filter in ("a", "b", "c"):
        made.subscribe(client, topic_filter, 1)
    client.start_walk("a", iter("x"), 0)
    client.start_walk("c", iter("x"), 0)
    assert made.unsubscribe(client, ["a", "never", "b"]) == ["a", "b"]
    assert (list(client.subscriptions), list(client.walks or ())) == (["c"], ["c"])
    assert (made.route("a").targets, made.route("c").targets) == ((), ((client, 1),))
    assert len(made.subscriptions) == 1


# retained messages


def test_a_retained_message_replaces_the_one_before_and_an_empty_one_removes_it() -> None:
    """Removing what is not there is no fault."""
    made = exchange()
    first, second = message("t", b"1"), message("t", b"22")
    assert (made.retain(first), made.retain(second)) == (True, True)
    assert (made.retained.get("t"), made.retained_refused) == (second, 0)
    assert made.retain(message("t", b""))
    assert made.retain(message("t", b""))
    assert (retained(made), made.retained.total_bytes) == ([], 0)


def test_retained_messages_are_bounded_in_bytes() -> None:
    """Exactly; what does not fit is counted and takes its predecessor with it, and what was replaced makes room."""
    size = 1 + 100 + RETAINED_OVERHEAD
    made = exchange(retained=size)
    assert not made.retain(message("a", b"x" * 101))
    assert made.retain(message("a", b"x" * 100))
    assert made.retained.total_bytes == size
    made = exchange(retained=2 * size)
    assert made.retain(message("a", b"x" * 100))
    assert made.retain(message("b", b"x" * 100))
    assert not made.retain(message("c", b"x"))
    assert (retained(made), made.retained_refused) == (["a", "b"], 1)
    assert made.retain(message("b", b"y" * 100))
    assert not made.retain(message("b", b"x" * 101))
    assert (retained(made), made.retained_refused, made.retained.total_bytes) == (["a"], 2, size)
    assert made.retain(message("b", b"x" * 100))


def test_one_identity_retains_within_its_share_and_leaves_the_rest_to_others() -> None:
    """A topic counts for who wrote it last; what no device wrote counts for nobody."""
    body = b"x" * 100
    size = RETAINED_OVERHEAD + 1 + len(body)
    made = exchange(retained=2 * RETAINED_SHARE * size)
    assert [made.retain(message(topic, body), "loud") for topic in "abc"] == [True, True, False]
    assert made.retain(message("a", body), "loud")
    assert made.retain(message("d", body), "quiet")
    assert made.retain(message("a", body), "quiet")
    assert not made.retain(message("e", body), "quiet")
    assert made.retain(message("c", body), "loud")
    assert made.retain(message("d", b""), "loud")
    assert made.retain(message("e", body), "quiet")
    assert [made.retain(message(topic, body)) for topic in "12345"] == [True, True, True, True, False]
    assert made.retained.total_bytes == 8 * size


def test_a_new_subscription_finds_what_is_retained_when_it_is_made() -> None:
    """Not what was retained on a new topic afterwards, which it got live; a topic replaced since is still found."""
    made = exchange()
    for topic in ("a/1", "a/2", "b"):
        made.retain(message(topic, b"1"))
    topics = made.retained_topics("a/#")
    made.retain(message("a/3", b"1"))
    made.retain(message("a/1", b"2"))
    made.retain(message("a/2", b""))
    assert list(topics) == ["a/1"]
    assert sorted(made.retained_topics("a/#")) == ["a/1", "a/3"]


# sessions


def test_discarding_a_session_forgets_everything_of_it() -> None:
    """Subscriptions, messages and its place in the table."""
    made, client = exchange(), session()
    made.open(client)
    made.subscribe(client, "a", 1)
    client.deliver(message(), 1)
    made.discard(client)
    assert (len(made.subscriptions), len(made.sessions), client.queued, client.subscriptions) == (0, 0, 0, {})
    assert made.route("a").targets == ()


def test_an_identity_leaves_so_many_sessions_behind_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest unused goes; live ones and those of others are no matter of it."""
    monkeypatch.setattr(module, "MAX_STORED_SESSIONS", 2)
    made = exchange()
    live, foreign = session("live"), session("foreign", name="dev-b")
    linked(live)
    for client in (live, foreign):
        made.open(client)
    for name, when in (("old", 2.0), ("oldest", 1.0)):
        stored = session(name)
        made.open(stored)
        stored.detach(when)
    made.open(session("new"))
    assert {client.client_id for client in made.sessions} == {"live", "foreign", "old", "new"}
    for client in made.sessions:
        client.disconnected_at = 9.0
    for name in ("beyond", "the bound"):
        made.sessions.add(session(name))
    made.open(session("newest"))
    assert len(made.sessions) == 6
    assert {"beyond", "the bound"} - {client.client_id for client in made.sessions} == {"beyond"}


def test_the_bounds_are_the_documented_ones() -> None:
    """Changing one is a decision, not a slip; 0x80 is the specification's [MQTT-3.9.3-2]."""
    assert (MAX_STORED_SESSIONS, RETAINED_OVERHEAD, SUBACK_FAILURE) == (1000, 512, 0x80)


def test_live_sessions_of_an_identity_are_those_with_a_link() -> None:
    """In the table and connected."""
    made = exchange()
    live, stored, foreign = session("live"), session("stored"), session("foreign", name="dev-b")
    for client in (live, stored, foreign):
        made.open(client)
    linked(live)
    linked(foreign)
    assert (made.live_of("dev-a"), made.live_of("dev-b"), made.live_of("nobody")) == ([live], [foreign], [])
