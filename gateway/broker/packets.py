"""MQTT 3.1.1 control packets: bytes to values and back, strictly, without sockets, clocks or sessions.

The way in has two steps. `fixed_header` finds where a packet begins and ends as soon as its length is
there, so that a limit can be judged before the body has arrived; a `decode_*` function then takes the
whole body. A packet is either a value or a `MalformedPacket` that names the broken clause; there is no
lenient mode.

Not judged here: the order of packets, which packets a client may send, client identifiers (an empty one
is decoded), rights, sizes. What does not fit the wire on the way out is a `ValueError`, never a malformed
packet.

Specification: MQTT 3.1.1 section 3; fixed headers are in `framing.py`, text and topics in `fields.py`.
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
from gateway.broker.framing import (
    FIRST_BYTE_FAULTS,
    MAX_REMAINING_LENGTH,
    PacketType,
    encode_header,
    fixed_header,
    reserved_flags,
    wrong_length,
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
]

PINGREQ = b"\xc0\x00"
PINGRESP = b"\xd0\x00"
DISCONNECT = b"\xe0\x00"


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


_U16 = Struct(">H")
_u16_at = _U16.unpack_from
_u16 = _U16.pack

# --- CONNECT -------------------------------------------------------------------------------------------

_PROTOCOL_NAME = b"\x00\x04MQTT"
_PROTOCOL_LEVEL = 4
_VARIABLE_HEADER_BYTES = 10
_USER_NAME, _PASSWORD, _WILL_RETAIN, _WILL_QOS = 0x80, 0x40, 0x20, 0x18
_WILL, _CLEAN_SESSION, _RESERVED = 0x04, 0x02, 0x01


def decode_connect(body: bytes) -> Connect:
    """Decode the body of a CONNECT; UnacceptableProtocol when it is MQTT of another level."""
    if body[:6] != _PROTOCOL_NAME:
        raise MalformedPacket("MQTT-3.1.2-1", "the protocol name is not MQTT")
    # The level comes first: what follows it in another version is not ours to judge.
    if len(body) > 6 and body[6] != _PROTOCOL_LEVEL:
        raise UnacceptableProtocol(body[6])
    if len(body) < _VARIABLE_HEADER_BYTES:
        raise MalformedPacket("section 3.1.2", "CONNECT ends inside its variable header")
    flags = body[7]
    _check_connect_flags(flags)
    raw, at = _field(body, _VARIABLE_HEADER_BYTES, "MQTT-3.1.3-3", "client identifier")
    client_id = check_text(raw)
    will = user_name = password = None
    if flags & _WILL:
        raw, at = _field(body, at, "MQTT-3.1.2-9", "will topic")
        topic = check_topic_name(raw, "MQTT-4.7.1-1")
        payload, at = _field(body, at, "MQTT-3.1.2-9", "will message")
        will = Will(topic, payload, (flags & _WILL_QOS) >> 3, flags & _WILL_RETAIN != 0)
    if flags & _USER_NAME:
        raw, at = _field(body, at, "MQTT-3.1.2-19", "user name")
        user_name = check_text(raw)
    if flags & _PASSWORD:
        password, at = _field(body, at, "MQTT-3.1.2-21", "password")
    if at != len(body):
        raise MalformedPacket(_surplus_clause(flags), "CONNECT has bytes after its last field")
    keep_alive_s: int = _u16_at(body, 8)[0]
    return Connect(client_id, flags & _CLEAN_SESSION != 0, keep_alive_s, will, user_name, password)


def _check_connect_flags(flags: int) -> None:
    if flags & _RESERVED:
        raise MalformedPacket("MQTT-3.1.2-3", "the reserved connect flag is set")
    if flags & _WILL:
        if flags & _WILL_QOS == _WILL_QOS:
            raise MalformedPacket("MQTT-3.1.2-14", "the will has QoS 3")
    elif flags & _WILL_QOS:
        raise MalformedPacket("MQTT-3.1.2-13", "will QoS is set without a will")
    elif flags & _WILL_RETAIN:
        raise MalformedPacket("MQTT-3.1.2-15", "will retain is set without a will")
    if flags & _PASSWORD and not flags & _USER_NAME:
        raise MalformedPacket("MQTT-3.1.2-22", "the password flag is set without the user name flag")


def _surplus_clause(flags: int) -> str:
    """Name what surplus bytes amount to: a field that no flag announces, or no field at all."""
    if not flags & _USER_NAME:
        return "MQTT-3.1.2-18"
    return "MQTT-3.1.3-1" if flags & _PASSWORD else "MQTT-3.1.2-20"


def _field(body: bytes, at: int, clause: str, what: str) -> tuple[bytes, int]:
    """Cut a field with a two-byte length out of a body: its bytes and where the next one starts."""
    start = at + 2
    if start <= len(body):
        end = start + int(_u16_at(body, at)[0])
        if end <= len(body):
            return body[start:end], end
    raise MalformedPacket(clause, f"the packet ends before or inside its {what}")


# --- PUBLISH -------------------------------------------------------------------------------------------


def decode_publish(first_byte: int, body: bytes) -> Publish:
    """Decode a PUBLISH: the flags of its first byte and its body."""
    fault = FIRST_BYTE_FAULTS[first_byte]
    if fault is not None:
        raise MalformedPacket(*fault)
    topic, at = _field(body, 0, "MQTT-3.3.2-1", "topic name")
    packet_id = 0
    qos = first_byte >> 1 & 3
    if qos:
        packet_id = _packet_id(PacketType.PUBLISH, body, at)
        at += 2
    return Publish(check_topic_name(topic), body[at:], qos, first_byte & 1 != 0, first_byte & 8 != 0, packet_id)


# --- the other packets of a client ---------------------------------------------------------------------


def decode_packet_id(packet_type: int, body: bytes) -> int:
    """Decode a PUBACK, PUBREC, PUBREL, PUBCOMP or UNSUBACK: a packet identifier and nothing else."""
    if len(body) != 2:
        raise wrong_length(packet_type, len(body))
    return _packet_id(packet_type, body)


def _packet_id(packet_type: int, body: bytes, at: int = 0) -> int:
    """The packet identifier at one place of a body; zero is none [MQTT-2.3.1-1]."""
    packet_id = int(_u16_at(body, at)[0]) if len(body) >= at + 2 else 0
    if not packet_id:
        raise MalformedPacket("MQTT-2.3.1-1", f"{PacketType(packet_type).name} has no packet identifier")
    return packet_id


def decode_subscribe(body: bytes) -> tuple[int, tuple[tuple[str, int], ...]]:
    """Decode a SUBSCRIBE: packet identifier, then (topic filter, requested QoS) in the peer's order."""
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
    """Decode an UNSUBSCRIBE: packet identifier and topic filters in the peer's order."""
    packet_id = _packet_id(PacketType.UNSUBSCRIBE, body)
    at, end = 2, len(body)
    if at == end:
        raise MalformedPacket("MQTT-3.10.3-2", "UNSUBSCRIBE has no topic filter")
    filters = []
    while at < end:
        raw, at = _field(body, at, "MQTT-3.10.3-1", "topic filter")
        filters.append(check_topic_filter(raw))
    return packet_id, tuple(filters)


# --- the way out ---------------------------------------------------------------------------------------

# A fixed header with one or two bytes of length, and the two-byte field that follows it, in one call.
_pack_short_head = Struct(">BBH").pack
_pack_medium_head = Struct(">BBBH").pack
_SUBACK_CODES = frozenset((0, 1, 2, 0x80))
_ACK_FIRST_BYTE = {
    kind: kind << 4 | reserved_flags(kind)
    for kind in (
        PacketType.PUBACK,
        PacketType.PUBREC,
        PacketType.PUBREL,
        PacketType.PUBCOMP,
        PacketType.UNSUBACK,
    )
}


def encode_connack(session_present: bool, code: int) -> bytes:
    """Encode a CONNACK; a refusal never says that a session is present [MQTT-3.2.2-4]."""
    if session_present and code:
        raise ValueError("a CONNACK that refuses cannot have session present set")
    return bytes((0x20, 2, session_present, code))


def encode_publish(topic: bytes, payload: bytes, qos: int, retain: bool, dup: bool, packet_id: int) -> bytes:
    """Encode a PUBLISH; `topic` is a checked topic name in UTF-8, `packet_id` counts for QoS 1 and 2 only."""
    first_byte = 0x30 | dup << 3 | qos << 1 | retain
    if FIRST_BYTE_FAULTS[first_byte] is not None:
        raise ValueError("a PUBLISH cannot have QoS 3, or DUP with QoS 0")
    if qos and not packet_id:
        raise ValueError("a PUBLISH with a QoS above 0 needs a packet identifier")
    size = len(topic)
    identifier = _u16(packet_id) if qos else b""
    remaining = 2 + size + len(identifier) + len(payload)
    if remaining < 128:
        head = _pack_short_head(first_byte, remaining, size)
    elif remaining < 16_384:
        head = _pack_medium_head(first_byte, remaining & 127 | 128, remaining >> 7, size)
    else:
        head = encode_header(first_byte, remaining) + _u16(size)
    return b"".join((head, topic, identifier, payload))


def encode_ack(packet_type: int, packet_id: int) -> bytes:
    """Encode a PUBACK, PUBREC, PUBREL, PUBCOMP or UNSUBACK."""
    return _pack_short_head(_ACK_FIRST_BYTE[PacketType(packet_type)], 2, packet_id)


def encode_suback(packet_id: int, codes: Sequence[int]) -> bytes:
    """Encode a SUBACK with one return code per topic filter, in order [MQTT-3.8.4-5, MQTT-3.9.3-1]."""
    if not _SUBACK_CODES.issuperset(codes):
        raise ValueError("a SUBACK return code is not 0, 1, 2 or 128 [MQTT-3.9.3-2]")
    return _packet(0x90, _u16(packet_id) + bytes(codes))


def encode_connect(connect: Connect) -> bytes:
    """Encode a CONNECT; its flags follow from the fields that are there."""
    flags = _CLEAN_SESSION if connect.clean_session else 0
    fields = [connect.client_id.encode()]
    if connect.will is not None:
        flags |= _WILL | connect.will.qos << 3 | (_WILL_RETAIN if connect.will.retain else 0)
        fields += [connect.will.topic.encode(), connect.will.payload]
    if connect.user_name is not None:
        flags |= _USER_NAME
        fields.append(connect.user_name.encode())
    if connect.password is not None:
        flags |= _PASSWORD
        fields.append(connect.password)
    variable_header = _PROTOCOL_NAME + bytes((_PROTOCOL_LEVEL, flags)) + _u16(connect.keep_alive_s)
    return _packet(0x10, variable_header + b"".join(map(_prefixed, fields)))


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
    return encode_header(first_byte, len(body)) + body
