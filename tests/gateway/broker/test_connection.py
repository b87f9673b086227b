"""The protocol state of one connection against a host of a few lines: every state, every packet type, every split."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from gateway.broker import connection as module
from gateway.broker.connection import (
    _HANDLERS,
    MAX_CACHED_ROUTES,
    MAX_CACHED_TOPIC_BYTES,
    PACKETS_PER_TURN,
    Connection,
    State,
)
from gateway.broker.host import Route
from gateway.broker.packets import (
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    Connect,
    PacketType,
    Publish,
    Will,
    decode_publish,
    encode_ack,
    encode_connack,
    encode_connect,
    encode_publish,
    encode_subscribe,
    encode_unsubscribe,
)
from mtls.errors import Reason, Refusal
from tests.gateway.broker.doubles import FakeHost, grants, linked, message, peer, session

WILL = Will("w", b"gone", 1, False)
CONNECT = encode_connect(Connect("c", True, 30, WILL, "user", None))
CONNACK = encode_connack(True, 0)


def fresh(**settings: Any) -> tuple[Connection, FakeHost]:
    host = FakeHost()
    for name, value in settings.items():
        setattr(host, name, value)
    return Connection(host, peer(), "127.0.0.1", connect_max_bytes=1000), host


def connected(**settings: Any) -> tuple[Connection, FakeHost]:
    connection, host = fresh(**settings)
    connection.receive(CONNECT)
    assert connection.outbox == [CONNACK]
    forget(connection, host)
    return connection, host


def forget(connection: Connection, host: FakeHost) -> None:
    """Everything that was said so far, as if it had been flushed."""
    connection.outbox, connection.dirty = [], False
    host.dirty, host.told, host.flushes = [], [], 0


def publish(topic: str = "t", payload: bytes = b"1", qos: int = 0, retain: bool = False, packet_id: int = 7) -> bytes:
    return encode_publish(topic.encode(), payload, qos, retain, False, packet_id if qos else 0)


PACKETS: dict[PacketType, bytes] = {
    PacketType.CONNECT: CONNECT,
    PacketType.CONNACK: CONNACK,
    PacketType.PUBLISH: publish(),
    PacketType.PUBACK: encode_ack(PacketType.PUBACK, 1),
    PacketType.PUBREC: encode_ack(PacketType.PUBREC, 1),
    PacketType.PUBREL: encode_ack(PacketType.PUBREL, 1),
    PacketType.PUBCOMP: encode_ack(PacketType.PUBCOMP, 1),
    PacketType.SUBSCRIBE: encode_subscribe(1, [("t", 0)]),
    PacketType.SUBACK: b"\x90\x03\x00\x01\x00",
    PacketType.UNSUBSCRIBE: encode_unsubscribe(1, ["t"]),
    PacketType.UNSUBACK: encode_ack(PacketType.UNSUBACK, 1),
    PacketType.PINGREQ: PINGREQ,
    PacketType.PINGRESP: PINGRESP,
    PacketType.DISCONNECT: DISCONNECT,
}
FROM_A_CLIENT = {kind for _, kind in _HANDLERS} - {PacketType.CONNECT}

# The table: what a legal packet of a connected client is answered with.
ANSWERS: dict[PacketType, list[bytes]] = {
    PacketType.PUBLISH: [],
    PacketType.PUBACK: [],
    PacketType.PUBREC: [encode_ack(PacketType.PUBREL, 1)],
    PacketType.PUBREL: [encode_ack(PacketType.PUBCOMP, 1)],
    PacketType.PUBCOMP: [],
    PacketType.SUBSCRIBE: [b"\x90\x03\x00\x01\x00"],
    PacketType.UNSUBSCRIBE: [encode_ack(PacketType.UNSUBACK, 1)],
    PacketType.PINGREQ: [PINGRESP],
    PacketType.DISCONNECT: [],
}


def test_the_table_has_every_packet_that_a_client_may_send_and_no_other() -> None:
    """CONNECT once at the beginning, nine types when connected, nothing in any other state."""
    assert set(ANSWERS) == FROM_A_CLIENT
    assert {state for state, _ in _HANDLERS} == {State.AWAITING_CONNECT, State.CONNECTED}
    assert [kind for state, kind in _HANDLERS if state is State.AWAITING_CONNECT] == [PacketType.CONNECT]
    assert all(name.startswith("_on_") for name in (handler.__name__ for handler in _HANDLERS.values()))


@pytest.mark.parametrize("kind", sorted(PACKETS), ids=lambda kind: kind.name)
def test_what_is_answered_and_what_ends_the_connection_when_connected(kind: PacketType) -> None:
    """Legal packets have their answer; a second CONNECT and the packets of a server end it."""
    connection, host = connected()
    connection.receive(PACKETS[kind])
    if kind in ANSWERS:
        assert connection.outbox == ANSWERS[kind]
        assert connection.state is (State.CLOSED if kind is PacketType.DISCONNECT else State.CONNECTED)
    else:
        assert connection.outbox == []
        assert connection.state is State.CLOSED
        assert host.told[-1][:2] == ("ended", Reason.PROTOCOL_ERROR)
        assert host.told[-1][2] == f"packet type {kind.value} when connected [MQTT-3.1.0-2]"


@pytest.mark.parametrize("kind", sorted(PACKETS), ids=lambda kind: kind.name)
def test_only_connect_may_come_first(kind: PacketType) -> None:
    """[MQTT-3.1.0-1], and the refusal says that it was the CONNECT that was missing."""
    connection, host = fresh()
    connection.receive(PACKETS[kind])
    if kind is PacketType.CONNECT:
        assert connection.state is State.CONNECTED
    else:
        assert connection.state is State.CLOSED
        assert connection.outbox == []
        assert host.told == [("ended", Reason.CONNECT_MALFORMED, host.told[0][2])]
        assert "MQTT-3.1.0-1" in host.told[0][2]


@pytest.mark.parametrize("kind", sorted(PACKETS), ids=lambda kind: kind.name)
def test_nothing_is_handled_after_the_end(kind: PacketType) -> None:
    """Neither answered nor told, and the end is told once."""
    connection, host = connected()
    connection.close(Reason.KICKED)
    assert host.told == [("ended", Reason.KICKED, "")]
    connection.receive(PACKETS[kind])
    connection.close(Reason.SHUTDOWN, "again")
    connection.send(b"late")
    assert (connection.outbox, host.told) == ([], [("ended", Reason.KICKED, "")])
    assert connection.ending == Refusal(Reason.KICKED)
    assert connection.routes == {}


def test_connect_takes_the_facts_of_the_packet_and_asks_the_host() -> None:
    """Keep alive, user name and will; then CONNACK, what is in flight, and the queue."""
    connection, host = fresh()
    first, second = message(payload=b"1"), message(payload=b"2")
    host.session.inflight[3] = (first, 1, False)
    host.session.deliver(second, 1)
    connection.receive(CONNECT)
    assert (connection.keep_alive_s, connection.user_name, connection.will) == (30, "user", WILL)
    assert connection.session is host.session
    assert [kind for kind, *_ in host.told] == ["admit", "pump"]
    assert connection.outbox == [
        CONNACK,
        encode_publish(b"t", b"1", 1, False, True, 3),
        encode_publish(b"t", b"2", 1, False, False, 1),
    ]
    assert (connection.dirty, host.dirty, host.flushes) == (True, [connection], 1)


def test_a_new_connection_has_nothing_yet() -> None:
    """The defaults that the host relies on."""
    connection, _ = fresh(tick=5)
    assert (connection.state, connection.session, connection.will) == (State.AWAITING_CONNECT, None, None)
    assert (connection.keep_alive_s, connection.user_name, connection.ending) == (0, None, None)
    assert (connection.view, connection.wire, connection.audited, connection.timer) == (None, None, False, None)
    assert (connection.publish_rate, connection.credit, connection.credited_at) == (None, 0.0, 0.0)
    assert (connection.throttled, connection.blocked, connection.choked, connection.dirty) == (False,) * 4
    assert (connection.suspended, connection.last_tick, connection.address) == (False, 5, "127.0.0.1")
    assert connection.max_packet_bytes == 1000


def test_a_refused_connect_is_answered_and_closed() -> None:
    """With the code of the refusal and session present 0; packets behind it are not looked at."""
    connection, host = fresh(verdict="refuse")
    connection.receive(CONNECT + PINGREQ)
    assert connection.outbox == [encode_connack(False, 5)]
    assert host.told[1:] == [("ended", Reason.NO_ROLE, "why")]


def test_an_unacceptable_protocol_level_is_answered_with_1() -> None:
    """Before anybody is asked."""
    connection, host = fresh()
    connection.receive(CONNECT.replace(b"MQTT\x04", b"MQTT\x05"))
    assert connection.outbox == [encode_connack(False, 1)]
    assert host.told[0][:2] == ("ended", Reason.PROTOCOL_LEVEL)


# splits, sizes, suspension


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 64])
def test_any_split_of_a_conversation_is_the_same_conversation(size: int) -> None:
    """CONNECT, packets of every length encoding, in pieces of one size."""
    data = CONNECT + publish(payload=b"a" * 100) + publish("long", b"b" * 300, 1) + PINGREQ + publish() + PINGREQ
    connection, host = fresh()
    connection.max_packet_bytes = 10_000
    for start in range(0, len(data), size):
        connection.receive(data[start : start + size])
    assert connection.outbox == [CONNACK, encode_ack(PacketType.PUBACK, 7), PINGRESP, PINGRESP]
    assert [told[2] for told in host.told if told[0] == "publish"] == [b"a" * 100, b"b" * 300]
    assert host.messages_in == 3  # the third took the route of the first


def test_a_read_that_ends_in_the_first_byte_of_a_packet_waits_for_that_packet_only() -> None:
    """Not for as many bytes as the packet before needed."""
    for routed in (False, True):
        connection, _ = connected()
        if routed:
            connection.receive(publish())
        big = publish(payload=b"x" * 200)
        connection.receive(big[:50])
        connection.receive(big[50:] + PINGREQ[:1])
        connection.receive(PINGREQ[1:])
        assert connection.outbox == [PINGRESP]


def test_a_body_that_is_awaited_is_not_copied_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the packet is whole nothing is parsed."""
    connection, _ = connected()
    calls: list[int] = []
    consume = Connection._consume

    def counted(self: Connection, data: bytes) -> int:
        calls.append(len(data))
        return consume(self, data)

    monkeypatch.setattr(Connection, "_consume", counted)
    data = publish(payload=b"x" * 300)
    for start in range(0, len(data), 10):
        connection.receive(data[start : start + 10])
    assert calls == [10, len(data)]


@pytest.mark.parametrize("over", [0, 1])
def test_sizes_are_judged_from_the_fixed_header(over: int) -> None:
    """A packet of exactly the limit is awaited; one byte more ends the connection before its body comes."""
    connection, host = fresh()
    connection.receive(b"\x10" + _length(1000 + over))
    assert connection.state is (State.CLOSED if over else State.AWAITING_CONNECT)
    if over:
        assert host.told == [("ended", Reason.CONNECT_TOO_LARGE, "1001 bytes, limit 1000")]
    connection, host = connected()
    connection.max_packet_bytes = 50
    connection.receive(b"\x30" + _length(50 + over))
    assert connection.state is (State.CLOSED if over else State.CONNECTED)
    if over:
        assert host.told == [("ended", Reason.PACKET_TOO_LARGE, "51 bytes, limit 50")]


def _length(value: int) -> bytes:
    return bytes((value & 127 | 128, value >> 7)) if value > 127 else bytes((value,))


def test_the_limit_of_connect_holds_for_connect_only() -> None:
    """Afterwards the limit is the host's to set; a packet of the limit is handled."""
    connection, host = connected()
    connection.max_packet_bytes = 5
    connection.receive(publish("ab", b"c"))
    assert host.told[-1][:3] == ("publish", "ab", b"c")
    connection.receive(publish("ab", b"cd"))
    assert connection.state is State.CLOSED


def test_what_is_awaited_is_counted_from_where_the_packet_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the beginning of the read that it came with."""
    connection, _ = connected()
    data = publish(payload=b"x" * 40)
    connection.receive(PINGREQ * 3 + data[:10])
    monkeypatch.setattr(Connection, "_consume", lambda *_: pytest.fail("parsed too early"))
    connection.receive(data[10:-1])
    monkeypatch.undo()
    connection.receive(data[-1:] + PINGREQ)
    assert connection.outbox == [PINGRESP] * 4


@pytest.mark.parametrize("first", [0x00, 0x0F, 0x11, 0x20, 0xFF])
def test_the_very_first_byte_tells_a_client_from_a_stranger(first: int) -> None:
    """Nothing more is awaited of who does not begin with CONNECT."""
    connection, host = fresh()
    connection.receive(bytes((first, 0x7F)))
    assert host.told[0][:2] == ("ended", Reason.CONNECT_MALFORMED)
    assert "MQTT-3.1.0-1" in host.told[0][2]


def test_the_bounds_are_the_documented_ones() -> None:
    """Changing one is a decision, not a slip."""
    assert (MAX_CACHED_ROUTES, PACKETS_PER_TURN, MAX_CACHED_TOPIC_BYTES) == (4096, 64, 256)


def test_progress_is_a_whole_packet() -> None:
    """[MQTT-3.1.2-24] counts packets: bytes of an unfinished one do not move the keep alive."""
    connection, host = connected()
    host.tick = 9
    connection.receive(publish()[:4])
    assert connection.last_tick == 1
    connection.receive(publish()[4:])
    assert connection.last_tick == 9


def test_packets_wait_while_work_runs() -> None:
    """CONNECT that plugins are asked about: nothing behind it is handled before, everything after, in order."""
    connection, host = fresh(verdict="ask")
    connection.receive(CONNECT + PINGREQ)
    assert (connection.suspended, connection.state, connection.outbox) == (True, State.ADMITTING, [])
    connection.receive(PINGREQ)
    connection.receive(PINGREQ[:1])
    assert (connection.outbox, connection.suspended) == ([], True)
    host.finish(connection)
    assert connection.outbox == [encode_connack(False, 0), PINGRESP, PINGRESP]
    connection.receive(PINGREQ[1:])
    assert (connection.outbox[-1], len(connection.outbox), connection.suspended) == (PINGRESP, 4, False)


def test_bytes_that_come_first_while_work_runs_are_kept() -> None:
    """Also when there was no rest of the packet before."""
    connection, host = fresh(verdict="ask")
    connection.receive(CONNECT)
    connection.receive(PINGREQ)
    host.finish(connection)
    assert connection.outbox == [encode_connack(False, 0), PINGRESP]


def test_work_on_a_subscription_holds_the_packets_behind_it() -> None:
    """SUBSCRIBE that plugins are asked about."""
    connection, host = connected(verdict="accept")
    host.verdict = "ask"
    connection.receive(PACKETS[PacketType.SUBSCRIBE] + PINGREQ)
    assert (connection.suspended, connection.outbox) == (True, [])
    host.finish(connection)
    assert connection.outbox == [b"\x90\x03\x00\x01\x80", PINGRESP]


def test_resuming_a_closed_connection_does_nothing() -> None:
    """What it had left to read is gone."""
    connection, host = fresh(verdict="ask")
    connection.receive(CONNECT + PINGREQ)
    connection.close(Reason.PEER_CLOSED)
    host.work.pop().close()
    connection.resume()
    connection.receive(PINGREQ)
    assert (connection.outbox, connection.suspended) == ([], False)


def test_after_many_packets_others_have_their_turn() -> None:
    """The rest is handled when the host resumes, and none is lost."""
    connection, host = connected()
    connection.receive(PINGREQ * (PACKETS_PER_TURN + 3))
    assert (len(connection.outbox), connection.suspended) == (PACKETS_PER_TURN, True)
    host.finish(connection)
    assert (connection.outbox, connection.suspended) == ([PINGRESP] * (PACKETS_PER_TURN + 3), False)


# PUBLISH


@pytest.mark.parametrize(("qos", "answer"), [(0, []), (1, [b"\x40\x02\x00\x07"]), (2, [b"\x50\x02\x00\x07"])])
def test_a_publish_is_routed_once_and_answered_by_its_qos(qos: int, answer: list[bytes]) -> None:
    """And counted."""
    connection, host = connected()
    connection.receive(publish("ä", b"1", qos, True))
    assert host.told == [("decide", "ä", True), ("publish", "ä", b"1", qos, True, "ä".encode())]
    assert (connection.outbox, host.messages_in) == (answer, 1)
    assert host.session.received == ({7} if qos == 2 else set())


def test_a_qos_2_publish_is_routed_once_until_it_is_released() -> None:
    """[MQTT-4.3.3-2]"""
    connection, host = connected()
    for _ in range(3):
        connection.receive(publish(qos=2))
    assert connection.outbox == [b"\x50\x02\x00\x07"] * 3
    assert [kind for kind, *_ in host.told].count("publish") == 1
    connection.receive(encode_ack(PacketType.PUBREL, 7) + publish(qos=2))
    assert connection.outbox[3:] == [b"\x70\x02\x00\x07", b"\x50\x02\x00\x07"]
    assert [kind for kind, *_ in host.told].count("publish") == 2


def test_a_qos_1_publish_is_not_taken_for_a_repeated_qos_2_of_its_identifier() -> None:
    """Only a QoS 2 PUBLISH is the same as one before it."""
    connection, host = connected()
    connection.receive(publish("two", qos=2) + publish("one", qos=1) + publish("zero"))
    assert [told[1] for told in host.told if told[0] == "publish"] == ["two", "one", "zero"]
    assert connection.outbox == [b"\x50\x02\x00\x07", b"\x40\x02\x00\x07"]


@pytest.mark.parametrize(("qos", "answer"), [(0, []), (1, [b"\x40\x02\x00\x07"]), (2, [b"\x50\x02\x00\x07"])])
def test_a_denied_publish_is_told_and_answered_and_not_routed(qos: int, answer: list[bytes]) -> None:
    """[MQTT-3.3.5-2]; the QoS 2 exchange runs to its end."""
    connection, host = connected(rights=False)
    connection.receive(publish("t", b"1", qos))
    assert host.told == [("decide", "t", False), ("denied", "t", "rule")]
    assert (connection.outbox, connection.state, connection.routes) == (answer, State.CONNECTED, {})


def test_a_role_may_end_the_connection_on_a_denied_publish() -> None:
    """Without an acknowledgement."""
    connection, host = connected(rights=False)
    host.session.grants = grants(on_denied_publish="disconnect")
    connection.receive(publish(qos=1))
    assert (connection.outbox, connection.state) == ([], State.CLOSED)
    assert host.told[-1] == ("ended", Reason.PUBLISH_DENIED, "rule")


def test_routes_are_remembered_for_plain_messages_with_short_topics_only() -> None:
    """A retained message must be judged and kept each time; a long topic would fill the memory."""
    connection, _ = connected()
    longest = "l" * MAX_CACHED_TOPIC_BYTES
    connection.receive(publish("t") + publish("r", retain=True) + publish(longest) + publish(longest + "l"))
    assert list(connection.routes) == [b"t", longest.encode()]
    connection.forget_routes()
    assert connection.routes == {}


def test_the_memory_of_routes_is_bounded() -> None:
    """Full means empty: the next topics come anew."""
    connection, host = connected()
    connection.max_packet_bytes = 10**6
    for number in range(MAX_CACHED_ROUTES):
        connection.routes[str(number).encode()] = host.publish(connection, _decoded("t"), b"t")
    connection.receive(publish("one more"))
    assert list(connection.routes) == [b"one more"]


def _decoded(topic: str) -> Publish:
    return decode_publish(0x30, publish(topic)[2:])


def test_a_message_that_ends_its_own_connection_leaves_no_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that closes it while routing."""
    connection, host = connected()
    routing = host.publish

    def closing(connection: Connection, publish: Publish, topic_raw: bytes) -> Route:
        connection.close(Reason.KICKED)
        return routing(connection, publish, topic_raw)

    monkeypatch.setattr(host, "publish", closing)
    connection.receive(publish(qos=1))
    assert (connection.routes, connection.outbox) == ({}, [])


def test_the_slow_lane_hands_every_publish_over_and_tells_of_every_packet() -> None:
    """One at a time, in order."""
    connection, host = connected()
    host.slow_lane = True
    connection.receive(publish("a", qos=1) + publish("b", qos=2) + PINGREQ)
    assert host.told == [("packet", publish("a", qos=1)), ("run",)]
    host.finish(connection)
    host.finish(connection)
    assert [told[1] for told in host.told if told[0] == "slowly"] == ["a", "b"]
    assert [told[1] for told in host.told if told[0] == "packet"] == [publish("a", qos=1), publish("b", qos=2), PINGREQ]
    assert connection.outbox == [b"\x40\x02\x00\x07", b"\x50\x02\x00\x07", PINGRESP]
    assert host.messages_in == 2


def test_the_slow_lane_knows_no_short_way() -> None:
    """A route that is remembered, and an acknowledgement, are told of all the same."""
    connection, host = connected()
    connection.receive(publish())
    host.session.deliver(message(), 1)
    forget(connection, host)
    host.slow_lane = True
    puback = encode_ack(PacketType.PUBACK, 1)
    connection.receive(puback + publish())
    assert [told for told in host.told if told[0] == "packet"] == [("packet", puback), ("packet", publish())]
    host.work.pop().close()


# acknowledgements, subscriptions, the rest


def test_acknowledgements_move_the_session_and_pump_it() -> None:
    """PUBACK and PUBCOMP free the window, PUBREC does not."""
    connection, host = connected()
    waiting = host.session
    for number in (1, 2):
        waiting.deliver(message(qos=2), number)
    forget(connection, host)
    connection.receive(encode_ack(PacketType.PUBREC, 2))
    assert (list(waiting.inflight), list(waiting.released), host.told) == ([1], [2], [])
    connection.receive(encode_ack(PacketType.PUBCOMP, 2))
    assert (list(waiting.released), host.told) == ([], [("pump", "c")])
    waiting.deliver(message(qos=2), 2)
    connection.receive(encode_ack(PacketType.PUBACK, 3))
    assert (list(waiting.inflight), host.told) == ([1, 3], [("pump", "c")] * 2)


def test_subscriptions_are_the_hosts() -> None:
    """With identifier, filters and QoS; UNSUBACK follows the removal."""
    connection, host = connected()
    connection.receive(encode_subscribe(9, [("a/#", 1), ("b", 2)]) + encode_unsubscribe(10, ["a/#", "c"]))
    assert host.told == [("subscribe", 9, (("a/#", 1), ("b", 2))), ("unsubscribe", ("a/#", "c"))]
    assert connection.outbox == [b"\x90\x04\x00\x09\x01\x02", b"\xb0\x02\x00\x0a"]


def test_disconnect_drops_the_will_and_closes() -> None:
    """[MQTT-3.14.4-3]; any other end leaves it to the host."""
    connection, host = connected()
    connection.receive(DISCONNECT + PINGREQ)
    assert connection.will is None
    assert connection.outbox == []
    assert host.told == [("ended", Reason.PEER_CLOSED, "DISCONNECT")]
    connection, host = connected()
    connection.receive(b"\xe0\x01\x00")
    assert (connection.will, connection.state) == (WILL, State.CLOSED)
    connection, host = connected()
    connection.receive(b"\xc0\x01\x00")
    assert (connection.will, connection.state, connection.outbox) == (WILL, State.CLOSED, [])


def test_a_connection_is_flushed_once_however_much_it_says() -> None:
    """One entry among the dirty ones; a flush makes it clean again."""
    connection, host = connected()
    connection.receive(PINGREQ * 3)
    assert (host.dirty, connection.dirty) == ([connection], True)
    assert host.flushes >= 1
    forget(connection, host)
    connection.send(b"x")
    assert (host.dirty, host.flushes) == ([connection], 1)


def test_the_end_of_a_stream_of_nonsense_is_reported_with_its_clause() -> None:
    """Before CONNECT as a malformed CONNECT, afterwards as a protocol error."""
    connection, host = fresh()
    connection.receive(b"\x10\x02\x00\x00")
    assert host.told[0][1] is Reason.CONNECT_MALFORMED
    connection, host = connected()
    connection.receive(publish() + b"\xf0\x00" + publish())
    assert [kind for kind, *_ in host.told] == ["decide", "publish", "ended"]
    assert host.told[-1][1] is Reason.PROTOCOL_ERROR


def test_a_packet_type_is_refused_by_its_header() -> None:
    """Its body is not awaited."""
    connection, _ = connected()
    connection.receive(b"\x20\x7f")
    assert connection.state is State.CLOSED


def test_a_session_that_another_connection_holds_is_not_written_to() -> None:
    """What arrives for it goes to its own link."""
    connection, host = connected()
    other = session("other")
    wire = linked(other)
    host.targets = [(other, 0)]
    connection.receive(publish() + publish())
    assert connection.outbox == []
    assert wire.taken() == [publish()]


def test_the_module_keeps_no_time_and_opens_nothing() -> None:
    """Pure: it imports neither sockets nor clocks."""
    source = inspect.getsource(module)
    assert all(f"import {name}" not in source for name in ("socket", "time", "asyncio", "logging"))
