"""SUBSCRIBE, UNSUBSCRIBE and topic matching: MQTT 3.1.1 sections 3.8 to 3.11 and 4.7."""

from __future__ import annotations

import itertools

import pytest

from gateway.broker import packets
from gateway.broker.packets import PacketType, encode_ack
from tests.support.gateway import Gateway

numbers = itertools.count()


def wire(first: int, body: bytes) -> bytes:
    return bytes((first, len(body))) + body


@pytest.mark.parametrize(
    ("packet", "clause"),
    [
        (wire(0x82, b"\x00\x01"), "3.8.3-3 no topic filter"),
        (wire(0x82, b"\x00\x00\x00\x01t\x00"), "2.3.1-1 packet identifier 0"),
        (wire(0x82, b"\x00\x01\x00\x01t\x03"), "3-8.3-4 QoS 3"),
        (wire(0x82, b"\x00\x01\x00\x01t\x80"), "3-8.3-4 reserved bits"),
        (wire(0x82, b"\x00\x01\x00\x00\x00"), "4.7.3-1 empty filter"),
        (wire(0x82, b"\x00\x01\x00\x02\xc3\x28\x00"), "3.8.3-1 not UTF-8"),
        (wire(0x82, b"\x00\x01\x00\x03a#b\x00"), "4.7.1-2 # inside a level"),
        (wire(0x82, b"\x00\x01\x00\x03#/a\x00"), "4.7.1-2 # before the end"),
        (wire(0x82, b"\x00\x01\x00\x02a+\x00"), "4.7.1-3 + inside a level"),
        (wire(0x82, b"\x00\x01\x00\x02a\x00\x00"), "4.7.3-2 null character"),
        (wire(0xA2, b"\x00\x01"), "3.10.3-2 no topic filter"),
        (wire(0xA2, b"\x00\x00\x00\x01t"), "2.3.1-1 packet identifier 0"),
        (wire(0xA2, b"\x00\x01\x00\x02\xc3\x28"), "3.10.3-1 not UTF-8"),
    ],
)
def test_a_malformed_subscription_closes_the_connection(broker: Gateway, packet: bytes, clause: str) -> None:
    """[MQTT-4.8.0-1] Closed without SUBACK or UNSUBACK."""
    client = broker.connected("dev-a", f"bad{next(numbers)}")
    client.send(packet)
    assert client.expect_closed() == []


def test_suback_carries_the_identifier_and_one_code_per_filter_in_order(broker: Gateway) -> None:
    """[MQTT-3.8.4-1, 3.8.4-2, 3.8.4-4, 3.8.4-5, 3.8.4-6, 3.9.3-1, 3.9.3-2, 2.3.1-7] As for single SUBSCRIBEs."""
    client = broker.connected("dev-a", f"sub{next(numbers)}")
    client.send(packets.encode_subscribe(0xBEEF, [("a/b", 2), ("$share/g/x", 1), ("c/+", 0), ("#", 1)]))
    assert client.read() == (0x90, b"\xbe\xef\x02\x80\x00\x01")


def test_a_filter_with_wildcards_is_supported(broker: Gateway) -> None:
    """[MQTT-3.8.3-2] Wildcards match as section 4.7 says."""
    client = broker.connected("dev-a", f"wild{next(numbers)}")
    assert client.subscribe(("wild/+/x/#", 0)) == [0]
    for topic in ("wild/a/x", "wild/b/x/y/z", "wild//x", "wild/a/y", "wild/x"):
        client.publish(topic)
    assert [client.expect_publish().topic for _ in range(3)] == ["wild/a/x", "wild/b/x/y/z", "wild//x"]
    client.ping()


@pytest.mark.parametrize(
    ("topic_filter", "hits", "misses"),
    [
        ("m/#", ["m", "m/a", "m/a/b", "m/"], ["n", "mm", "M/a"]),
        ("m/+", ["m/a", "m/"], ["m", "m/a/b"]),
        ("+/m2/+", ["a/m2/b", "/m2/"], ["m2/b", "a/m2"]),
        ("m3//b", ["m3//b"], ["m3/b", "m3/x/b"]),
        ("m4/b", ["m4/b"], ["m4/B", "m4/b/", "/m4/b"]),
    ],
)
def test_matching_is_by_whole_levels_and_exact(
    broker: Gateway, topic_filter: str, hits: list[str], misses: list[str]
) -> None:
    """[MQTT-4.7.1-2, 4.7.1-3, 4.7.3-4, 3.3.2-3] What matches arrives, what does not stays away."""
    client = broker.connected("dev-a", f"match{next(numbers)}")
    assert client.subscribe((topic_filter, 0)) == [0]
    for topic in (*hits, *misses):
        client.publish(topic)
    assert [client.expect_publish().topic for _ in hits] == hits
    client.ping()


def test_a_leading_wildcard_does_not_match_dollar_topics(broker: Gateway) -> None:
    """[MQTT-4.7.2-1] Neither live nor retained; a filter that names the level does."""
    publisher = broker.connected("dev-b", f"dollar{next(numbers)}")
    publisher.publish("$test/kept", b"1", retain=True)
    publisher.ping()
    client = broker.connected("dev-a", f"dollar{next(numbers)}")
    assert client.subscribe(("+/kept", 0), ("+/live", 0)) == [0, 0]
    publisher.publish("$test/live")
    publisher.ping()
    client.ping()
    assert client.subscribe(("$test/#", 0)) == [0]
    assert client.expect_publish().topic == "$test/kept"


def test_the_same_filter_again_replaces_the_subscription_and_resends_retained_messages(broker: Gateway) -> None:
    """[MQTT-3.8.4-3] The new QoS counts, and there is one delivery only."""
    number = next(numbers)
    client = broker.connected("dev-a", f"again{number}")
    client.publish(f"again{number}/x", b"kept", qos=1, retain=True)
    assert client.read() == (0x40, b"\x00\x01")
    for qos in (0, 1):
        assert client.subscribe((f"again{number}/#", qos)) == [qos]
        kept = client.expect_publish()
        assert (kept.retain, kept.qos) == (True, qos)
    client.publish(f"again{number}/y", qos=1, packet_id=5)
    seen = sorted((client.read()[0], client.read()[0]))
    assert seen == [0x32, 0x40]
    client.ping()


def test_overlapping_subscriptions_deliver_once_at_the_highest_qos(broker: Gateway) -> None:
    """[MQTT-3.3.5-1] The maximum QoS of all matching subscriptions is respected."""
    number = next(numbers)
    client = broker.connected("dev-a", f"over{number}")
    assert client.subscribe((f"o{number}/#", 0), (f"o{number}/+", 2), (f"o{number}/x", 1)) == [0, 2, 1]
    sender = broker.connected("dev-b", f"over-s{number}")
    sender.publish(f"o{number}/x", qos=2)
    assert client.expect_publish().qos == 2
    client.ping()


def test_unsubscribe_stops_new_messages_and_is_acknowledged(broker: Gateway) -> None:
    """[MQTT-3.10.4-2, 3.10.4-4, 3.10.4-5, 3.10.4-6] UNSUBACK with the identifier, also for several filters."""
    number = next(numbers)
    client = broker.connected("dev-a", f"unsub{number}")
    assert client.subscribe((f"u{number}/a", 0), (f"u{number}/b", 0), (f"u{number}/c", 0)) == [0, 0, 0]
    client.send(packets.encode_unsubscribe(0xCAFE, [f"u{number}/a", f"u{number}/b", "never/subscribed"]))
    assert client.read() == (0xB0, b"\xca\xfe")
    for level in "abc":
        client.publish(f"u{number}/{level}")
    assert client.expect_publish().topic == f"u{number}/c"
    client.ping()


def test_unsubscribe_compares_filters_character_by_character(broker: Gateway) -> None:
    """[MQTT-3.10.4-1] A filter that covers a subscription does not remove it."""
    number = next(numbers)
    client = broker.connected("dev-a", f"chars{number}")
    assert client.subscribe((f"c{number}/+", 0)) == [0]
    client.send(packets.encode_unsubscribe(2, [f"c{number}/#", f"c{number}/x", f"C{number}/+"]))
    assert client.read() == (0xB0, b"\x00\x02")
    client.publish(f"c{number}/x")
    assert client.expect_publish().topic == f"c{number}/x"


def test_delivery_that_has_begun_is_completed_after_unsubscribe(broker: Gateway) -> None:
    """[MQTT-3.10.4-3] The QoS 2 exchange goes on to its end."""
    number = next(numbers)
    client = broker.connected("dev-a", f"begun{number}")
    assert client.subscribe((f"b{number}", 2)) == [2]
    broker.connected("dev-b", f"begun-s{number}").publish(f"b{number}", qos=2)
    message = client.expect_publish()
    client.send(packets.encode_unsubscribe(2, [f"b{number}"]))
    assert client.read() == (0xB0, b"\x00\x02")
    client.send(encode_ack(PacketType.PUBREC, message.packet_id))
    assert client.read() == (0x62, message.packet_id.to_bytes(2))
    client.send(encode_ack(PacketType.PUBCOMP, message.packet_id))
    client.ping()


def test_pingreq_is_answered(broker: Gateway) -> None:
    """[MQTT-3.12.4-1] Each one."""
    client = broker.connected("dev-a", f"ping{next(numbers)}")
    client.send(packets.PINGREQ * 3)
    assert [client.read() for _ in range(3)] == [(0xD0, b"")] * 3


def test_packets_arrive_in_any_split(broker: Gateway) -> None:
    """[MQTT-7.1.1-1] A stream has no packet boundaries: one byte at a time is the same as all at once."""
    client = broker.connected("dev-a", f"split{next(numbers)}")
    data = packets.encode_subscribe(7, [("split/#", 0)]) + packets.encode_publish(
        b"split/x", b"1" * 200, 0, False, False, 0
    )
    for index in range(len(data)):
        client.send(data[index : index + 1])
    assert client.read() == (0x90, b"\x00\x07\x00")
    assert client.expect_publish().payload == b"1" * 200


def test_sys_topics_can_be_read_where_the_policy_allows(broker: Gateway) -> None:
    """`$SYS/#` is granted; without a plugin that publishes there nothing comes."""
    client = broker.connected("dev-a", f"sys{next(numbers)}")
    assert client.subscribe(("$SYS/#", 0)) == [0]
    client.ping()
