"""Sessions: window, queue and its bounds, identifiers, redelivery, retained messages, and the table of them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.broker import sessions as module
from gateway.broker.packets import PacketType, encode_ack, encode_publish
from gateway.broker.session_table import SessionTable
from gateway.broker.sessions import (
    DEFAULT_QUEUE_MESSAGES,
    MAX_PACKET_ID,
    MAX_QUEUE_BYTES,
    MESSAGE_OVERHEAD,
    WALK_CHUNK,
    WALK_CHUNK_BYTES,
    Message,
    Session,
    publish_head,
)
from tests.gateway.broker.doubles import Wire, grants, linked, message, peer, session


def sent(qos: int, packet_id: int, payload: bytes = b"x", *, dup: bool = False, retain: bool = False) -> bytes:
    return encode_publish(b"t", payload, qos, retain, dup, packet_id)


def numbered(count: int, qos: int = 1) -> list[Message]:
    return [message(payload=bytes((number,)), qos=qos) for number in range(count)]


def payloads(made: Session) -> list[bytes]:
    return [outgoing[0].payload for outgoing in made.queue or ()]


# a new session, and what it is filed under


def test_a_new_session_has_nothing_and_belongs_to_its_identity() -> None:
    """Key, rights and window as given; no link."""
    made = session("client", window=7, clean=True, name="dev-b")
    assert (made.key, made.identity, made.client_id) == (("dev-b", "client"), "dev-b", "client")
    assert (made.clean, made.window, made.link, made.last_id, made.dropped, made.queued) == (True, 7, None, 0, 0, 0)
    assert (made.queue, made.queued_bytes, made.walks, made.disconnected_at) == (None, 0, None, 0.0)
    assert (made.inflight, made.released, made.received, made.quarantined, made.subscriptions) == (
        {},
        {},
        set(),
        set(),
        {},
    )


def test_facts_and_rights_are_those_of_the_newest_connection() -> None:
    """Attach replaces them, detach leaves them and notes the time."""
    made = session()
    wire, facts, rights = Wire(), peer("dev-a"), grants("t")
    made.attach(wire, facts, rights)
    assert (made.link, made.peer, made.grants) == (wire, facts, rights)
    assert not made.may_receive("t")
    assert made.may_receive("u")
    made.start_walk("#", iter(["t"]), 0)
    made.detach(12.5)
    assert (made.link, made.walks, made.disconnected_at, made.grants) == (None, None, 12.5, rights)


# delivery


def test_qos_0_is_sent_now_or_never() -> None:
    """To a link; not kept for the absent, dropped and counted for the blocked."""
    made = session()
    assert made.deliver(message(), 0)
    assert (made.queued, made.dropped) == (0, 0)
    wire = linked(made)
    assert made.deliver(message(), 0)
    assert made.deliver(message(), 0, retain=True)
    assert wire.taken() == [sent(0, 0), sent(0, 0, retain=True)]
    wire.blocked = True
    assert not made.deliver(message(), 0)
    assert (wire.taken(), made.queued, made.dropped) == ([], 0, 1)


@pytest.mark.parametrize(("qos", "retain"), [(1, False), (1, True), (2, False), (2, True)])
def test_qos_1_and_2_are_sent_with_an_identifier_and_kept_in_flight(qos: int, retain: bool) -> None:
    """DUP 0, identifiers counting up."""
    made = session()
    wire = linked(made)
    first = message(qos=2)
    assert made.deliver(first, qos, retain)
    assert made.deliver(message(qos=2), qos, retain)
    assert wire.taken() == [sent(qos, 1, retain=retain), sent(qos, 2, retain=retain)]
    assert list(made.inflight) == [1, 2]
    assert made.inflight[1] == (first, qos, retain)


def test_a_message_is_headed_once_for_all_its_receivers() -> None:
    """What stands before the identifier is shared; each first delivery is the packet it would be alone."""
    shared = message("topic/ä", b"y" * 300)
    for name in ("a", "b"):
        made = session(name)
        made.last_id = 0x01FF
        wire = linked(made)
        made.deliver(shared, 1)
        assert wire.outbox == [encode_publish("topic/ä".encode(), b"y" * 300, 1, False, False, 0x0200)]
        assert wire.marks == 1
        made.deliver(shared, 1)
        assert wire.marks == 1
    assert shared.head == publish_head("topic/ä".encode(), b"y" * 300)
    assert publish_head(b"t", b"") == b"\x32\x05\x00\x01t"


def test_the_window_bounds_what_is_in_flight_and_the_rest_waits() -> None:
    """QoS 2 after PUBREC still counts; each freed place takes the oldest that waits."""
    made = session(window=2)
    wire = linked(made)
    for item in numbered(5, 2):
        assert made.deliver(item, 2)
    assert (list(made.inflight), payloads(made)) == ([1, 2], [b"\x02", b"\x03", b"\x04"])
    wire.taken()
    made.received_by_peer(1)
    assert wire.taken() == [encode_ack(PacketType.PUBREL, 1)]
    assert made.pump() is False
    assert wire.taken() == []
    made.completed(1)
    made.pump()
    assert wire.taken() == [sent(2, 3, b"\x02")]
    assert (list(made.inflight), payloads(made)) == ([2, 3], [b"\x03", b"\x04"])


@pytest.mark.parametrize(
    ("flying", "released", "window", "sent_now"), [(1, 1, 2, 0), (1, 2, 4, 1), (2, 1, 4, 1), (3, 3, 5, 0)]
)
def test_what_is_released_counts_with_what_is_in_flight(flying: int, released: int, window: int, sent_now: int) -> None:
    """For what is delivered now, and for what has waited."""
    made = session(window=window)
    made.inflight = {100 + number: (message(), 1, False) for number in range(flying)}
    made.released = dict.fromkeys(range(200, 200 + released))
    wire = linked(made)
    made.deliver(message(), 1)
    assert (len(wire.taken()), made.queued) == (sent_now, 1 - sent_now)
    made.inflight = {100 + number: (message(), 1, False) for number in range(flying)}
    made.queue = None
    made.link = None
    made.deliver(message(), 1)
    made.link = wire
    made.pump()
    assert (len(wire.taken()), made.queued) == (sent_now, 1 - sent_now)


def test_a_window_made_smaller_stays_closed_until_it_is_open() -> None:
    """More in flight than it holds."""
    made = session(window=1)
    made.inflight = {number: (message(), 1, False) for number in (1, 2)}
    wire = linked(made)
    made.deliver(message(), 1)
    made.pump()
    assert (wire.taken(), made.queued) == ([], 1)


def test_nothing_overtakes_what_waits() -> None:
    """A message that comes while the window is open and others wait goes behind them."""
    made = session(window=1)
    wire = linked(made)
    for item in numbered(3):
        made.deliver(item, 1)
    made.acknowledged(1)
    made.deliver(message(payload=b"new"), 1)
    assert payloads(made) == [b"\x01", b"\x02", b"new"]
    assert len(wire.outbox) == 1


def test_a_message_for_the_absent_or_the_blocked_waits() -> None:
    """And is sent when the peer takes it."""
    made = session()
    made.deliver(message(payload=b"1"), 1)
    wire = linked(made)
    wire.blocked = True
    made.deliver(message(payload=b"2"), 2)
    assert (made.pump(), wire.taken(), made.queued) == (False, [], 2)
    wire.blocked = False
    assert made.pump() is False
    assert wire.taken() == [sent(1, 1, b"1"), sent(2, 2, b"2")]
    assert (made.queue, made.queued_bytes) == (None, 0)


def test_rights_are_judged_when_a_message_leaves() -> None:
    """What may no longer be received is dropped on the way out, however much of it there is."""
    made = session()
    for number in range(600):
        made.deliver(message("lost" if number < 599 else "t", b"x"), 1)
    wire = Wire()
    made.attach(wire, made.peer, grants("lost"))
    assert made.pump() is False
    assert wire.taken() == [sent(1, 1)]
    assert (made.queued, made.queued_bytes) == (0, 0)


# the queue's bounds


@pytest.mark.parametrize("policy", [None, "drop-oldest"])
def test_a_full_queue_drops_the_oldest(policy: str | None) -> None:
    """Counted, and told to the caller; the newest are kept in order."""
    made = session("c", queue_messages=3, queue_full=policy)
    assert [made.deliver(item, 1) for item in numbered(5)] == [True, True, True, False, False]
    assert (payloads(made), made.dropped, made.queued) == ([b"\x02", b"\x03", b"\x04"], 2, 3)


def test_a_full_queue_drops_the_newest_where_the_role_says_so() -> None:
    """The oldest are kept."""
    made = session("c", queue_messages=3, queue_full="drop-newest")
    assert [made.deliver(item, 1) for item in numbered(5)] == [True, True, True, False, False]
    assert (payloads(made), made.dropped) == ([b"\x00", b"\x01", b"\x02"], 2)
    assert made.queued_bytes == 3 * (2 + MESSAGE_OVERHEAD)


def test_without_a_limit_of_the_role_the_default_holds() -> None:
    """A thousand messages."""
    made = session()
    for _ in range(DEFAULT_QUEUE_MESSAGES + 1):
        made.deliver(message(), 1)
    assert (made.queued, made.dropped) == (DEFAULT_QUEUE_MESSAGES, 1)


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest"])
def test_the_queue_is_bounded_in_bytes(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly to the byte: topic, payload and what the objects of a message cost beside them."""
    monkeypatch.setattr(module, "MAX_QUEUE_BYTES", 100 + 2 * MESSAGE_OVERHEAD)
    made = session("c", queue_full=policy)
    sizes = [50, 48]
    assert [made.deliver(message(payload=bytes(size)), 1) for size in sizes] == [True, True]
    assert (made.queued_bytes, made.dropped) == (100 + 2 * MESSAGE_OVERHEAD, 0)
    assert not made.deliver(message(payload=b""), 1)
    assert made.dropped == 1
    assert [len(payload) for payload in payloads(made)] == ([48, 0] if policy == "drop-oldest" else [50, 48])
    assert made.queued_bytes == sum(len(payload) + 1 + MESSAGE_OVERHEAD for payload in payloads(made))
    made = session("c", queue_full=policy)
    half = 50 + MESSAGE_OVERHEAD
    assert [made.deliver(message(payload=bytes(half)), 1) for _ in range(2)] == [True, False]
    assert (made.queued, made.queued_bytes, made.dropped) == (1, half + 1 + MESSAGE_OVERHEAD, 1)


def test_a_queue_of_tiny_messages_is_bounded_by_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A role may allow a million messages; empty ones would cost three hundred megabytes if only payloads counted."""
    monkeypatch.setattr(module, "MAX_QUEUE_BYTES", 100 * 2**10)
    made = session("c", queue_messages=1_000_000)
    for _ in range(1000):
        made.deliver(message(payload=b""), 1)
    assert made.queued == 100 * 2**10 // (1 + MESSAGE_OVERHEAD)
    assert made.queued + made.dropped == 1000


def test_a_queue_longer_than_its_limit_takes_nothing_new_where_the_newest_is_dropped() -> None:
    """As after a reload with a lower limit."""
    made = session()
    for item in numbered(5):
        made.deliver(item, 1)
    made.grants = grants(queue_messages=3, queue_full="drop-newest")
    assert not made.deliver(message(), 1)
    assert (made.queued, made.dropped) == (5, 1)


def test_a_message_larger_than_the_queue_waits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropping the oldest stops before the newest; dropping the newest does not take it."""
    monkeypatch.setattr(module, "MAX_QUEUE_BYTES", 100 + MESSAGE_OVERHEAD)
    made = session()
    made.deliver(message(), 1)
    assert not made.deliver(message(payload=bytes(200)), 1)
    assert (made.queued, made.queued_bytes, made.dropped) == (1, 201 + MESSAGE_OVERHEAD, 1)
    assert not made.deliver(message(payload=b"z"), 1)
    assert payloads(made) == [b"z"]
    strict = session("c", queue_full="drop-newest")
    assert not strict.deliver(message(payload=bytes(200)), 1)
    assert (strict.queued, strict.dropped) == (0, 1)


def test_the_bound_in_bytes_is_the_documented_one() -> None:
    """16 MiB; a queue of the default number of small messages is far below."""
    assert MAX_QUEUE_BYTES == 16 * 1024 * 1024


# identifiers


def test_identifiers_wrap_from_65535_to_1() -> None:
    """0 is none."""
    made = session()
    wire = linked(made)
    made.last_id = MAX_PACKET_ID - 1
    made.deliver(message(), 1)
    made.deliver(message(), 1)
    assert wire.outbox == [sent(1, 65535), sent(1, 1)]
    assert made.last_id == 1


def test_identifiers_in_use_are_passed_over() -> None:
    """In flight, released or in quarantine; also across the wrap."""
    made = session()
    wire = linked(made)
    made.inflight[65535] = (message(), 1, False)
    made.released[1] = None
    made.quarantined.add(2)
    made.last_id = 65534
    made.deliver(message(), 1)
    assert wire.outbox == [sent(1, 3)]
    made.last_id = 1
    made.deliver(message(), 2)
    assert wire.outbox[1:] == [sent(2, 4)]


# acknowledgements


def test_a_puback_ends_a_qos_1_delivery_only() -> None:
    """An unknown identifier and one of QoS 2 are left alone."""
    made = session()
    linked(made)
    made.deliver(message(), 1)
    made.deliver(message(qos=2), 2)
    for packet_id in (2, 9, 1):
        made.acknowledged(packet_id)
    assert list(made.inflight) == [2]


def test_a_pubrec_moves_a_qos_2_delivery_on() -> None:
    """Answered with PUBREL, also a second time and for what is not known; one of QoS 1 is left alone."""
    made = session()
    wire = linked(made)
    made.deliver(message(), 1)
    made.deliver(message(qos=2), 2)
    wire.taken()
    for packet_id in (1, 2, 2, 9):
        made.received_by_peer(packet_id)
    assert wire.taken() == [encode_ack(PacketType.PUBREL, packet_id) for packet_id in (2, 2, 9)]
    assert (list(made.inflight), list(made.released)) == ([1], [2])
    made.completed(1)
    assert list(made.inflight) == [1]
    made.completed(2)
    made.completed(2)
    assert list(made.released) == []


def test_a_pubrec_without_a_link_is_noted() -> None:
    """The PUBREL follows with the next connection."""
    made = session()
    made.inflight[1] = (message(qos=2), 2, False)
    made.received_by_peer(1)
    assert list(made.released) == [1]


# redelivery


def test_what_was_in_flight_is_sent_again_in_order_with_dup() -> None:
    """PUBRELs first, in the order of the PUBRECs and without DUP; messages with their identifiers and RETAIN."""
    made = session()
    made.released.update({5: None, 2: None})
    for packet_id, (qos, retain) in {9: (1, False), 3: (2, True)}.items():
        made.inflight[packet_id] = (message(qos=2), qos, retain)
    made.redeliver()
    assert (list(made.inflight), list(made.released)) == ([9, 3], [5, 2])
    wire = linked(made)
    made.redeliver()
    assert wire.taken() == [
        encode_ack(PacketType.PUBREL, 5),
        encode_ack(PacketType.PUBREL, 2),
        sent(1, 9, dup=True),
        sent(2, 3, dup=True, retain=True),
    ]
    assert (list(made.inflight), list(made.released)) == ([9, 3], [5, 2])


def test_what_may_no_longer_be_received_is_not_sent_again() -> None:
    """Its identifier stays out of use until the next connection, because the peer may still answer it."""
    made = session(window=3)
    for packet_id, topic in {1: "t", 2: "lost", 3: "t"}.items():
        made.inflight[packet_id] = (message(topic), 1, False)
    wire = Wire()
    made.attach(wire, made.peer, grants("lost"))
    made.redeliver()
    assert wire.taken() == [sent(1, 1, dup=True), sent(1, 3, dup=True)]
    assert (list(made.inflight), made.quarantined) == ([1, 3], {2})
    made.last_id = 1
    made.deliver(message(), 1)
    assert wire.taken() == [sent(1, 4)]
    made.detach(1.0)
    linked(made)
    made.redeliver()
    assert made.quarantined == set()


# retained messages of new subscriptions


def kept(*topics: str, qos: int = 1, size: int = 1) -> dict[str, Message]:
    return {topic: message(topic, b"k" * size, qos) for topic in topics}


def test_a_walk_sends_retained_messages_with_retain_at_the_lower_qos() -> None:
    """What has been removed since is left out; what may not be received too."""
    made = session("c", "secret")
    wire = linked(made)
    store = {**kept("a", qos=0), **kept("b", qos=2), **kept("secret")}
    made.start_walk("#", iter(["a", "gone", "secret", "b"]), 1)
    assert made.pump() is True
    assert made.walk(store.get) is False
    assert wire.taken() == [
        encode_publish(b"a", b"k", 0, True, False, 0),
        encode_publish(b"b", b"k", 1, True, False, 1),
    ]
    assert made.walks is None
    assert (made.pump(), made.walk(store.get)) == (False, False)


def test_walks_follow_one_another_and_a_new_one_of_the_filter_replaces_the_old() -> None:
    """Filters in the order of their subscriptions."""
    made = session()
    wire = linked(made)
    store = kept("a", "b", "c")
    made.start_walk("one", iter(["a"]), 0)
    made.start_walk("two", iter(["b"]), 0)
    made.start_walk("one", iter(["c"]), 0)
    assert made.walk(store.get) is False
    assert wire.taken() == [encode_publish(topic, b"k", 0, True, False, 0) for topic in (b"c", b"b")]


def test_a_walk_keeps_to_its_share_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many messages, or so many bytes, then others have their turn."""
    made = session()
    wire = linked(made)
    topics = [str(number) for number in range(WALK_CHUNK + 1)]
    made.start_walk("#", iter(topics), 0)
    store = kept(*topics)
    assert made.walk(store.get) is True
    assert len(wire.taken()) == WALK_CHUNK
    assert made.walk(store.get) is False
    assert len(wire.taken()) == 1
    monkeypatch.setattr(module, "WALK_CHUNK_BYTES", 20)
    store = kept("a", "b", "c", size=9)
    made.start_walk("#", iter("abc"), 0)
    assert made.walk(store.get) is True
    assert len(wire.taken()) == 2
    assert made.walk(store.get) is False
    assert len(wire.taken()) == 1
    for share, sent_now in ((15, 2), (20, 2), (21, 3)):
        monkeypatch.setattr(module, "WALK_CHUNK_BYTES", share)
        made.start_walk("#", iter("abc"), 0)
        made.walk(store.get)
        assert len(wire.taken()) == sent_now
    assert (WALK_CHUNK, WALK_CHUNK_BYTES, DEFAULT_QUEUE_MESSAGES) == (256, 256 * 1024, 1000)


def test_a_walk_waits_for_window_queue_and_peer() -> None:
    """It never overtakes the queue, and goes on when pumped."""
    made = session(window=1)
    wire = linked(made)
    store = kept("a", "b")
    made.start_walk("#", iter("ab"), 1)
    assert made.walk(store.get) is False
    assert wire.taken() == [encode_publish(b"a", b"k", 1, True, False, 1)]
    made.deliver(message(), 1)
    made.acknowledged(1)
    assert made.walk(store.get) is False
    assert wire.taken() == []
    assert made.pump() is False
    assert wire.taken() == [sent(1, 2)]
    made.acknowledged(2)
    assert made.pump() is True
    wire.blocked = True
    assert made.walk(store.get) is False
    assert made.pump() is False
    wire.blocked = False
    assert made.walk(store.get) is False
    assert wire.taken() == [encode_publish(b"b", b"k", 1, True, False, 3)]


def test_a_walk_without_a_link_is_nothing() -> None:
    """Nobody takes it, and nothing is taken from it."""
    made = session()
    topics: Iterator[str] = iter(["a"])
    made.start_walk("#", topics, 0)
    assert made.walk(kept("a").get) is False
    assert next(topics) == "a"


def test_purging_forgets_every_message() -> None:
    """And says how many there were to send."""
    made = session(window=1)
    linked(made)
    for item in numbered(4):
        made.deliver(item, 1)
    made.released[7] = None
    made.received.add(5)
    made.start_walk("#", iter("a"), 0)
    assert made.purge() == 4
    assert (made.queue, made.queued_bytes, made.queued, made.walks) == (None, 0, 0, None)
    assert (made.inflight, made.released, made.received) == ({}, {}, set())
    assert made.purge() == 0


def test_a_message_counts_with_its_topic() -> None:
    """In bytes of UTF-8."""
    assert message("ä", b"123").size == 5
    made = message("t", b"p", 2)
    assert (made.topic, made.topic_raw, made.payload, made.qos, made.head) == ("t", b"t", b"p", 2, b"")


# the table


def test_sessions_are_found_by_identity_and_client_identifier() -> None:
    """Never another identity's; all of one identity without a scan."""
    table = SessionTable()
    mine, also_mine, foreign = session("c"), session("d"), session("c", name="dev-b")
    for made in (mine, also_mine, foreign):
        table.add(made)
    assert (table.get("dev-a", "c"), table.get("dev-b", "c"), table.get("dev-b", "d")) == (mine, foreign, None)
    assert (table.of("dev-a"), table.of("dev-b"), table.of("dev-c")) == ((mine, also_mine), (foreign,), ())
    assert (len(table), list(table)) == (3, [mine, also_mine, foreign])
    table.remove(mine)
    assert (table.of("dev-a"), len(table)) == ((also_mine,), 2)
    table.remove(also_mine)
    assert (table.of("dev-a"), table.get("dev-a", "d")) == ((), None)
    assert table._by_identity.keys() == {"dev-b"}


def test_a_session_that_was_replaced_is_not_removed_with_its_key() -> None:
    """Removing the old one leaves the new one alone; removing twice harms nothing."""
    table = SessionTable()
    old, new = session("c"), session("c")
    table.add(old)
    table.add(new)
    table.remove(old)
    assert (table.get("dev-a", "c"), table.of("dev-a"), len(table)) == (new, (new,), 1)
    table.remove(new)
    table.remove(new)
    assert len(table) == 0


def test_a_session_expires_without_a_connection_only() -> None:
    """Longer than the expiry, not exactly as long."""
    table = SessionTable()
    stored, live = session("stored"), session("live")
    table.add(stored)
    table.add(live)
    linked(live)
    stored.detach(100.0)
    live.disconnected_at = 100.0
    assert table.expired(105.0, 10.0) == []
    assert table.expired(110.0, 10.0) == []
    assert table.expired(200.0, 10.0) == [stored]
    assert table.expired(110.5, 10.0) == [stored]
