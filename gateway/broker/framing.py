"""Where an MQTT 3.1.1 packet begins and ends: packet types, first-byte flags, remaining length.

What can be known from a fixed header alone is judged here, before a body has arrived: forbidden types,
reserved flags, QoS 3, DUP with QoS 0, a remaining length of more than four bytes or one that the type
does not allow. A remaining length written with more bytes than it needs is accepted, as no rule of MQTT
3.1.1 forbids it.

Specification: MQTT 3.1.1 sections 2.1 and 2.2.
"""

from __future__ import annotations

from enum import IntEnum

from gateway.broker.fields import MalformedPacket

MAX_REMAINING_LENGTH = 268_435_455
"""What four bytes of seven bits can say (section 2.2.3)."""

Buffer = bytes | bytearray | memoryview


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


# Types whose reserved flags are not 0000, or whose flags have a clause of their own (table 2.2).
_RESERVED_FLAGS = {
    PacketType.PUBREL: (0b0010, "MQTT-3.6.1-1"),
    PacketType.SUBSCRIBE: (0b0010, "MQTT-3.8.1-1"),
    PacketType.UNSUBSCRIBE: (0b0010, "MQTT-3.10.1-1"),
    PacketType.DISCONNECT: (0b0000, "MQTT-3.14.1-1"),
}

# Remaining lengths that a packet type fixes: a liar is found by its fixed header alone.
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
_ANY_LENGTH = -1


def reserved_flags(packet_type: PacketType) -> int:
    """The lower four bits that a type other than PUBLISH must have."""
    return _RESERVED_FLAGS.get(packet_type, (0, ""))[0]


def _first_byte_fault(first_byte: int) -> tuple[str, str] | None:
    number, flags = first_byte >> 4, first_byte & 0b1111
    if number in (0, 15):
        return "section 2.2.1", f"packet type {number} is forbidden"
    packet_type = PacketType(number)
    if packet_type is PacketType.PUBLISH:
        if flags & 0b0110 == 0b0110:
            return "MQTT-3.3.1-4", "PUBLISH has QoS 3"
        if flags & 0b1110 == 0b1000:
            return "MQTT-3.3.1-2", "PUBLISH has DUP with QoS 0"
        return None
    reserved, clause = _RESERVED_FLAGS.get(packet_type, (0, "MQTT-2.2.2-2"))
    return None if flags == reserved else (clause, f"{packet_type.name} has reserved flags {flags:04b}")


# Both are indexed by the first byte: one look-up per packet in place of a chain of branches.
FIRST_BYTE_FAULTS = tuple(_first_byte_fault(first_byte) for first_byte in range(256))
_EXACT_LENGTH = tuple(
    _ANY_LENGTH if fault is not None else _FIXED_LENGTH.get(PacketType(first_byte >> 4), _ANY_LENGTH)
    for first_byte, fault in enumerate(FIRST_BYTE_FAULTS)
)


def fixed_header(buffer: Buffer, offset: int) -> tuple[int, int, int] | None:
    """Find the packet that starts at `offset`: (first byte, start of body, end of body).

    None when the header is not complete yet. The end may lie beyond the buffer: then the body has not
    arrived, but its size can be judged. Raises MalformedPacket as soon as the bytes at hand cannot become
    a packet.
    """
    available = len(buffer) - offset
    if available < 1:
        return None
    first_byte = buffer[offset]
    fault = FIRST_BYTE_FAULTS[first_byte]
    if fault is not None:
        raise MalformedPacket(*fault)
    if available < 2:
        return None
    length = buffer[offset + 1]
    start = offset + 2
    if length > 127:
        long = _long_length(buffer, offset + 1)
        if long is None:
            return None
        length, start = long
    exact = _EXACT_LENGTH[first_byte]
    if length != exact != _ANY_LENGTH:
        raise wrong_length(first_byte >> 4, length)
    return first_byte, start, start + length


def _long_length(buffer: Buffer, at: int) -> tuple[int, int] | None:
    """A remaining length of two to four bytes: (value, start of body), or None while bytes are missing."""
    value = 0
    for index, digit in enumerate(buffer[at : at + 4]):
        value |= (digit & 127) << 7 * index
        if digit < 128:
            return value, at + index + 1
    if len(buffer) - at < 4:
        return None
    raise MalformedPacket("section 2.2.3", "the remaining length has more than four bytes")


def wrong_length(packet_type: int, length: int) -> MalformedPacket:
    """The complaint about a packet whose type allows one remaining length only, and not this one."""
    name = PacketType(packet_type).name
    return MalformedPacket("section 2.2.3", f"{name} has a remaining length of {length}")


def encode_header(first_byte: int, remaining_length: int) -> bytes:
    """The fixed header: seven bits of the remaining length a byte, the least significant first."""
    if remaining_length > MAX_REMAINING_LENGTH:
        raise ValueError(f"a packet body is longer than {MAX_REMAINING_LENGTH} bytes")
    header = [first_byte]
    while remaining_length > 127:
        header.append(remaining_length & 127 | 128)
        remaining_length >>= 7
    header.append(remaining_length)
    return bytes(header)
