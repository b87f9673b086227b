"""PUBLISH, the acknowledgements, SUBSCRIBE and UNSUBSCRIBE as raw bytes, and the topics inside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from gateway.broker import packets
from gateway.broker.framing import encode_header
from gateway.broker.packets import (
    MalformedPacket,
    PacketType,
    Publish,
    check_topic_filter,
    check_topic_name,
    decode_packet_id,
    decode_publish,
    decode_subscribe,
    decode_unsubscribe,
    encode_ack,
    encode_publish,
    encode_suback,
    encode_subscribe,
    encode_unsubscribe,
)

ACKS = {
    PacketType.PUBACK: 0x40,
    PacketType.PUBREC: 0x50,
    PacketType.PUBREL: 0x62,
    PacketType.PUBCOMP: 0x70,
    PacketType.UNSUBACK: 0xB0,
}
NOT_UTF8 = {
    "lone continuation": b"a\x80",
    "cut sequence": b"a\xe2\x82",
    "overlong slash": b"a\xc0\xaf",
    "overlong U+0000": b"a\xc0\x80",
    "first surrogate U+D800": b"\xed\xa0\x80",
    "last surrogate U+DFFF": b"\xed\xbf\xbf",
    "surrogate pair": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond U+10FFFF": b"\xf4\x90\x80\x80",
    "never in utf-8": b"\xff",
}


def refused(decode: Callable[..., Any], *arguments: Any) -> tuple[str, str]:
    with pytest.raises(MalformedPacket) as caught:
        decode(*arguments)
    return caught.value.clause, caught.value.message


# topic names and filters


@pytest.mark.parametrize("raw", NOT_UTF8.values(), ids=NOT_UTF8.keys())
def test_ill_formed_utf8_is_refused(raw: bytes) -> None:
    """[MQTT-1.5.3-1], surrogates included, in names and in filters."""
    for check in (check_topic_name, check_topic_filter):
        assert refused(check, raw) == ("MQTT-1.5.3-1", "a string is not well-formed utf-8")


def test_a_refusal_does_not_carry_the_bytes_of_the_peer() -> None:
    """The decoder's own exception, which holds them, is not chained for a log to print."""
    with pytest.raises(MalformedPacket) as caught:
        check_topic_name(b"secret\xff")
    assert caught.value.__suppress_context__
    assert "secret" not in str(caught.value)


def test_the_null_character_is_refused() -> None:
    """[MQTT-1.5.3-2, MQTT-4.7.3-2] anywhere in a name or filter."""
    for raw in (b"\x00", b"a\x00", b"a/\x00/b"):
        for check in (check_topic_name, check_topic_filter):
            assert refused(check, raw) == ("MQTT-1.5.3-2", "a string contains U+0000")


def test_text_is_taken_as_it_is() -> None:
    """[MQTT-1.5.3-3, MQTT-4.7.3-4]: no byte order mark stripped, nothing normalised, spaces and case kept."""
    for text in ("\ufeffa", "a\ufeff", "é", "e\u0301", " ", "A a", "\x01\x7f\x9f", "\uffff", "\U0010ffff", "a//", "/"):
        assert check_topic_name(text.encode()) == text
        assert check_topic_filter(text.encode()) == text


def test_an_empty_topic_is_refused() -> None:
    """[MQTT-4.7.3-1]."""
    for check in (check_topic_name, check_topic_filter):
        assert refused(check, b"") == ("MQTT-4.7.3-1", "a topic is empty")


def test_a_topic_may_have_65535_bytes_and_not_one_more() -> None:
    """[MQTT-4.7.3-3], counted in bytes, for as many levels as fit."""
    for raw in (b"a" * 65_535, b"/" * 65_535, "é".encode() * 32_767 + b"a"):
        assert check_topic_name(raw) == raw.decode()
        assert check_topic_filter(raw) == raw.decode()
        for check in (check_topic_name, check_topic_filter):
            assert refused(check, raw + b"a") == ("MQTT-4.7.3-3", "a topic is longer than 65535 bytes")


@pytest.mark.parametrize("raw", [b"+", b"#", b"a/+", b"a/#", b"a+b", b"#a", b"+/a"])
def test_a_topic_name_has_no_wildcard(raw: bytes) -> None:
    """[MQTT-3.3.2-2, MQTT-4.7.1-1]."""
    assert refused(check_topic_name, raw) == ("MQTT-3.3.2-2", "a topic name contains a wildcard")


@pytest.mark.parametrize("text", ["#", "/#", "a/#", "a/b/#", "+/#", "+/+/#", "$SYS/#", "//#", "a" * 300 + "/#"])
def test_a_hash_as_the_last_level_is_a_filter(text: str) -> None:
    """[MQTT-4.7.1-2], the allowed forms."""
    assert check_topic_filter(text.encode()) == text


@pytest.mark.parametrize("raw", [b"a#", b"#/", b"#/a", b"a/#/b", b"a/b#", b"##", b"#/#", b"a/##", b"a/#b", b"+#"])
def test_a_hash_elsewhere_is_refused(raw: bytes) -> None:
    """[MQTT-4.7.1-2]."""
    assert refused(check_topic_filter, raw) == (
        "MQTT-4.7.1-2",
        "# is not the whole last level of a topic filter",
    )


@pytest.mark.parametrize("text", ["+", "/+", "+/", "+/+", "a/+", "a/+/b", "+/a/+", "$SYS/+", "/".join("+" * 300)])
def test_a_plus_as_a_whole_level_is_a_filter(text: str) -> None:
    """[MQTT-4.7.1-3], the allowed forms."""
    assert check_topic_filter(text.encode()) == text


@pytest.mark.parametrize("raw", [b"a+", b"+a", b"++", b"a/+b", b"+/a+/+", b"a+/#", b"/++/", b"+/b+"])
def test_a_plus_that_shares_its_level_is_refused(raw: bytes) -> None:
    """[MQTT-4.7.1-3]."""
    assert refused(check_topic_filter, raw) == (
        "MQTT-4.7.1-3",
        "+ does not fill a whole level of a topic filter",
    )


# PUBLISH

PUBLISHES = [
    (0x30, "0003612f6270", Publish("a/b", b"p", 0, False, False, 0)),
    (0x31, "00016170", Publish("a", b"p", 0, True, False, 0)),
    (0x30, "000161", Publish("a", b"", 0, False, False, 0)),
    (0x32, "000161000a", Publish("a", b"", 1, False, False, 10)),
    (0x32, "0001610100ff00", Publish("a", b"\xff\x00", 1, False, False, 256)),
    (0x3B, "0001610001", Publish("a", b"", 1, True, True, 1)),
    (0x34, "000161ffff70", Publish("a", b"p", 2, False, False, 65_535)),
    (0x3D, "000161fffe70", Publish("a", b"p", 2, True, True, 65_534)),
    (0x3C, "0002c3a900011111", Publish("é", b"\x11\x11", 2, False, True, 1)),
]


@pytest.mark.parametrize(("first", "wire", "publish"), PUBLISHES)
def test_a_publish_is_decoded_and_encoded(first: int, wire: str, publish: Publish) -> None:
    """[MQTT-2.3.1-5, MQTT-3.3.2-1]: a packet identifier above QoS 0 only, the rest is payload."""
    body = bytes.fromhex(wire)
    assert decode_publish(first, body) == publish
    assert encode_publish(publish.topic.encode(), *publish[1:]) == bytes((first, len(body))) + body


def test_a_publish_knows_its_flags_as_booleans() -> None:
    """`retain` and `dup` are compared with `is` further in."""
    publish = decode_publish(0x3B, b"\x00\x01a\x00\x01")
    assert publish.retain is True
    assert publish.dup is True
    publish = decode_publish(0x30, b"\x00\x01a")
    assert publish.retain is False
    assert publish.dup is False


REFUSED_PUBLISHES = {
    "QoS 3": (0x36, "0001610001", "MQTT-3.3.1-4", "PUBLISH has QoS 3"),
    "QoS 3 with DUP and RETAIN": (0x3F, "0001610001", "MQTT-3.3.1-4", "PUBLISH has QoS 3"),
    "DUP with QoS 0": (0x38, "000161", "MQTT-3.3.1-2", "PUBLISH has DUP with QoS 0"),
    "nothing": (0x30, "", "MQTT-3.3.2-1", "the packet ends before or inside its topic name"),
    "half a length": (0x30, "00", "MQTT-3.3.2-1", "the packet ends before or inside its topic name"),
    "topic cut": (0x30, "000261", "MQTT-3.3.2-1", "the packet ends before or inside its topic name"),
    "topic empty": (0x30, "000070", "MQTT-4.7.3-1", "a topic is empty"),
    "topic ill-formed": (0x30, "0001ff", "MQTT-1.5.3-1", "a string is not well-formed utf-8"),
    "topic with U+0000": (0x30, "000100", "MQTT-1.5.3-2", "a string contains U+0000"),
    "topic with +": (0x30, "00012b", "MQTT-3.3.2-2", "a topic name contains a wildcard"),
    "topic with #": (0x30, "0003612f23", "MQTT-3.3.2-2", "a topic name contains a wildcard"),
    "QoS 1 without identifier": (0x32, "000161", "MQTT-2.3.1-1", "PUBLISH has no packet identifier"),
    "QoS 1 with half an identifier": (0x32, "00016101", "MQTT-2.3.1-1", "PUBLISH has no packet identifier"),
    "QoS 1 with identifier 0": (0x32, "0001610000", "MQTT-2.3.1-1", "PUBLISH has no packet identifier"),
    "QoS 2 with identifier 0": (0x34, "000161000070", "MQTT-2.3.1-1", "PUBLISH has no packet identifier"),
    "forbidden type": (0x00, "000161", "section 2.2.1", "packet type 0 is forbidden"),
}


@pytest.mark.parametrize("case", REFUSED_PUBLISHES)
def test_a_publish_that_breaks_a_clause_is_refused_with_it(case: str) -> None:
    """The decoder judges the first byte too, so that it is safe without `fixed_header`."""
    first, wire, clause, message = REFUSED_PUBLISHES[case]
    assert refused(decode_publish, first, bytes.fromhex(wire)) == (clause, message)


@pytest.mark.parametrize("qos", [0, 1])
def test_a_publish_is_encoded_at_every_size_of_its_length(qos: int) -> None:
    """The short form and the long form join without a seam at 127 bytes, and go on to a fourth byte."""
    overhead = 2 + 3 + 2 * qos
    for remaining in (overhead, 126, 127, 128, 129, 255, 256, 300, 16_256, 16_383, 16_384, 2_097_151, 2_097_152):
        payload = b"p" * (remaining - overhead)
        packet = encode_publish(b"a/b", payload, qos, False, False, qos)
        header = packets.fixed_header(packet, 0)
        assert header is not None
        first, start, end = header
        assert (first, end - start, end) == (0x30 | qos << 1, remaining, len(packet))
        assert packet[:start] == encode_header(first, remaining)
        assert decode_publish(first, packet[start:]) == Publish("a/b", payload, qos, False, False, qos)


def test_a_publish_that_mqtt_has_not_cannot_be_encoded() -> None:
    """[MQTT-3.3.1-4, MQTT-3.3.1-2, MQTT-2.3.1-1] from the sending side."""
    for qos, dup in ((3, False), (3, True), (0, True)):
        with pytest.raises(ValueError, match="a PUBLISH cannot have QoS 3, or DUP with QoS 0"):
            encode_publish(b"a", b"", qos, False, dup, 1)
    for qos in (1, 2):
        with pytest.raises(ValueError, match="a PUBLISH with a QoS above 0 needs a packet identifier"):
            encode_publish(b"a", b"", qos, False, False, 0)


def test_a_publish_of_qos_0_is_sent_without_identifier() -> None:
    """[MQTT-2.3.1-5], whatever number the caller has."""
    assert encode_publish(b"a", b"p", 0, False, False, 77) == b"\x30\x04\x00\x01ap"


# acknowledgements


@pytest.mark.parametrize(("kind", "first"), ACKS.items(), ids=[kind.name for kind in ACKS])
def test_an_acknowledgement_is_a_packet_identifier(kind: PacketType, first: int) -> None:
    """Both directions, the identifier's bytes in network order."""
    assert encode_ack(kind, 0x0102) == bytes((first, 2, 1, 2))
    assert decode_packet_id(kind, b"\x01\x02") == 0x0102
    assert decode_packet_id(kind, b"\xff\xff") == 65_535
    assert decode_packet_id(kind, b"\x00\x01") == 1


@pytest.mark.parametrize("kind", ACKS, ids=[kind.name for kind in ACKS])
def test_an_acknowledgement_of_nothing_is_refused(kind: PacketType) -> None:
    """Identifier 0 acknowledges nothing [MQTT-2.3.1-1]; more or fewer than two bytes are no identifier."""
    assert refused(decode_packet_id, kind, b"\x00\x00") == (
        "MQTT-2.3.1-1",
        f"{kind.name} has no packet identifier",
    )
    for body in (b"", b"\x01", b"\x00\x01\x00"):
        assert refused(decode_packet_id, kind, body) == (
            "section 2.2.3",
            f"{kind.name} has a remaining length of {len(body)}",
        )


def test_packets_without_content_are_constants() -> None:
    """PINGREQ, PINGRESP and DISCONNECT are two bytes each."""
    assert (packets.PINGREQ, packets.PINGRESP, packets.DISCONNECT) == (b"\xc0\x00", b"\xd0\x00", b"\xe0\x00")


def test_suback_has_one_code_per_filter_in_order() -> None:
    """[MQTT-3.8.4-5, MQTT-3.9.3-1], and none but the four codes of [MQTT-3.9.3-2]."""
    assert encode_suback(0x0102, [2, 0x80, 0, 1]) == b"\x90\x06\x01\x02\x02\x80\x00\x01"
    assert encode_suback(1, [0] * 130)[:5] == b"\x90\x84\x01\x00\x01"
    for code in (3, 4, 0x7F, 0x81, 0xFF):
        with pytest.raises(ValueError, match="a SUBACK return code is not 0, 1, 2 or 128"):
            encode_suback(1, [0, code])


# SUBSCRIBE and UNSUBSCRIBE


def test_a_subscribe_is_decoded_in_the_order_of_the_peer() -> None:
    """Pairs packed one after the other; the same filter twice is the peer's business."""
    body = bytes.fromhex("000a 0003612f62 01 000123 02 00012b 00 000123 00")
    assert decode_subscribe(body) == (10, (("a/b", 1), ("#", 2), ("+", 0), ("#", 0)))
    assert encode_subscribe(10, [("a/b", 1), ("#", 2), ("+", 0), ("#", 0)]) == b"\x82\x14" + body


def test_an_unsubscribe_is_decoded_in_the_order_of_the_peer() -> None:
    """Filters packed one after the other."""
    body = bytes.fromhex("0100 0003612f62 0003612f23")
    assert decode_unsubscribe(body) == (256, ("a/b", "a/#"))
    assert encode_unsubscribe(256, ["a/b", "a/#"]) == b"\xa2\x0c" + body


def test_many_filters_in_one_packet_are_all_decoded() -> None:
    """A client that subscribes to everything it needs in one go."""
    wishes = tuple((f"devices/{number}/#", number % 3) for number in range(500))
    filters = tuple(topic_filter for topic_filter, _ in wishes)
    packet = encode_subscribe(1, wishes)
    header = packets.fixed_header(packet, 0)
    assert header is not None
    assert decode_subscribe(packet[header[1] :]) == (1, wishes)
    packet = encode_unsubscribe(1, filters)
    header = packets.fixed_header(packet, 0)
    assert header is not None
    assert decode_unsubscribe(packet[header[1] :]) == (1, filters)


BAD_QOS = ("MQTT-3-8.3-4", "the requested QoS of a topic filter is not 0, 1 or 2")
REFUSED_SUBSCRIBES = {
    "nothing": ("", "MQTT-2.3.1-1", "SUBSCRIBE has no packet identifier"),
    "half an identifier": ("01", "MQTT-2.3.1-1", "SUBSCRIBE has no packet identifier"),
    "identifier 0": ("0000 000161 00", "MQTT-2.3.1-1", "SUBSCRIBE has no packet identifier"),
    "no filter": ("0001", "MQTT-3.8.3-3", "SUBSCRIBE has no topic filter"),
    "half a length": ("0001 00", "MQTT-3.8.3-1", "the packet ends before or inside its topic filter"),
    "filter cut": ("0001 000261", "MQTT-3.8.3-1", "the packet ends before or inside its topic filter"),
    "second filter cut": (
        "0001 000161 00 000562",
        "MQTT-3.8.3-1",
        "the packet ends before or inside its topic filter",
    ),
    "no QoS": ("0001 000161", *BAD_QOS),
    "no QoS after a long filter": ("0001 0190" + "61" * 400, *BAD_QOS),
    "QoS 3": ("0001 000161 03", *BAD_QOS),
    "reserved bit 2": ("0001 000161 04", *BAD_QOS),
    "reserved bit 7": ("0001 000161 80", *BAD_QOS),
    "reserved bits with QoS 1": ("0001 000161 fd", *BAD_QOS),
    "second filter without QoS": ("0001 000161 00 000162", *BAD_QOS),
    "empty filter": ("0001 0000 00", "MQTT-4.7.3-1", "a topic is empty"),
    "bad #": ("0001 00026123 00", "MQTT-4.7.1-2", "# is not the whole last level of a topic filter"),
    "bad +": ("0001 0002612b 00", "MQTT-4.7.1-3", "+ does not fill a whole level of a topic filter"),
    "surrogate": ("0001 0003eda080 00", "MQTT-1.5.3-1", "a string is not well-formed utf-8"),
    "U+0000": ("0001 000100 00", "MQTT-1.5.3-2", "a string contains U+0000"),
}


@pytest.mark.parametrize("case", REFUSED_SUBSCRIBES)
def test_a_subscribe_that_breaks_a_clause_is_refused_with_it(case: str) -> None:
    """One bad filter spoils the packet, as each refusal closes the connection."""
    wire, clause, message = REFUSED_SUBSCRIBES[case]
    assert refused(decode_subscribe, bytes.fromhex(wire)) == (clause, message)


REFUSED_UNSUBSCRIBES = {
    "nothing": ("", "MQTT-2.3.1-1", "UNSUBSCRIBE has no packet identifier"),
    "identifier 0": ("0000 000161", "MQTT-2.3.1-1", "UNSUBSCRIBE has no packet identifier"),
    "no filter": ("0001", "MQTT-3.10.3-2", "UNSUBSCRIBE has no topic filter"),
    "half a length": ("0001 00", "MQTT-3.10.3-1", "the packet ends before or inside its topic filter"),
    "filter cut": ("0001 000261", "MQTT-3.10.3-1", "the packet ends before or inside its topic filter"),
    "trailing byte": (
        "0001 000161 00",
        "MQTT-3.10.3-1",
        "the packet ends before or inside its topic filter",
    ),
    "empty filter": ("0001 0000", "MQTT-4.7.3-1", "a topic is empty"),
    "bad #": ("0001 00026123", "MQTT-4.7.1-2", "# is not the whole last level of a topic filter"),
    "ill-formed": ("0001 0001ff", "MQTT-1.5.3-1", "a string is not well-formed utf-8"),
}


@pytest.mark.parametrize("case", REFUSED_UNSUBSCRIBES)
def test_an_unsubscribe_that_breaks_a_clause_is_refused_with_it(case: str) -> None:
    """The twin of SUBSCRIBE."""
    wire, clause, message = REFUSED_UNSUBSCRIBES[case]
    assert refused(decode_unsubscribe, bytes.fromhex(wire)) == (clause, message)


def test_decoded_values_cannot_be_changed() -> None:
    """What was judged stays what it was."""
    will = packets.Will("t", b"", 0, False)
    connect = packets.Connect("x", True, 0, will, None, None)
    for value, name in ((will, "payload"), (connect, "client_id")):
        assert not hasattr(value, "__dict__")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, "other")


def test_all_that_the_module_offers_is_there() -> None:
    """`packets` is the front of the codec: every name of the contract is importable from it."""
    assert [name for name in packets.__all__ if not hasattr(packets, name)] == []
