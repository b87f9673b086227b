"""The codec against any bytes: only the two documented exceptions, no dependence on how a stream is cut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.broker.packets import (
    PINGREQ,
    Connect,
    MalformedPacket,
    PacketType,
    Publish,
    UnacceptableProtocol,
    Will,
    check_topic_filter,
    check_topic_name,
    decode_connect,
    decode_packet_id,
    decode_publish,
    decode_subscribe,
    decode_unsubscribe,
    encode_ack,
    encode_connect,
    encode_publish,
    encode_subscribe,
    encode_unsubscribe,
    fixed_header,
)

# No deadline: a busy machine is not a failure.
calm = settings(deadline=None)
hard = settings(deadline=None, max_examples=300)

CORPUS = Path(__file__).parent / "corpus"

DECODERS: dict[int, Callable[[int, bytes], Any]] = {
    PacketType.CONNECT: lambda _first, body: decode_connect(body),
    PacketType.PUBLISH: decode_publish,
    PacketType.SUBSCRIBE: lambda _first, body: decode_subscribe(body),
    PacketType.UNSUBSCRIBE: lambda _first, body: decode_unsubscribe(body),
    **{
        kind: lambda first, body: decode_packet_id(first >> 4, body)
        for kind in (PacketType.PUBACK, PacketType.PUBREC, PacketType.PUBREL, PacketType.PUBCOMP)
    },
}


def text(raw: bytes) -> bytes:
    return len(raw).to_bytes(2, "big") + raw


def encode_again(packet_type: int, value: Any) -> bytes | None:
    """The packet of a decoded value, or None for a type without content."""
    match packet_type:
        case PacketType.CONNECT:
            return encode_connect(value)
        case PacketType.PUBLISH:
            topic, *rest = value
            return encode_publish(topic.encode(), *rest)
        case PacketType.SUBSCRIBE:
            return encode_subscribe(*value)
        case PacketType.UNSUBSCRIBE:
            return encode_unsubscribe(*value)
        case PacketType.PUBACK | PacketType.PUBREC | PacketType.PUBREL | PacketType.PUBCOMP:
            return encode_ack(packet_type, value)
    return None


def read_all(stream: bytes) -> list[Any]:
    """Every packet of a stream, whole; ends with the clause when one is malformed."""
    seen: list[Any] = []
    at = 0
    try:
        while (header := fixed_header(stream, at)) is not None and header[2] <= len(stream):
            first, start, at = header
            decode = DECODERS.get(first >> 4)
            body = stream[start:at]
            seen.append((first, decode(first, body) if decode else body))
    except MalformedPacket as fault:
        seen.append(fault.clause)
    except UnacceptableProtocol as fault:
        seen.append(fault.level)
    return seen


def read_in_pieces(stream: bytes, cuts: list[int]) -> list[Any]:
    """The same, as a connection does it: append a piece, take what is complete, keep the rest."""
    seen: list[Any] = []
    buffer = bytearray()
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    try:
        for begin, finish in pairwise(edges):
            buffer += stream[begin:finish]
            while (header := fixed_header(buffer, 0)) is not None and header[2] <= len(buffer):
                first, start, end = header
                decode = DECODERS.get(first >> 4)
                body = bytes(buffer[start:end])
                seen.append((first, decode(first, body) if decode else body))
                del buffer[:end]
    except MalformedPacket as fault:
        seen.append(fault.clause)
    except UnacceptableProtocol as fault:
        seen.append(fault.level)
    return seen


def judge(stream: bytes) -> None:
    """What holds for any bytes: documented exceptions only, and what was decoded is written back the same."""
    for first, value in (entry for entry in read_all(stream) if isinstance(entry, tuple)):
        packet = encode_again(first >> 4, value)
        if packet is not None:
            header = fixed_header(packet, 0)
            assert header is not None
            assert header[0] == first
            assert DECODERS[first >> 4](first, packet[header[1] :]) == value


characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
level = st.text(st.one_of(st.sampled_from("ab$ é"), characters).filter(lambda c: c not in "+#/"), max_size=4)
topics = st.lists(level, min_size=1, max_size=5).map("/".join).filter(bool)
filters = st.builds(
    lambda levels, rest: "/".join([*levels, *rest]),
    st.lists(st.one_of(level, st.just("+")), min_size=1, max_size=5),
    st.sampled_from([[], ["#"]]),
).filter(bool)
strings = st.text(characters, max_size=8)
payloads = st.binary(max_size=200)
packet_ids = st.integers(1, 65_535)
qos = st.integers(0, 2)
wills = st.builds(Will, topics, payloads, qos, st.booleans())
connects = st.builds(
    Connect,
    strings,
    st.booleans(),
    st.integers(0, 65_535),
    st.none() | wills,
    strings,
    st.none() | payloads,
) | st.builds(Connect, strings, st.booleans(), st.integers(0, 65_535), st.none() | wills, st.none(), st.none())
publishes = st.builds(
    lambda topic, payload, level, retain, dup, packet_id: Publish(
        topic, payload, level, retain, dup and level > 0, packet_id if level else 0
    ),
    topics,
    payloads,
    qos,
    st.booleans(),
    st.booleans(),
    packet_ids,
)
wishes = st.lists(st.tuples(filters, qos), min_size=1, max_size=4)
good_packets = st.one_of(
    connects.map(encode_connect),
    publishes.map(lambda p: encode_publish(p.topic.encode(), *p[1:])),
    st.builds(encode_ack, st.sampled_from([4, 5, 6, 7]), packet_ids),
    st.builds(encode_subscribe, packet_ids, wishes),
    st.builds(encode_unsubscribe, packet_ids, st.lists(filters, min_size=1, max_size=4)),
    st.just(PINGREQ),
)


@calm
@given(connects)
def test_a_connect_survives_the_wire(connect: Connect) -> None:
    """Encode, find, decode: the same value."""
    packet = encode_connect(connect)
    header = fixed_header(packet, 0)
    assert header == (0x10, header[1] if header else 0, len(packet))
    assert decode_connect(packet[header[1] :]) == connect


@calm
@given(publishes)
def test_a_publish_survives_the_wire(publish: Publish) -> None:
    """Encode, find, decode: the same value."""
    packet = encode_publish(publish.topic.encode(), *publish[1:])
    header = fixed_header(packet, 0)
    assert header is not None
    assert decode_publish(header[0], packet[header[1] : header[2]]) == publish


@calm
@given(packet_ids, wishes)
def test_a_subscribe_survives_the_wire(packet_id: int, pairs: list[tuple[str, int]]) -> None:
    """SUBSCRIBE and UNSUBSCRIBE for the same filters."""
    packet = encode_subscribe(packet_id, pairs)
    header = fixed_header(packet, 0)
    assert header is not None
    assert decode_subscribe(packet[header[1] :]) == (packet_id, tuple(pairs))
    names = [topic_filter for topic_filter, _ in pairs]
    packet = encode_unsubscribe(packet_id, names)
    header = fixed_header(packet, 0)
    assert header is not None
    assert decode_unsubscribe(packet[header[1] :]) == (packet_id, tuple(names))


@hard
@given(st.binary(max_size=300))
def test_no_bytes_break_the_decoders(stream: bytes) -> None:
    """A stream of anything is values, or one of the two documented exceptions."""
    judge(stream)


@hard
@given(st.sampled_from(sorted(DECODERS)), st.integers(0, 15), st.binary(max_size=120))
def test_no_body_breaks_its_decoder(kind: int, flags: int, body: bytes) -> None:
    """Each decoder alone, with bodies that a header would have refused."""
    fault: Exception | None = None
    try:
        DECODERS[kind](kind << 4 | flags, body)
    except (MalformedPacket, UnacceptableProtocol) as caught:
        fault = caught
    if isinstance(fault, MalformedPacket):
        assert fault.clause.startswith(("MQTT-", "section "))
        assert "\n" not in str(fault)
    if isinstance(fault, UnacceptableProtocol):
        assert kind == PacketType.CONNECT
        assert fault.level == body[6]


@hard
@given(good_packets, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3), st.integers(0, 400))
def test_damaged_packets_break_no_decoder(packet: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    """Packets that are almost right, with some bytes replaced and the end cut off."""
    damaged = bytearray(packet)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    judge(bytes(damaged))
    judge(bytes(damaged[: cut % (len(damaged) + 1)]))


@calm
@given(st.lists(good_packets, max_size=5), st.binary(max_size=6), st.lists(st.integers(0, 2000), max_size=8))
def test_any_cut_of_a_stream_gives_the_same_packets(stream: list[bytes], tail: bytes, cuts: list[int]) -> None:
    """Where the pieces end changes nothing, a malformed tail included."""
    raw = b"".join(stream) + tail
    whole = read_all(raw)
    assert len(whole) >= len(stream)
    assert read_in_pieces(raw, cuts) == whole
    assert read_in_pieces(raw, list(range(len(raw)))) == whole


@calm
@given(st.binary(max_size=20))
def test_a_checked_topic_is_the_text_of_its_bytes(raw: bytes) -> None:
    """Names are filters without wildcards; both give back exactly the bytes they were given."""
    try:
        name = check_topic_name(raw)
    except MalformedPacket:
        return
    assert name.encode() == raw
    assert check_topic_filter(raw) == name
    assert not {"+", "#", "\0"} & set(name)


@calm
@given(st.text(alphabet="a/+#$é", min_size=1, max_size=8))
def test_filters_are_judged_level_by_level(candidate: str) -> None:
    """[MQTT-4.7.1-2, MQTT-4.7.1-3] once more, written with a loop over levels."""
    levels = candidate.split("/")
    allowed = all(
        (part == "+" or "+" not in part) and ("#" not in part or (part == "#" and at == len(levels) - 1))
        for at, part in enumerate(levels)
    )
    try:
        assert check_topic_filter(candidate.encode()) == candidate
        assert allowed
    except MalformedPacket:
        assert not allowed


@pytest.mark.parametrize("seed", sorted(CORPUS.glob("*.bin")), ids=lambda path: path.stem)
def test_the_corpus_of_the_fuzzer_breaks_no_decoder(seed: Path) -> None:
    """What a coverage-guided fuzzer found worth keeping, replayed."""
    judge(seed.read_bytes())


def test_the_corpus_is_there() -> None:
    """A replay of nothing would prove nothing."""
    assert len(list(CORPUS.glob("*.bin"))) >= 20
