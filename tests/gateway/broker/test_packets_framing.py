"""Fixed headers byte by byte: first-byte flags, remaining lengths, and what can be known before a body arrives."""

from __future__ import annotations

import pytest

from gateway.broker.framing import encode_header, reserved_flags
from gateway.broker.packets import MAX_REMAINING_LENGTH, MalformedPacket, PacketType, fixed_header

RESERVED_ZERO = [
    PacketType.CONNECT,
    PacketType.CONNACK,
    PacketType.PUBACK,
    PacketType.PUBREC,
    PacketType.PUBCOMP,
    PacketType.SUBACK,
    PacketType.UNSUBACK,
    PacketType.PINGREQ,
    PacketType.PINGRESP,
]
RESERVED = [
    *((kind, 0, "MQTT-2.2.2-2") for kind in RESERVED_ZERO),
    (PacketType.PUBREL, 2, "MQTT-3.6.1-1"),
    (PacketType.SUBSCRIBE, 2, "MQTT-3.8.1-1"),
    (PacketType.UNSUBSCRIBE, 2, "MQTT-3.10.1-1"),
    (PacketType.DISCONNECT, 0, "MQTT-3.14.1-1"),
]
FIXED_LENGTHS = {
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
LENGTHS = [  # section 2.2.3, table 2.4 and its examples
    (0, "00"),
    (1, "01"),
    (64, "40"),
    (127, "7f"),
    (128, "8001"),
    (321, "c102"),
    (16_383, "ff7f"),
    (16_384, "808001"),
    (2_097_151, "ffff7f"),
    (2_097_152, "80808001"),
    (268_435_455, "ffffff7f"),
]


def malformed(raw: bytes, offset: int = 0) -> MalformedPacket:
    with pytest.raises(MalformedPacket) as caught:
        fixed_header(raw, offset)
    return caught.value


@pytest.mark.parametrize(("kind", "reserved", "clause"), RESERVED, ids=str)
def test_reserved_flags_have_one_value_only(kind: PacketType, reserved: int, clause: str) -> None:
    """[MQTT-2.2.2-1, MQTT-2.2.2-2] and its special forms: each of the sixteen flag values is judged."""
    length = FIXED_LENGTHS.get(kind, 5)
    for flags in range(16):
        raw = bytes((kind << 4 | flags, length))
        if flags == reserved:
            assert fixed_header(raw, 0) == (raw[0], 2, 2 + length)
        else:
            fault = malformed(raw)
            assert fault.clause == clause
            assert fault.message == f"{kind.name} has reserved flags {flags:04b}"


def test_reserved_flags_are_told_to_the_encoders() -> None:
    """The encoders take the flags from the same table as the judgement."""
    assert {kind: reserved_flags(kind) for kind, _, _ in RESERVED} == {kind: flags for kind, flags, _ in RESERVED}


@pytest.mark.parametrize("number", [0, 15])
def test_forbidden_packet_types_are_refused(number: int) -> None:
    """Types 0 and 15 do not exist (section 2.2.1)."""
    for flags in range(16):
        fault = malformed(bytes((number << 4 | flags, 0)))
        assert (fault.clause, fault.message) == ("section 2.2.1", f"packet type {number} is forbidden")


def test_publish_flags_allow_all_but_qos_3_and_dup_of_qos_0() -> None:
    """[MQTT-3.3.1-4] and [MQTT-3.3.1-2]: of sixteen flag values ten are PUBLISH packets."""
    verdicts: dict[int, str] = {}
    for flags in range(16):
        raw = bytes((0x30 | flags, 9))
        try:
            assert fixed_header(raw, 0) == (0x30 | flags, 2, 11)
            verdicts[flags] = ""
        except MalformedPacket as fault:
            verdicts[flags] = f"{fault.clause} {fault.message}"
    qos_3 = "MQTT-3.3.1-4 PUBLISH has QoS 3"
    dup_0 = "MQTT-3.3.1-2 PUBLISH has DUP with QoS 0"
    assert verdicts == {
        0: "", 1: "", 2: "", 3: "", 4: "", 5: "", 6: qos_3, 7: qos_3,
        8: dup_0, 9: dup_0, 10: "", 11: "", 12: "", 13: "", 14: qos_3, 15: qos_3,
    }  # fmt: skip


@pytest.mark.parametrize(("value", "wire"), LENGTHS)
def test_remaining_length_has_seven_bits_a_byte(value: int, wire: str) -> None:
    """Both directions at every boundary of section 2.2.3; the body need not be there."""
    raw = b"\x30" + bytes.fromhex(wire)
    assert encode_header(0x30, value) == raw
    assert fixed_header(raw, 0) == (0x30, len(raw), len(raw) + value)


def test_a_remaining_length_of_five_bytes_is_refused() -> None:
    """Section 2.2.3: refused as soon as the fourth byte asks for a fifth."""
    assert fixed_header(b"\x30\xff\xff\xff", 0) is None
    for raw in (b"\x30\xff\xff\xff\xff", b"\x30\x80\x80\x80\x80\x00", b"\x30\x80\x80\x80\x80\x01"):
        fault = malformed(raw)
        assert fault.clause == "section 2.2.3"
        assert fault.message == "the remaining length has more than four bytes"


def test_a_longer_spelling_of_a_length_is_accepted() -> None:
    """No statement of MQTT 3.1.1 demands the shortest form."""
    assert fixed_header(b"\x30\x80\x00", 0) == (0x30, 3, 3)
    assert fixed_header(b"\x30\x85\x80\x80\x00", 0) == (0x30, 5, 10)


@pytest.mark.parametrize("kind", FIXED_LENGTHS, ids=lambda kind: kind.name)
def test_a_type_with_one_length_refuses_every_other(kind: PacketType) -> None:
    """A packet whose type fixes its length is refused by its header, before the body."""
    first = kind << 4 | reserved_flags(kind)
    exact = FIXED_LENGTHS[kind]
    assert fixed_header(bytes((first, exact)), 0) == (first, 2, 2 + exact)
    for length in (0, 1, 2, 3, 127):
        if length != exact:
            fault = malformed(bytes((first, length)))
            assert fault.clause == "section 2.2.3"
            assert fault.message == f"{kind.name} has a remaining length of {length}"
    assert malformed(bytes((first, 0x80, 0x01))).message == f"{kind.name} has a remaining length of 128"


def test_a_header_is_awaited_until_it_is_complete() -> None:
    """None means more bytes, for each prefix of a header, and never after it."""
    raw = b"\x30\x80\x80\x80\x01"
    assert [fixed_header(raw[:count], 0) for count in range(5)] == [None] * 5
    assert fixed_header(raw, 0) == (0x30, 5, 5 + 2_097_152)
    assert fixed_header(b"\x10", 0) is None
    assert fixed_header(b"\xc0", 0) is None


def test_bad_flags_are_refused_before_the_length_arrives() -> None:
    """One byte suffices for a refusal."""
    assert malformed(b"\x36").clause == "MQTT-3.3.1-4"
    assert malformed(b"\x80").clause == "MQTT-3.8.1-1"


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview], ids=["bytes", "bytearray", "memoryview"])
def test_a_packet_is_found_at_any_offset(make: type) -> None:
    """Positions count from the start of the buffer, whatever lies before the packet."""
    for before in range(5):
        assert fixed_header(make(b"\x7f" * before), before) is None
        assert fixed_header(make(b"\x7f" * before + b"\x30"), before) is None
        raw = make(b"\x7f" * before + b"\x30\x85\x82\x03")
        assert fixed_header(raw, before) == (0x30, before + 4, before + 4 + 49_413)
    raw = make(b"\xc0\x00" + b"\x30\x85\x02" + b"\x00")
    assert fixed_header(raw, 0) == (0xC0, 2, 2)
    assert fixed_header(raw, 2) == (0x30, 5, 5 + 261)
    assert fixed_header(raw, 6) is None
    assert fixed_header(make(b"\xc0\x00\x30\x85\x82"), 2) is None
    assert malformed(make(b"\xc0\x00\x30\x85\x82\x83\x84"), 2).clause == "section 2.2.3"


def test_a_body_beyond_four_bytes_of_length_cannot_be_sent() -> None:
    """Our own mistake is a ValueError, not a packet that nobody can read."""
    assert MAX_REMAINING_LENGTH == 268_435_455
    with pytest.raises(ValueError, match="a packet body is longer than 268435455 bytes"):
        encode_header(0x30, MAX_REMAINING_LENGTH + 1)


def test_packet_types_have_the_numbers_of_the_specification() -> None:
    """Table 2.1."""
    assert [(kind.name, kind.value) for kind in PacketType] == [
        ("CONNECT", 1),
        ("CONNACK", 2),
        ("PUBLISH", 3),
        ("PUBACK", 4),
        ("PUBREC", 5),
        ("PUBREL", 6),
        ("PUBCOMP", 7),
        ("SUBSCRIBE", 8),
        ("SUBACK", 9),
        ("UNSUBSCRIBE", 10),
        ("UNSUBACK", 11),
        ("PINGREQ", 12),
        ("PINGRESP", 13),
        ("DISCONNECT", 14),
    ]


def test_a_fault_says_what_is_wrong_and_which_clause_it_breaks() -> None:
    """What reaches a log names the rule and quotes nothing of the peer."""
    assert str(malformed(b"\x36\x00")) == "PUBLISH has QoS 3 [MQTT-3.3.1-4]"
