"""The fast path does what the table does, or leaves the packet to the table."""

from __future__ import annotations

import pytest

from gateway.broker.connection import Connection
from gateway.broker.forwarding import forward
from gateway.broker.host import Route, distribute
from gateway.broker.packets import PINGREQ, PacketType, encode_ack, encode_publish
from gateway.broker.sessions import Session
from tests.gateway.broker.doubles import FakeHost, linked, message, peer, session


def known(*targets: tuple[Session, int], topic: str = "t") -> tuple[Connection, FakeHost]:
    """A connected client with a route for one topic."""
    host = FakeHost()
    connection = Connection(host, peer(), "", connect_max_bytes=1000)
    host.session.attach(connection, connection.peer, host.session.grants)
    connection.accept(host.session, None, session_present=False)
    connection.outbox, connection.dirty, host.dirty, host.told, host.flushes = [], False, [], [], 0
    connection.routes[topic.encode()] = Route(topic, targets, host.version)
    return connection, host


def publish(payload: bytes = b"1", qos: int = 0, topic: str = "t", packet_id: int = 0x0107) -> bytes:
    return encode_publish(topic.encode(), payload, qos, False, False, packet_id if qos else 0)


def taken(connection: Connection, host: FakeHost, data: bytes) -> int:
    return forward(connection, host.session, data, 0, len(data))


@pytest.mark.parametrize("size", [0, 1, 124, 125, 126, 127, 500])
def test_a_qos_0_publish_goes_out_as_the_bytes_that_came_in(size: int) -> None:
    """To every link once, whatever QoS was granted; the next packet is left where it is."""
    first, second, absent = session("1"), session("2"), session("3")
    wires = [linked(first), linked(second)]
    connection, host = known((first, 0), (absent, 1), (second, 2))
    packet = publish(b"x" * size)
    data = packet + packet + PINGREQ
    assert taken(connection, host, data) == 2 * len(packet)
    assert [wire.taken() for wire in wires] == [[packet, packet]] * 2
    assert host.dirty == wires
    assert (host.messages_in, host.flushes) == (2, 1)
    assert (absent.queued, absent.dropped, host.told) == (0, 0, [])


def test_a_dirty_link_is_not_filed_twice() -> None:
    """It waits for its flush already."""
    target = session()
    wire = linked(target)
    wire.dirty = True
    connection, host = known((target, 0))
    taken(connection, host, publish())
    assert (host.dirty, len(wire.outbox), host.flushes) == ([], 1, 0)


def test_a_qos_0_publish_to_a_blocked_link_is_dropped_and_told() -> None:
    """And the links behind it are served."""
    slow, quick = session("slow"), session("quick")
    slow_wire, quick_wire = linked(slow), linked(quick)
    slow_wire.blocked = True
    connection, host = known((slow, 1), (quick, 1))
    taken(connection, host, publish())
    assert (slow_wire.outbox, slow.dropped, host.told) == ([], 1, [("dropped", "slow")])
    assert quick_wire.outbox == [publish()]
    assert host.dirty == [quick_wire]


@pytest.mark.parametrize("size", [0, 1, 122, 123, 124, 125, 500])
def test_a_qos_1_publish_is_distributed_and_acknowledged(size: int) -> None:
    """At the lower of both QoS, with an identifier of the receiver's own; PUBACK with the sender's."""
    one, zero = session("1"), session("0")
    one.last_id = 4
    one_wire, zero_wire = linked(one), linked(zero)
    connection, host = known((one, 2), (zero, 0))
    packet = publish(b"x" * size, 1)
    assert taken(connection, host, packet + PINGREQ) == len(packet)
    assert one_wire.outbox == [encode_publish(b"t", b"x" * size, 1, False, False, 5)]
    assert zero_wire.outbox == [encode_publish(b"t", b"x" * size, 0, False, False, 0)]
    assert connection.outbox == [b"\x40\x02\x01\x07"]
    kept, qos, retain = one.inflight[5]
    assert (kept.topic, kept.topic_raw, kept.payload, kept.qos, qos, retain) == ("t", b"t", b"x" * size, 1, 1, False)
    assert (connection.dirty, host.flushes, host.messages_in) == (True, 1, 1)


def test_a_qos_1_publish_for_nobody_is_acknowledged() -> None:
    """The publisher's connection is filed for a flush once."""
    connection, host = known()
    assert taken(connection, host, publish(qos=1) * 2) == 2 * len(publish(qos=1))
    assert connection.outbox == [b"\x40\x02\x01\x07"] * 2
    assert host.dirty == [connection]


def test_a_full_queue_is_told() -> None:
    """QoS 1 for a session that may keep one message only."""
    target = session("full", queue_messages=1)
    connection, host = known((target, 1))
    taken(connection, host, publish(qos=1) * 3)
    assert (target.queued, target.dropped, host.told) == (1, 2, [("dropped", "full")] * 2)


LEFT = {
    "another type": PINGREQ,
    "QoS 2": publish(qos=2),
    "retain": encode_publish(b"t", b"1", 0, True, False, 0),
    "retain with more payload": encode_publish(b"t", b"12345", 0, True, False, 0),
    "a type below PUBLISH": b"\x20\x04\x00\x01t1",
    "a type of none": b"\x00\x06\x00\x01t123",
    "DUP": encode_publish(b"t", b"1", 1, False, True, 7),
    "unknown topic": publish(topic="u"),
    "identifier 0": b"\x32\x05\x00\x01t\x00\x00",
    "no room for an identifier": b"\x32\x04\x00\x01t\x00",
    "topic beyond the packet": b"\x30\x03\x00\x04tttt",
    "QoS 1 topic beyond the packet": b"\x32\x03\x00\x04tttt",
    "too short for a topic": b"\x30\x02\x00\x00",
    "length 0": b"\x30\x00",
    "three length bytes": publish(b"x" * 17_000),
    "the shortest with three length bytes": publish(b"x" * (16_384 - 3)),
    "PUBACK that is too long": b"\x40\x03\x00\x03\x00",
    "PUBACK that is too short": b"\x40\x01\x00\x03",
    "PUBREC for a QoS 1 delivery": encode_ack(PacketType.PUBREC, 3),
    "PUBACK for an unknown identifier": encode_ack(PacketType.PUBACK, 9),
    "PUBACK for a QoS 2 delivery": encode_ack(PacketType.PUBACK, 2),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_not_plain_is_left_to_the_table(case: str) -> None:
    """Untouched: nothing sent, nothing counted, nothing moved; also behind a packet that was taken."""
    target = session()
    wire = linked(target)
    connection, host = known((target, 1))
    connection.max_packet_bytes = 100_000
    connection.routes[b"tttt"] = connection.routes[b""] = connection.routes[b"t"]
    host.session.inflight = {2: (message(qos=2), 2, False), 3: (message(), 1, False)}
    assert taken(connection, host, LEFT[case]) == 0
    assert (wire.outbox, connection.outbox, host.messages_in, list(host.session.inflight)) == ([], [], 0, [2, 3])
    plain = publish()
    assert taken(connection, host, plain + LEFT[case]) == len(plain)
    assert wire.outbox == [plain]


@pytest.mark.parametrize("packet", [publish(b"x" * 50), publish(b"x" * 300), publish(qos=1), b"\x40\x02\x00\x02"])
def test_an_unfinished_packet_is_left(packet: bytes) -> None:
    """Cut anywhere."""
    target = session()
    wire = linked(target)
    connection, host = known((target, 0))
    host.session.inflight[2] = (message(), 1, False)
    for cut in range(len(packet)):
        assert taken(connection, host, packet[:cut]) == 0
    assert (wire.outbox, connection.outbox, host.messages_in, list(host.session.inflight)) == ([], [], 0, [2])
    assert taken(connection, host, packet) == len(packet)


def test_an_unfinished_acknowledgement_behind_others_is_left() -> None:
    """Wherever in the buffer it begins."""
    connection, host = known()
    host.session.inflight = {number: (message(), 1, False) for number in (1, 2)}
    data = encode_ack(PacketType.PUBACK, 1) + encode_ack(PacketType.PUBACK, 2)
    for cut in (5, 6, 7):
        host.session.inflight[1] = (message(), 1, False)
        assert taken(connection, host, data[:cut]) == 4
        assert list(host.session.inflight) == [2]


def test_acknowledgements_are_read_wherever_they_stand() -> None:
    """Both bytes of the identifier, at even and odd places, among messages."""
    connection, host = known()
    identifiers = [0x0102, 0xFF00, 0x00FF, 0x0201, 65535, 256]
    host.session.inflight = {number: (message(), 1, False) for number in (*identifiers, 1, 2, 254)}
    data = b"".join(publish(b"p" * (n % 3)) + encode_ack(PacketType.PUBACK, i) for n, i in enumerate(identifiers))
    assert taken(connection, host, data) == len(data)
    assert list(host.session.inflight) == [1, 2, 254]


@pytest.mark.parametrize("size", [255, 256, 300, 513])
def test_a_long_topic_is_found_by_its_whole_length(size: int) -> None:
    """Both bytes of the topic's length."""
    topic = "t" * size
    target = session()
    wire = linked(target)
    connection, host = known((target, 0), topic=topic)
    connection.max_packet_bytes = 20_000
    assert taken(connection, host, publish(topic=topic)) == len(publish(topic=topic))
    longest = publish(b"x" * (16_383 - 2 - size), topic=topic)
    assert taken(connection, host, longest) == len(longest)
    assert wire.outbox == [publish(topic=topic), longest]


def test_it_begins_where_it_is_told_and_reads_no_further_than_the_end() -> None:
    """Bytes before and behind are somebody else's."""
    connection, host = known()
    data = b"\xff" + publish() + publish()
    assert forward(connection, host.session, data, 1, 1 + len(publish())) == 1 + len(publish())
    assert forward(connection, host.session, data, 1, len(publish())) == 1
    assert host.messages_in == 1


@pytest.mark.parametrize("over", [0, 1])
def test_a_packet_beyond_the_limit_is_left(over: int) -> None:
    """The table ends the connection for it."""
    connection, host = known()
    packet = publish(b"x" * 50)
    connection.max_packet_bytes = len(packet) - 2 - over
    assert taken(connection, host, packet) == (0 if over else len(packet))


def test_a_route_of_an_older_version_is_not_taken() -> None:
    """A subscription or a right has changed since."""
    connection, host = known()
    host.version += 1
    assert taken(connection, host, publish()) == 0


def test_acknowledgements_of_qos_1_are_taken_and_the_session_is_pumped_once() -> None:
    """When something waits; otherwise there is nothing to pump."""
    connection, host = known()
    waiting = host.session
    waiting.inflight = {number: (message(), 1, False) for number in range(1, 5)}
    data = b"".join(encode_ack(PacketType.PUBACK, number) for number in (2, 1))
    assert taken(connection, host, data) == 8
    assert (list(waiting.inflight), host.told) == ([3, 4], [])
    waiting.window = 1
    waiting.deliver(message(payload=b"queued"), 1)
    data = b"".join(encode_ack(PacketType.PUBACK, number) for number in (0x0003, 4))
    assert taken(connection, host, data) == 8
    assert host.told == [("pump", "c")]
    assert connection.outbox == [encode_publish(b"t", b"queued", 1, False, False, 1)]


def test_acknowledgements_pump_a_session_with_retained_messages_to_send() -> None:
    """A walk goes on when the window opens."""
    connection, host = known()
    host.session.inflight[300] = (message(), 1, False)
    host.session.start_walk("#", iter(["t"]), 1)
    assert taken(connection, host, encode_ack(PacketType.PUBACK, 300)) == 4
    assert host.told == [("pump", "c")]


def test_a_message_is_distributed_at_the_lower_qos_and_encoded_once() -> None:
    """QoS 0 to many is the very same bytes; the absent and the blocked are told apart."""
    zero, also_zero, two, absent, blocked = (session(name) for name in ("0", "00", "2", "absent", "blocked"))
    wires = [linked(made) for made in (zero, also_zero, two, blocked)]
    wires[3].blocked = True
    host = FakeHost()
    targets = [(zero, 0), (also_zero, 0), (two, 2), (absent, 0), (blocked, 0)]
    distribute(message(qos=2), targets, host)
    assert wires[0].outbox == [encode_publish(b"t", b"x", 0, False, False, 0)]
    assert wires[0].outbox[0] is wires[1].outbox[0]
    assert wires[2].outbox == [encode_publish(b"t", b"x", 2, False, False, 1)]
    assert (wires[3].outbox, blocked.dropped, absent.dropped) == ([], 1, 0)
    assert host.told == [("dropped", "blocked")]


def test_a_route_has_its_targets_with_and_without_qos() -> None:
    """As the fast path wants them."""
    one, two = session("1"), session("2")
    route = Route("t", [(one, 0), (two, 1)], 7)
    assert (route.topic, route.version, route.sessions, route.targets) == ("t", 7, (one, two), ((one, 0), (two, 1)))
