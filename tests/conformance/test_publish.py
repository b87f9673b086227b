"""PUBLISH in every QoS, retained messages, acknowledgements and order: MQTT 3.1.1 sections 3.3 to 3.7 and 4."""

from __future__ import annotations

import itertools

import pytest

from gateway.broker import packets
from gateway.broker.packets import PacketType, encode_ack, encode_publish
from tests.support.gateway import Gateway, RawClient, wait_until

numbers = itertools.count()


def pair(broker: Gateway, qos: int = 2, *, clean: bool = True) -> tuple[RawClient, RawClient, str, str]:
    """A publisher, a subscriber at `qos`, a topic and the subscriber's client identifier, all new."""
    number = next(numbers)
    topic, name = f"p{number}/t", f"sub{number}"
    subscriber = broker.connected("dev-b", name, clean=clean)
    assert subscriber.subscribe((f"p{number}/#", qos)) == [qos]
    return broker.connected("dev-a", f"pub{number}"), subscriber, topic, name


def wire(first: int, body: bytes) -> bytes:
    return bytes((first, len(body))) + body


@pytest.mark.parametrize(
    ("packet", "clause"),
    [
        (wire(0x36, b"\x00\x01t\x00\x01x"), "3.3.1-4 QoS 3"),
        (wire(0x38, b"\x00\x01tx"), "3.3.1-2 DUP with QoS 0"),
        (wire(0x32, b"\x00\x01t\x00\x00x"), "2.3.1-1 packet identifier 0"),
        (wire(0x34, b"\x00\x01t\x00\x00x"), "2.3.1-1 packet identifier 0, QoS 2"),
        (wire(0x30, b"\x00\x03t/+x"), "3.3.2-2 wildcard +"),
        (wire(0x30, b"\x00\x01#x"), "4.7.1-1 wildcard #"),
        (wire(0x30, b"\x00\x00x"), "4.7.3-1 empty topic"),
        (wire(0x30, b"\x00\x02t\x00x"), "4.7.3-2 null character"),
        (wire(0x30, b"\x00\x02\xc3\x28x"), "3.3.2-1 not UTF-8"),
        (wire(0x30, b"\x00\x03\xed\xa0\x80"), "1.5.3-1 surrogate"),
        (wire(0x30, b"\x00\x09t"), "topic longer than the packet"),
        (b"\x30\xff\xff\xff\xff\x01", "2.2.3 five length bytes"),
        (wire(0x41, b"\x00\x01"), "2.2.2-2 PUBACK flags"),
        (wire(0x51, b"\x00\x01"), "2.2.2-2 PUBREC flags"),
        (wire(0x60, b"\x00\x01"), "3.6.1-1 PUBREL flags"),
        (wire(0x71, b"\x00\x01"), "2.2.2-2 PUBCOMP flags"),
        (wire(0x80, b"\x00\x01\x00\x01t\x00"), "3.8.1-1 SUBSCRIBE flags"),
        (wire(0xA0, b"\x00\x01\x00\x01t"), "3.10.1-1 UNSUBSCRIBE flags"),
        (wire(0xC1, b""), "2.2.2-2 PINGREQ flags"),
        (wire(0x00, b""), "2.2.1 type 0"),
        (wire(0xF0, b""), "2.2.1 type 15"),
        (wire(0x20, b"\x00\x00"), "4.8.0-1 CONNACK from a client"),
        (wire(0xD0, b""), "4.8.0-1 PINGRESP from a client"),
    ],
)
def test_a_malformed_packet_closes_the_connection(broker: Gateway, packet: bytes, clause: str) -> None:
    """[MQTT-4.8.0-1] Closed without an answer; nothing is delivered, and others are not disturbed."""
    client = broker.connected("dev-a", f"malformed{next(numbers)}")
    client.send(packet)
    assert client.expect_closed() == []
    broker.connected("dev-a", "bystander").ping()


def test_u_feff_and_other_odd_text_is_passed_on_unchanged(broker: Gateway) -> None:
    """[MQTT-1.5.3-3, 4.7.3-4, 3.3.2-3] No byte is stripped, normalised or replaced."""
    for odd in ("p/\ufeff/t", "p/A\u0308", "p/\u00c4", "p/\U0001f600", "/", "p/ /\u0001"):
        client = broker.connected("dev-a", f"odd{next(numbers)}")
        assert client.subscribe((odd, 0)) == [0]
        client.publish(odd, b"1")
        assert client.expect_publish().topic == odd


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 200_000])
def test_payloads_of_every_length_encoding(broker: Gateway, size: int) -> None:
    """Remaining lengths of one to three bytes, in and out."""
    publisher, subscriber, topic, _ = pair(broker)
    payload = bytes(index % 251 for index in range(size))
    publisher.publish(topic, payload, qos=1)
    assert publisher.read() == (0x40, b"\x00\x01")
    assert subscriber.expect_publish().payload == payload


def test_a_topic_of_65535_bytes(broker: Gateway) -> None:
    """[MQTT-4.7.3-3] The longest topic there can be is routed."""
    topic = "/".join(["level"] * 10_922) + "/xx/"
    assert len(topic) == 65_535
    client = broker.connected("dev-a", f"long{next(numbers)}")
    assert client.subscribe((topic, 0)) == [0]
    client.publish(topic, b"1")
    assert client.expect_publish().topic == topic


def test_qos_0_is_delivered_with_qos_0_and_without_dup_or_identifier(broker: Gateway) -> None:
    """[MQTT-4.3.1-1, 2.3.1-5] PUBLISH with QoS 0 has neither."""
    publisher, subscriber, topic, _ = pair(broker)
    publisher.publish(topic, b"1")
    assert subscriber.read()[0] == 0x30


def test_qos_1_is_acknowledged_with_its_identifier(broker: Gateway) -> None:
    """[MQTT-3.3.4-1, 4.3.2-2, 2.3.1-6] And delivered with one of the broker's own [MQTT-4.3.2-1, 2.3.1-4]."""
    publisher, subscriber, topic, name = pair(broker)
    publisher.publish(topic, b"1", qos=1, packet_id=0xABCD)
    assert publisher.read() == (0x40, b"\xab\xcd")
    message = subscriber.expect_publish()
    assert (message.qos, message.dup, message.packet_id > 0) == (1, False, True)
    assert broker.sessions()[name]["inflight"] == 1
    subscriber.send(encode_ack(PacketType.PUBACK, message.packet_id))
    subscriber.ping()
    assert broker.sessions()[name]["inflight"] == 0


def test_qos_2_runs_its_exchange_in_both_directions(broker: Gateway) -> None:
    """[MQTT-3.3.4-1, 4.3.3-1, 4.3.3-2, 2.3.1-6] PUBREC, PUBREL, PUBCOMP with the identifiers of the exchange."""
    publisher, subscriber, topic, name = pair(broker)
    publisher.publish(topic, b"1", qos=2, packet_id=9)
    assert publisher.read() == (0x50, b"\x00\x09")
    publisher.send(encode_ack(PacketType.PUBREL, 9))
    assert publisher.read() == (0x70, b"\x00\x09")
    message = subscriber.expect_publish()
    assert (message.qos, message.dup) == (2, False)
    subscriber.send(encode_ack(PacketType.PUBREC, message.packet_id))
    assert subscriber.read() == (0x62, message.packet_id.to_bytes(2))
    subscriber.send(encode_ack(PacketType.PUBCOMP, message.packet_id))
    subscriber.ping()
    assert broker.sessions()[name]["inflight"] == 0


def test_a_qos_2_message_sent_again_is_delivered_once(broker: Gateway) -> None:
    """[MQTT-4.3.3-2] Until PUBREL the identifier is known; afterwards it is a new message."""
    publisher, subscriber, topic, _ = pair(broker, 0)
    for dup in (False, True, True):
        publisher.send(encode_publish(topic.encode(), b"1", 2, False, dup, 9))
        assert publisher.read() == (0x50, b"\x00\x09")
    assert subscriber.expect_publish().payload == b"1"
    subscriber.ping()
    publisher.send(encode_ack(PacketType.PUBREL, 9))
    assert publisher.read() == (0x70, b"\x00\x09")
    publisher.publish(topic, b"2", qos=2, packet_id=9)
    assert subscriber.expect_publish().payload == b"2"


def test_a_qos_1_identifier_used_again_is_a_new_message(broker: Gateway) -> None:
    """[MQTT-4.3.2-2] After the PUBACK, whatever DUP says."""
    publisher, subscriber, topic, _ = pair(broker, 0)
    for number, dup in enumerate((False, False, True)):
        publisher.send(encode_publish(topic.encode(), bytes((number,)), 1, False, dup, 7))
        assert publisher.read() == (0x40, b"\x00\x07")
    assert [subscriber.expect_publish().payload for _ in range(3)] == [b"\x00", b"\x01", b"\x02"]


def test_an_identifier_in_flight_is_not_assigned_again(broker: Gateway) -> None:
    """[MQTT-2.3.1-4, 4.3.2-1] One delivery stays unacknowledged while a hundred others come and go."""
    publisher, subscriber, topic, name = pair(broker, 1)
    open_ids: set[int] = set()
    for number in range(100):
        publisher.publish(topic, bytes((number,)))
        publisher.publish(topic, bytes((number,)), qos=1, packet_id=1)
        assert publisher.read() == (0x40, b"\x00\x01")
        assert subscriber.expect_publish().qos == 0
        message = subscriber.expect_publish()
        assert message.packet_id not in {0, *open_ids}
        open_ids.add(message.packet_id)
        if number % 10 and len(open_ids) > 5:
            subscriber.send(encode_ack(PacketType.PUBACK, message.packet_id))
            open_ids.discard(message.packet_id)
    subscriber.ping()
    assert broker.sessions()[name]["inflight"] == len(open_ids)


def test_after_pubrel_the_publish_is_not_sent_again(broker: Gateway) -> None:
    """[MQTT-4.3.3-1] A reconnect after PUBREC repeats PUBREL only, and a second PUBREC is answered with PUBREL."""
    publisher, subscriber, topic, name = pair(broker, 2, clean=False)
    publisher.publish(topic, b"1", qos=2)
    packet_id = subscriber.expect_publish().packet_id
    subscriber.send(encode_ack(PacketType.PUBREC, packet_id))
    assert subscriber.read() == (0x62, packet_id.to_bytes(2))
    subscriber.close()
    wait_until(lambda: not broker.sessions()[name]["connected"], "disconnected")
    again = broker.client("dev-b")
    assert again.connect(name, clean=False) == (True, 0)
    assert again.read() == (0x62, packet_id.to_bytes(2))
    again.send(encode_ack(PacketType.PUBREC, packet_id))
    assert again.read() == (0x62, packet_id.to_bytes(2))
    again.send(encode_ack(PacketType.PUBCOMP, packet_id))
    again.ping()
    assert broker.sessions()[name]["inflight"] == 0


def test_a_fault_while_a_packet_is_handled_ends_the_connection_and_no_other(
    broker: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[MQTT-4.8.0-2] A PUBLISH that cannot be dealt with is not acknowledged: its sender has to send it again."""
    publisher, subscriber, topic, _ = pair(broker)

    def out_of_memory(*_: object) -> bool:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(broker.broker.plane.exchange, "retain", out_of_memory)
        publisher.publish(topic, b"1", qos=1, retain=True)
        assert publisher.expect_closed() == []
    subscriber.ping()
    again = broker.connected("dev-a", f"fault{next(numbers)}")
    again.publish(topic, b"1", qos=1, retain=True)
    assert again.read() == (0x40, b"\x00\x01")
    assert subscriber.expect_publish().payload == b"1"


def test_a_pubrel_for_an_unknown_identifier_is_completed(broker: Gateway) -> None:
    """A client that missed the PUBCOMP asks again and must be freed."""
    client = broker.connected("dev-a", f"unknown{next(numbers)}")
    client.send(encode_ack(PacketType.PUBREL, 77))
    assert client.read() == (0x70, b"\x00\x4d")


def test_q1_a_pubrec_for_an_unknown_identifier_is_answered_with_pubrel(broker: Gateway) -> None:
    """Trap Q1: the peer can finish an exchange that the broker has forgotten."""
    client = broker.connected("dev-a", f"unknown{next(numbers)}")
    client.send(encode_ack(PacketType.PUBREC, 77))
    assert client.read() == (0x62, b"\x00\x4d")


@pytest.mark.parametrize("packet_type", [PacketType.PUBACK, PacketType.PUBCOMP])
def test_an_acknowledgement_of_nothing_is_ignored(broker: Gateway, packet_type: PacketType) -> None:
    """An unknown identifier in PUBACK or PUBCOMP harms nothing."""
    client = broker.connected("dev-a", f"unknown{next(numbers)}")
    client.send(encode_ack(packet_type, 77))
    client.ping()


def test_dup_of_an_incoming_publish_is_not_passed_on(broker: Gateway) -> None:
    """[MQTT-3.3.1-3] The outgoing DUP flag is the broker's own."""
    publisher, subscriber, topic, _ = pair(broker)
    publisher.send(encode_publish(topic.encode(), b"1", 1, False, True, 5))
    assert not subscriber.expect_publish().dup


@pytest.mark.parametrize("qos", [1, 2])
def test_q1_unacknowledged_messages_are_redelivered_with_dup_and_their_identifiers(broker: Gateway, qos: int) -> None:
    """[MQTT-4.4.0-1, 3.3.1-1, 4.6.0-1] In the order in which they were sent first, after a reconnect only."""
    publisher, subscriber, topic, name = pair(broker, qos, clean=False)
    for number in range(5):
        publisher.publish(topic, bytes((number,)), qos=qos, packet_id=number + 1)
    first = [subscriber.expect_publish() for _ in range(5)]
    assert [message.dup for message in first] == [False] * 5
    with pytest.raises(TimeoutError):
        subscriber.read(1.0)
    subscriber.close()
    wait_until(lambda: not broker.sessions()[name]["connected"], "disconnected")
    again = broker.client("dev-b")
    assert again.connect(name, clean=False) == (True, 0)
    second = [again.expect_publish() for _ in range(5)]
    assert [(m.packet_id, m.payload, m.dup) for m in second] == [(m.packet_id, m.payload, True) for m in first]


def test_q1_a_pubrel_is_sent_again_without_dup(broker: Gateway) -> None:
    """[MQTT-4.4.0-1, 4.6.0-4] After a reconnect in the order of the PUBRECs."""
    publisher, subscriber, topic, name = pair(broker, 2, clean=False)
    for number in range(3):
        publisher.publish(topic, b"x", qos=2, packet_id=number + 1)
    ids = [subscriber.expect_publish().packet_id for _ in range(3)]
    for packet_id in reversed(ids):
        subscriber.send(encode_ack(PacketType.PUBREC, packet_id))
        assert subscriber.read() == (0x62, packet_id.to_bytes(2))
    subscriber.close()
    wait_until(lambda: not broker.sessions()[name]["connected"], "disconnected")
    again = broker.client("dev-b")
    assert again.connect(name, clean=False) == (True, 0)
    assert [again.read() for _ in ids] == [(0x62, packet_id.to_bytes(2)) for packet_id in reversed(ids)]


def test_a_received_qos_2_identifier_survives_a_reconnect(broker: Gateway) -> None:
    """[MQTT-4.1.0-2, 4.3.3-2] A PUBLISH sent again after the reconnect is not delivered twice."""
    publisher, subscriber, topic, _ = pair(broker, 0)
    name = f"again{next(numbers)}"
    publisher = broker.connected("dev-a", name, clean=False)
    publisher.publish(topic, b"1", qos=2, packet_id=3)
    assert publisher.read() == (0x50, b"\x00\x03")
    publisher.close()
    wait_until(lambda: not broker.sessions()[name]["connected"], "disconnected")
    again = broker.client("dev-a")
    assert again.connect(name, clean=False) == (True, 0)
    again.send(encode_publish(topic.encode(), b"1", 2, False, True, 3))
    assert again.read() == (0x50, b"\x00\x03")
    assert subscriber.expect_publish().payload == b"1"
    subscriber.ping()


def test_acknowledgements_keep_the_order_of_the_messages(broker: Gateway) -> None:
    """[MQTT-4.6.0-2, 4.6.0-3] PUBACKs and PUBRECs in the order of the PUBLISH packets."""
    client = broker.connected("dev-a", f"order{next(numbers)}")
    qos = [1, 2, 1, 1, 2, 1]
    client.send(b"".join(encode_publish(b"order/x", b"", q, False, False, i + 1) for i, q in enumerate(qos)))
    got = [client.read() for _ in qos]
    assert got == [(0x40 if q == 1 else 0x50, (i + 1).to_bytes(2)) for i, q in enumerate(qos)]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_messages_of_one_topic_arrive_in_order(broker: Gateway, qos: int) -> None:
    """[MQTT-4.6.0-5, 4.6.0-6] Far more than fit into the window, in a few large writes."""
    publisher, subscriber, topic, _ = pair(broker, qos)
    count = 200
    data = b"".join(
        encode_publish(topic.encode(), number.to_bytes(2), qos, False, False, number + 1 if qos else 0)
        for number in range(count)
    )
    publisher.send(data)
    received: list[int] = []
    while len(received) < count:
        first, body = subscriber.read()
        if first >> 4 == PacketType.PUBREL:
            subscriber.send(b"\x70\x02" + body)
            continue
        message = packets.decode_publish(first, body)
        received.append(int.from_bytes(message.payload))
        if qos:
            subscriber.send(encode_ack(PacketType.PUBACK if qos == 1 else PacketType.PUBREC, message.packet_id))
    assert received == list(range(count))


def test_a_message_is_kept_for_every_matching_session(broker: Gateway) -> None:
    """[MQTT-4.5.0-1] Each of three subscribers gets it, live or later."""
    number = next(numbers)
    names = [f"each{number}-{index}" for index in range(3)]
    subscribers = [broker.connected("dev-b", name, clean=False) for name in names]
    for subscriber in subscribers:
        assert subscriber.subscribe((f"each{number}", 1)) == [1]
    subscribers[2].disconnect()
    publisher = broker.connected("dev-a", f"each{number}")
    publisher.publish(f"each{number}", b"1", qos=1)
    assert publisher.read() == (0x40, b"\x00\x01")
    assert [subscriber.expect_publish().payload for subscriber in subscribers[:2]] == [b"1", b"1"]
    again = broker.client("dev-b")
    assert again.connect(names[2], clean=False) == (True, 0)
    assert again.expect_publish().payload == b"1"


# retained messages


def test_a_retained_message_is_kept_with_its_qos_and_marked_for_new_subscribers_only(broker: Gateway) -> None:
    """[MQTT-3.3.1-5, 3.3.1-6, 3.3.1-8, 3.3.1-9] RETAIN is 0 live and 1 for a new subscription."""
    publisher, subscriber, topic, _ = pair(broker, 2)
    publisher.publish(topic, b"kept", qos=1, retain=True)
    live = subscriber.expect_publish()
    assert (live.retain, live.qos) == (False, 1)
    late = broker.connected("dev-c", f"late{next(numbers)}")
    assert late.subscribe((topic, 2)) == [2]
    kept = late.expect_publish()
    assert (kept.payload, kept.retain, kept.qos, kept.dup) == (b"kept", True, 1, False)


def test_the_last_retained_message_replaces_the_one_before(broker: Gateway) -> None:
    """[MQTT-3.3.1-5, 3.3.1-7] Also when the new one has QoS 0."""
    publisher, _, topic, _ = pair(broker)
    publisher.publish(topic, b"1", qos=1, retain=True)
    publisher.publish(topic, b"2", retain=True)
    publisher.send(packets.PINGREQ)
    assert [publisher.read()[0], publisher.read()[0]] == [0x40, 0xD0]
    late = broker.connected("dev-c", f"late{next(numbers)}")
    assert late.subscribe((topic, 1)) == [1]
    assert late.expect_publish().payload == b"2"
    late.ping()


def test_an_empty_retained_message_removes_the_one_before_and_is_not_kept(broker: Gateway) -> None:
    """[MQTT-3.3.1-10, 3.3.1-11] It is delivered to those who are subscribed."""
    publisher, subscriber, topic, _ = pair(broker, 0)
    publisher.publish(topic, b"1", retain=True)
    publisher.publish(topic, b"", retain=True)
    assert [subscriber.expect_publish().payload for _ in range(2)] == [b"1", b""]
    late = broker.connected("dev-c", f"late{next(numbers)}")
    assert late.subscribe((topic, 1)) == [1]
    late.ping()


def test_a_message_without_retain_leaves_the_retained_one_alone(broker: Gateway) -> None:
    """[MQTT-3.3.1-12] Neither replaced nor removed."""
    publisher, _, topic, _ = pair(broker)
    publisher.publish(topic, b"kept", retain=True)
    publisher.publish(topic, b"passing")
    publisher.publish(topic, b"")
    publisher.ping()
    late = broker.connected("dev-c", f"late{next(numbers)}")
    assert late.subscribe((topic, 0)) == [0]
    assert late.expect_publish().payload == b"kept"
    late.ping()


def test_retained_messages_outlive_the_session_that_published_them(broker: Gateway) -> None:
    """[MQTT-3.1.2.7] They are no part of it."""
    topic = f"outlive{next(numbers)}"
    publisher = broker.connected("dev-a", topic)
    publisher.publish(topic, b"kept", retain=True)
    publisher.disconnect()
    wait_until(lambda: topic not in broker.sessions(), "session gone")
    late = broker.connected("dev-c", f"late{next(numbers)}")
    assert late.subscribe((topic, 0)) == [0]
    assert late.expect_publish().payload == b"kept"


def test_many_retained_messages_all_arrive(broker: Gateway) -> None:
    """More than one turn of the loop sends, at QoS 0 and 1, with a window far smaller."""
    number = next(numbers)
    publisher = broker.connected("dev-a", f"many{number}")
    publisher.send(
        b"".join(encode_publish(f"many{number}/{i}".encode(), b"x", 1, True, False, i + 1) for i in range(1000))
    )
    for _ in range(1000):
        publisher.read()
    for qos in (0, 1):
        late = broker.connected("dev-c", f"late{next(numbers)}")
        assert late.subscribe((f"many{number}/+", qos)) == [qos]
        topics = set()
        for _ in range(1000):
            message = late.expect_publish()
            topics.add(message.topic)
            if qos:
                late.send(encode_ack(PacketType.PUBACK, message.packet_id))
        assert len(topics) == 1000
