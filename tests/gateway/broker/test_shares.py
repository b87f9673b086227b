"""Shares: the sums of an identity's sessions are what they hold, whatever happens, and bound what they cost."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import count

import pytest

from gateway.broker import shares as module
from gateway.broker import stored_session
from gateway.broker.exchange import Exchange, ExchangeLimits
from gateway.broker.sessions import Message, Session
from gateway.broker.shares import (
    MAX_QUEUED_BYTES,
    MAX_SUBSCRIPTION_BYTES,
    Share,
    in_flight_bytes,
    subscription_bytes,
)
from gateway.broker.stored_session import MESSAGE_ROW_BYTES, Row, StoredSession
from gateway.store.rows import Stored
from tests.gateway.broker.doubles import grants, linked, message, peer, session


class Shelf(stored_session.Shelf):
    """A store that gives numbers and has room."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.asked: list[Callable[[Sequence[Row]], None]] = []

    def has_share(self, session: StoredSession, size: int) -> bool:
        return True

    def keep(self, session: int, message: Message, qos: int, retain: bool, packet_id: int, size: int) -> int:
        return next(self._numbers)

    def in_flight(self, session: int, then: Callable[[Sequence[Row]], None]) -> None:
        self.asked.append(then)


def stored(client_id: str, shelf: Shelf | None = None) -> StoredSession:
    rights = grants(queue_messages=5)
    return StoredSession(peer(), client_id, rights, window=2, shelf=shelf or Shelf(), number=1)


def in_memory_bytes(one: Session) -> int:
    """What a session holds in memory for later, added up anew."""
    if one.durable:
        return sum(outgoing[0].size + MESSAGE_ROW_BYTES for outgoing in one.queue or ())
    return sum(outgoing[0].cost_bytes for outgoing in one.queue or ()) + (in_flight_bytes(one) if not one.link else 0)


def in_memory(client_id: str) -> Session:
    return session(client_id, window=2, queue_messages=5)


def exchange() -> Exchange:
    return Exchange(ExchangeLimits(128, 100, 1_000_000))


@pytest.mark.parametrize("make", [in_memory, stored], ids=["in memory", "stored"])
def test_the_sums_are_what_the_sessions_hold(make: Callable[[str], Session]) -> None:
    """After any deliveries, acknowledgements, subscriptions, connections and ends; nothing is left of the last one."""
    chosen = random.Random(3)  # noqa: S311 - a sample
    made, sessions, names = exchange(), list[Session](), count()

    def step(one: Session) -> None:
        topic_filter = f"a/{chosen.randrange(4)}"
        what = chosen.randrange(9)
        if what < 4:
            one.deliver(message(payload=bytes(chosen.randrange(99))), 1)
        elif what == 4:
            linked(one)
            one.pump()
        elif what == 5:
            one.detach(1.0)
        elif what == 6 and one.inflight and one.link:
            one.acknowledged(next(iter(one.inflight)))
            one.pump()
        elif what == 7:
            made.subscribe(one, topic_filter, chosen.randrange(3))
        else:
            made.unsubscribe(one, [topic_filter])

    for _ in range(3000):
        if len(sessions) < 3:
            sessions.append(make(str(next(names))))
            made.open(sessions[-1])
        one = chosen.choice(sessions)
        step(one)
        if chosen.random() < 0.05:
            sessions.remove(one)
            made.discard(one)
        expected = Share()
        for each in sessions:
            expected.count(each)
        share = next(iter(made.sessions)).share if sessions else Share()
        assert all(each.share is share for each in sessions)
        for name in ("queued_bytes", "stored_bytes", "subscription_bytes"):
            assert getattr(share, name) == getattr(expected, name)
        assert all(each.queued_bytes == in_memory_bytes(each) for each in sessions)
        assert bool(share.stored_bytes) == any(each.durable and each.queued for each in sessions)
    for one in sessions:
        share = one.share
        made.discard(one)
    assert (share.members, share.queued_bytes, share.stored_bytes, share.subscription_bytes) == ({}, 0, 0, 0)
    assert made.sessions.of("dev-a") == ()


def test_a_session_that_is_put_away_or_replaced_counts_no_more() -> None:
    """And again when it is taken up."""
    made, one = exchange(), in_memory("c")
    made.open(one)
    made.subscribe(one, "a", 1)
    one.deliver(message(), 1)
    held = one.share.queued_bytes
    share = one.share
    assert (held, share.subscription_bytes) == (one.queued_bytes, subscription_bytes("a"))
    made.put_away(one)
    assert (share.queued_bytes, share.subscription_bytes) == (0, 0)
    made.restore(one)
    assert (one.share.queued_bytes, one.share.subscription_bytes) == (held, subscription_bytes("a"))
    made.sessions.add(in_memory("c"))
    assert made.sessions.of("dev-a")[0].share.queued_bytes == 0


def test_a_message_that_finds_the_share_taken_leaves_the_queue_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than an equal part: what waits is not dropped for it, and the next small one is sent at once."""
    monkeypatch.setattr(module, "MAX_QUEUED_BYTES", 10_000)
    made, hoarder, late = exchange(), in_memory("hoarder"), in_memory("late")
    for one in (hoarder, late):
        made.open(one)
    assert hoarder.deliver(message(payload=bytes(9_000)), 1)
    assert late.deliver(message(payload=bytes(100)), 1)
    assert not late.deliver(message(payload=bytes(6_000)), 1)
    assert [outgoing[0].size for outgoing in late.queue or ()] == [101]
    wire = linked(late)
    late.pump()
    assert (len(wire.taken()), late.queue, late.dropped) == (1, None, 1)
    late.window = 1
    assert not late.deliver(message(payload=bytes(6_000)), 1)
    late.acknowledged(1)
    assert late.deliver(message(), 1)
    assert len(wire.taken()) == 1


def test_what_is_in_flight_to_a_stored_client_leaves_memory_with_it_and_is_read_when_it_is_back() -> None:
    """What was read for a connection that is over is not used: some of it may have been acknowledged since."""
    shelf = Shelf()
    made = stored("c", shelf)
    wire = linked(made)
    sent = [message(payload=bytes((number,)), qos=1 + number) for number in range(2)]
    for item in sent:
        assert made.deliver(item, 2)
    rows = [Stored(n + 1, b"t", item.payload, item.qos, item.qos, False, n + 1, False) for n, item in enumerate(sent)]
    first = wire.taken()
    made.detach(1.0)
    assert (made.inflight, made.unread) == ({}, 2)
    linked(made)
    made.redeliver()
    made.detach(2.0)
    wire = linked(made)
    made.redeliver()
    stale, fresh = shelf.asked
    stale(rows)
    assert (wire.taken(), made.unread) == ([], 2)
    assert made.deliver(message(), 1)
    fresh(rows)
    assert [packet[1:] for packet in wire.taken()] == [packet[1:] for packet in first]
    assert (list(made.inflight), made.unread, made.queued) == ([1, 2], 0, 1)


LONG = {
    "usual": "devices/dev-a/{:03}/state/+",
    "exact": "{:03}" + "x" * 65_532,
    "wild": "{:03}" + "x" * 65_530 + "/+",
    "exact, four bytes a character": "{:03}" + "x" * 65_528 + "\U0001f600",
    "wild, four bytes a character": "{:03}" + "x" * 65_526 + "\U0001f600/+",
    "two bytes a character": "{:03}" + "ж" * 32_765 + "/+",
    "many levels": "{:03}" + "/\U0001f600/+" * 62,
}


@pytest.mark.parametrize("pattern", LONG.values(), ids=LONG)
def test_a_subscription_costs_at_most_what_it_is_accounted_with(pattern: str) -> None:
    """In the session and in the index; for other than ASCII there is room for the UTF-8 that SQLite is given of it."""
    made, one = exchange(), session()
    made.open(one)
    tracemalloc.start()
    try:
        for topic_filter in map(pattern.format, range(100)):
            made.subscribe(one, topic_filter, 1)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    utf_8 = 0 if pattern.isascii() else 100 * len(pattern.encode())
    assert used + utf_8 <= one.share.subscription_bytes


def test_more_subscriptions_have_room_where_more_are_configured() -> None:
    """A backend that subscribes for every device is not stopped by the bound of a usual session."""
    share, usual = Share(), subscription_bytes("devices/dev-000001/state/+")
    share.subscription_bytes = MAX_SUBSCRIPTION_BYTES - usual
    assert share.may_subscribe("devices/dev-000001/state/+", 100)
    assert not share.may_subscribe("devices/dev-000001/state/+1", 100)
    share.subscription_bytes = 99_999 * usual
    assert share.may_subscribe("devices/dev-000001/state/+", 100_000)


def test_the_bounds_of_an_identity_are_the_documented_ones() -> None:
    """Changing one is a decision, not a slip."""
    assert (MAX_QUEUED_BYTES, MAX_SUBSCRIPTION_BYTES) == (64 * 2**20, 4 * 2**20)
