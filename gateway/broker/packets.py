"""MQTT 3.1.1 control packets: bytes to values and back, strictly, without sockets, clocks or sessions.

The way in has two steps. `fixed_header` finds where a packet begins and ends as soon as its length is there, so that
a limit can be judged before the body has arrived; a `decode_*` function then takes the whole body. A packet is either
a value or a `MalformedPacket` that names the broken clause; there is no lenient mode and no resynchronisation.

Not judged here: the order of packets, which packets a client may send, client identifiers (an empty one is decoded),
rights, sizes. Names that do not fit the wire are a `ValueError` of ours on the way out, never a malformed packet.

Specification: MQTT 3.1.1 sections 2 and 3; text fields are in `fields.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from gateway.broker.fields import (
    MAX_TEXT_BYTES,
    MalformedPacket,
    UnacceptableProtocol,
    check_text,
    check_topic_filter,
    check_topic_name,
)

__all__ = [
    "DISCONNECT",
    "MAX_REMAINING_LENGTH",
    "PINGREQ",
    "PINGRESP",
    "Connect",
    "ConnectCode",
    "MalformedPacket",
    "PacketType",
    "Publish",
    "UnacceptableProtocol",
    "Will",
    "check_topic_filter",
    "check_topic_name",
    "decode_connect",
    "decode_packet_id",
    "decode_publish",
    "decode_subscribe",
    "decode_unsubscribe",
    "encode_ack",
    "encode_connack",
    "encode_connect",
    "encode_publish",
    "encode_suback",
    "encode_subscribe",
    "encode_unsubscribe",
    "fixed_header",
    "split_publish",
]

MAX_REMAINING_LENGTH = 268_435_455
"""What four bytes of seven bits can say (section 2.2.3)."""

PINGREQ = b"\xc0\x00"
PINGRESP = b"\xd0\x00"
DISCONNECT = b"\xe0\x00"


class PacketType(IntEnum):
    """The upper four bits of a packet's first byte; 0 and 15 are forbidden (section 2.2.1)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class ConnectCode(IntEnum):
    """CONNACK return codes (section 3.2.2.3)."""

    ACCEPTED = 0
    UNACCEPTABLE_PROTOCOL = 1
    IDENTIFIER_REJECTED = 2
    SERVER_UNAVAILABLE = 3
    BAD_CREDENTIALS = 4
    NOT_AUTHORIZED = 5


@dataclass(frozen=True, slots=True)
class Will:
    """The message that a client leaves with its CONNECT."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Connect:
    """A CONNECT whose flags and fields agree; the client identifier may be empty."""

    client_id: str
    clean_session: bool
    keep_alive_s: int
    will: Will | None
    user_name: str | None
    password: bytes | None


class Publish(NamedTuple):
    """A PUBLISH; a tuple because there is one per message. `packet_id` is 0 for QoS 0."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    dup: bool
    packet_id: int


_Fault = tuple[str, str]

# What the lower four bits of the first byte must be where they are reserved, and who says so (table 2.2).
_RESERVED_FLAGS: dict[PacketType, tuple[int, str]] = {
    kind: (0, "MQTT-2.2.2-2") for kind in PacketType if kind is not PacketType.PUBLISH
} | {
    PacketType.PUBREL: (2, "MQTT-3.6.1-1"),
    PacketType.SUBSCRIBE: (2, "MQTT-3.8.1-1"),
    PacketType.UNSUBSCRIBE: (2, "MQTT-3.10.1-1"),
    PacketType.DISCONNECT: (0, "MQTT-3.14.1-1"),
}

# Remaining lengths that a packet type fixes; a liar is found by its fixed header alone.
_FIXED_LENGTH = {
    PacketType.CONNACK: 2,
    PacketType.PUBACK: 2,
    PacketType.PUBREC: 2,
    PacketType.PUBREL: 2,
    PacketType.PUBCOMP: 2,
    PacketType.UNSUBACK: 2,
    PacketType.PINGREQ: 0,
    PacketType.PINGRESP: 0,
    PacketType.DISCONNECT: 0,
}


def _first_byte_fault(first_byte: int) -> _Fault | None:
    kind, flags = first_byte >> 4, first_byte & 15
    if kind in (0, 15):
        return "section 2.2.1", f"packet type {kind} is forbidden"
    if kind == PacketType.PUBLISH:
        if flags & 6 == 6:
            return "MQTT-3.3.1-4", "PUBLISH has QoS 3"
        if flags & 14 == 8:
            return "MQTT-3.3.1-2", "PUBLISH has DUP with QoS 0"
        return None
    reserved, clause = _RESERVED_FLAGS[PacketType(kind)]
    if flags != reserved:
        return clause, f"{PacketType(kind).name} has reserved flags {flags:04b}"
    return None


# Both tables are indexed by the first byte: one look-up per packet instead of a chain of branches.
_FIRST_BYTE_FAULT = tuple(_first_byte_fault(first_byte) for first_byte in range(256))
_EXACT_LENGTH = tuple(
    -1 if first_byte >> 4 in (0, 15) else _FIXED_LENGTH.get(PacketType(first_byte >> 4), -1)
    for first_byte in range(256)
)

_U16 = Struct(">H")
_u16_at = _U16.unpack_from
_u16 = _U16.pack

Buffer = bytes | bytearray | memoryview


def fixed_header(buffer: Buffer, offset: int) -> tuple[int, int, int] | None:
    """Find the packet that starts at `offset`: (first byte, start of body, end of body).

    None when the header is not complete yet. The end may lie beyond the buffer: the body has not arrived, but its
    size can be judged. Raises MalformedPacket for a forbidden type, bad flags, a length of more than four bytes
    (section 2.2.3) or one that the type does not allow.
    """
    available = len(buffer) - offset
    if available < 1:
        return None
    first_byte = buffer[offset]
    fault = _FIRST_BYTE_FAULT[first_byte]
    if fault is not None:
        raise MalformedPacket(*fault)
    if available < 2:
        return None
    length = buffer[offset + 1]
    start = offset + 2
    if length > 127:
        length &= 127
        shift = 7
        while True:
            if shift > 21:
                raise MalformedPacket("section 2.2.3", "the remaining length has more than four bytes")
            if start >= len(buffer):
                return None
            digit = buffer[start]
            start += 1
            length |= (digit & 127) << shift
            if digit < 128:
                break
            shift += 7
    exact = _EXACT_LENGTH[first_byte]
    if exact >= 0 and length != exact:
        raise MalformedPacket("section 2.2.3", f"{_name(first_byte >> 4)} has a remaining length of {length}")
    return first_byte, start, start + length


def _name(packet_type: int) -> str:
    return PacketType(packet_type).name


# --- CONNECT ---------------------------------------------------------------------------------------------------------

_PROTOCOL_NAME = b"\x00\x04MQTT"
_USER_NAME, _PASSWORD, _WILL_RETAIN, _WILL, _CLEAN, _RESERVED = 0x80, 0x40, 0x20, 0x04, 0x02, 0x01


def decode_connect(body: bytes) -> Connect:
    """Decode the body of a CONNECT; UnacceptableProtocol when it is MQTT of another level."""
    if body[:6] != _PROTOCOL_NAME:
        raise MalformedPacket("MQTT-3.1.2-1", "the protocol name is not MQTT")
    if len(body) > 6 and body[6] != 4:
        raise UnacceptableProtocol(body[6])
    if len(body) < 10:
        raise MalformedPacket("section 3.1.2", "CONNECT ends inside its variable header")
    flags = body[7]
    _check_connect_flags(flags)
    raw, at = _field(body, 10, "MQTT-3.1.3-3", "client identifier")
    client_id = check_text(raw)
    will = user_name = password = None
    if flags & _WILL:
        raw, at = _field(body, at, "MQTT-3.1.2-9", "will topic")
        topic = check_topic_name(raw, "MQTT-4.7.1-1")
        raw, at = _field(body, at, "MQTT-3.1.2-9", "will message")
        will = Will(topic, raw, flags >> 3 & 3, bool(flags & _WILL_RETAIN))
    if flags & _USER_NAME:
        raw, at = _field(body, at, "MQTT-3.1.2-19", "user name")
        user_name = check_text(raw)
    if flags & _PASSWORD:
        password, at = _field(body, at, "MQTT-3.1.2-21", "password")
    if at != len(body):
        raise MalformedPacket(_surplus_clause(flags), "CONNECT has bytes after its last field")
    return Connect(client_id, bool(flags & _CLEAN), _u16_at(body, 8)[0], will, user_name, password)


def _check_connect_flags(flags: int) -> None:
    if flags & _RESERVED:
        raise MalformedPacket("MQTT-3.1.2-3", "the reserved connect flag is set")
    if flags & _WILL:
        if flags >> 3 & 3 == 3:
            raise MalformedPacket("MQTT-3.1.2-14", "the will has QoS 3")
    elif flags >> 3 & 3:
        raise MalformedPacket("MQTT-3.1.2-13", "will QoS is set without a will")
    elif flags & _WILL_RETAIN:
        raise MalformedPacket("MQTT-3.1.2-15", "will retain is set without a will")
    if flags & _PASSWORD and not flags & _USER_NAME:
        raise MalformedPacket("MQTT-3.1.2-22", "the password flag is set without the user name flag")


def _surplus_clause(flags: int) -> str:
    """Name what the surplus bytes would be: the first field at the end that no flag announces."""
    if not flags & _USER_NAME:
        return "MQTT-3.1.2-18"
    return "MQTT-3.1.3-1" if flags & _PASSWORD else "MQTT-3.1.2-20"


def _field(body: bytes, at: int, clause: str, what: str) -> tuple[bytes, int]:
    """Cut a field with a two-byte length out of a body: its bytes and where the next one starts."""
    start = at + 2
    if start <= len(body):
        end = start + _u16_at(body, at)[0]
        if end <= len(body):
            return body[start:end], end
    raise MalformedPacket(clause, f"the packet ends before or inside its {what}")


# --- PUBLISH ---------------------------------------------------------------------------------------------------------


def split_publish(
    first_byte: int, buffer: bytes | bytearray, start: int, end: int
) -> tuple[bytes, bytes, int]:
    """Cut a PUBLISH body lying at buffer[start:end] into (raw topic, payload, packet id), copying each part once.

    The raw topic is not checked: a caller that remembers verdicts by raw topic calls `check_topic_name` only for
    those that it has not seen. `first_byte` must come from `fixed_header`.
    """
    topic_start = start + 2
    if topic_start > end:
        raise MalformedPacket("MQTT-3.3.2-1", "PUBLISH ends before its topic name")
    topic_end = topic_start + (buffer[start] << 8 | buffer[start + 1])
    if not first_byte & 6:
        if topic_end > end:
            raise MalformedPacket("MQTT-3.3.2-1", "PUBLISH ends inside its topic name")
        return bytes(buffer[topic_start:topic_end]), bytes(buffer[topic_end:end]), 0
    payload_start = topic_end + 2
    if payload_start > end:
        raise MalformedPacket("MQTT-2.3.1-1", "PUBLISH ends before its packet identifier")
    packet_id = buffer[topic_end] << 8 | buffer[topic_end + 1]
    if not packet_id:
        raise MalformedPacket("MQTT-2.3.1-1", "PUBLISH has packet identifier 0")
    return bytes(buffer[topic_start:topic_end]), bytes(buffer[payload_start:end]), packet_id


def decode_publish(first_byte: int, body: bytes) -> Publish:
    """Decode a PUBLISH: the flags of its first byte and its body."""
    fault = _FIRST_BYTE_FAULT[first_byte]
    if fault is not None:
        raise MalformedPacket(*fault)
    topic, payload, packet_id = split_publish(first_byte, body, 0, len(body))
    return Publish(
        check_topic_name(topic),
        payload,
        first_byte >> 1 & 3,
        first_byte & 1 == 1,
        first_byte & 8 == 8,
        packet_id,
    )


# --- the other packets of a client -----------------------------------------------------------------------------------


def decode_packet_id(packet_type: int, body: bytes) -> int:
    """Decode the body of PUBACK, PUBREC, PUBREL, PUBCOMP or UNSUBACK: a packet identifier and nothing else."""
    if len(body) != 2:
        raise MalformedPacket("section 2.2.3", f"{_name(packet_type)} has a remaining length of {len(body)}")
    return _packet_id(packet_type, body)


def _packet_id(packet_type: int, body: bytes) -> int:
    if len(body) < 2:
        raise MalformedPacket("MQTT-2.3.1-1", f"{_name(packet_type)} ends before its packet identifier")
    packet_id: int = _u16_at(body)[0]
    if not packet_id:
        raise MalformedPacket("MQTT-2.3.1-1", f"{_name(packet_type)} has packet identifier 0")
    return packet_id


def decode_subscribe(body: bytes) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Decode the body of a SUBSCRIBE: packet identifier, then (topic filter, requested QoS) in the peer's order."""
    packet_id = _packet_id(PacketType.SUBSCRIBE, body)
    at, end = 2, len(body)
    if at == end:
        raise MalformedPacket("MQTT-3.8.3-3", "SUBSCRIBE has no topic filter")
    wishes = []
    while at < end:
        raw, at = _field(body, at, "MQTT-3.8.3-1", "topic filter")
        topic_filter = check_topic_filter(raw)
        if at == end or body[at] > 2:
            raise MalformedPacket("MQTT-3-8.3-4", "the requested QoS of a topic filter is not 0, 1 or 2")
        wishes.append((topic_filter, body[at]))
        at += 1
    return packet_id, tuple(wishes)


def decode_unsubscribe(body: bytes) -> tuple[int, tuple[str, ...]]:
    """Decode the body of an UNSUBSCRIBE: packet identifier and topic filters in the peer's order."""
    packet_id = _packet_id(PacketType.UNSUBSCRIBE, body)
    at, end = 2, len(body)
    if at == end:
        raise MalformedPacket("MQTT-3.10.3-2", "UNSUBSCRIBE has no topic filter")
    filters = []
    while at < end:
        raw, at = _field(body, at, "MQTT-3.10.3-1", "topic filter")
        filters.append(check_topic_filter(raw))
    return packet_id, tuple(filters)


# --- the way out -----------------------------------------------------------------------------------------------------

_SHORT_PUBLISH = Struct(">BBH").pack
_GRANTED = frozenset((0, 1, 2, 0x80))
_ACK_FIRST_BYTE = {
    kind: int(kind) << 4 | _RESERVED_FLAGS[kind][0]
    for kind in (
        PacketType.PUBACK,
        PacketType.PUBREC,
        PacketType.PUBREL,
        PacketType.PUBCOMP,
        PacketType.UNSUBACK,
    )
}
_pack_ack = Struct(">BBH").pack


def encode_connack(session_present: bool, code: int) -> bytes:
    """Encode a CONNACK; a refusal never says that a session is present [MQTT-3.2.2-4]."""
    if session_present and code:
        raise ValueError("a CONNACK that refuses cannot have session present set")
    return bytes((0x20, 2, session_present, code))


def encode_publish(topic: bytes, payload: bytes, qos: int, retain: bool, dup: bool, packet_id: int) -> bytes:
    """Encode a PUBLISH; `topic` is a checked topic name in UTF-8, `packet_id` counts for QoS 1 and 2 only."""
    first_byte = 0x30 | dup << 3 | qos << 1 | retain
    if _FIRST_BYTE_FAULT[first_byte] is not None:
        raise ValueError("a PUBLISH cannot have QoS 3, or DUP with QoS 0")
    size = len(topic)
    if qos:
        if not packet_id:
            raise ValueError("a PUBLISH with QoS above 0 needs a packet identifier")
        remaining = 4 + size + len(payload)
        tail: tuple[bytes, ...] = (topic, _u16(packet_id), payload)
    else:
        remaining = 2 + size + len(payload)
        tail = (topic, payload)
    if remaining < 128:
        return b"".join((_SHORT_PUBLISH(first_byte, remaining, size), *tail))
    return b"".join((_head(first_byte, remaining), _u16(size), *tail))


def encode_ack(packet_type: int, packet_id: int) -> bytes:
    """Encode a PUBACK, PUBREC, PUBREL, PUBCOMP or UNSUBACK."""
    return _pack_ack(_ACK_FIRST_BYTE[PacketType(packet_type)], 2, packet_id)


def encode_suback(packet_id: int, codes: Sequence[int]) -> bytes:
    """Encode a SUBACK with one return code per topic filter, in order [MQTT-3.8.4-5, MQTT-3.9.3-1]."""
    if not _GRANTED.issuperset(codes):
        raise ValueError("a SUBACK return code is 0, 1, 2 or 128")  # [MQTT-3.9.3-2]
    return _packet(0x90, _u16(packet_id) + bytes(codes))


def encode_connect(connect: Connect) -> bytes:
    """Encode a CONNECT, the flags following from which fields are there."""
    flags = _CLEAN if connect.clean_session else 0
    fields = [_prefixed(connect.client_id.encode())]
    if connect.will is not None:
        flags |= _WILL | connect.will.qos << 3 | (_WILL_RETAIN if connect.will.retain else 0)
        fields += [_prefixed(connect.will.topic.encode()), _prefixed(connect.will.payload)]
    if connect.user_name is not None:
        flags |= _USER_NAME
        fields.append(_prefixed(connect.user_name.encode()))
    if connect.password is not None:
        flags |= _PASSWORD
        fields.append(_prefixed(connect.password))
    variable_header = _PROTOCOL_NAME + bytes((4, flags)) + _u16(connect.keep_alive_s)
    return _packet(0x10, variable_header + b"".join(fields))


def encode_subscribe(packet_id: int, wishes: Sequence[tuple[str, int]]) -> bytes:
    """Encode a SUBSCRIBE for pairs of topic filter and requested QoS."""
    pairs = (_prefixed(topic_filter.encode()) + bytes((qos,)) for topic_filter, qos in wishes)
    return _packet(0x82, _u16(packet_id) + b"".join(pairs))


def encode_unsubscribe(packet_id: int, filters: Sequence[str]) -> bytes:
    """Encode an UNSUBSCRIBE."""
    return _packet(0xA2, _u16(packet_id) + b"".join(_prefixed(text.encode()) for text in filters))


def _prefixed(raw: bytes) -> bytes:
    if len(raw) > MAX_TEXT_BYTES:
        raise ValueError(f"a field is longer than {MAX_TEXT_BYTES} bytes")
    return _u16(len(raw)) + raw


def _packet(first_byte: int, body: bytes) -> bytes:
    return _head(first_byte, len(body)) + body


def _head(first_byte: int, remaining: int) -> bytes:
    """The fixed header: first byte and remaining length, seven bits a byte, the least significant first."""
    if remaining > MAX_REMAINING_LENGTH:
        raise ValueError(f"a packet body is longer than {MAX_REMAINING_LENGTH} bytes")
    head = [first_byte]
    while remaining > 127:
        head.append(remaining & 127 | 128)
        remaining >>= 7
    head.append(remaining)
    return bytes(head)
