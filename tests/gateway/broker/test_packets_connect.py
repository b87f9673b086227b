"""CONNECT clause by clause, as raw bytes."""

from __future__ import annotations

import pytest

from gateway.broker.packets import (
    Connect,
    ConnectCode,
    MalformedPacket,
    UnacceptableProtocol,
    Will,
    decode_connect,
    encode_connack,
    encode_connect,
    fixed_header,
)

MQTT = b"\x00\x04MQTT"


def text(raw: bytes) -> bytes:
    return len(raw).to_bytes(2, "big") + raw


def body(flags: int, *fields: bytes, keep_alive: int = 60, level: int = 4) -> bytes:
    return MQTT + bytes((level, flags)) + keep_alive.to_bytes(2, "big") + b"".join(map(text, fields))


def malformed(raw: bytes) -> MalformedPacket:
    with pytest.raises(MalformedPacket) as caught:
        decode_connect(raw)
    return caught.value


ACCEPTED = {
    "least": (body(0x02, b"x"), Connect("x", True, 60, None, None, None)),
    "persistent session": (body(0x00, b"x"), Connect("x", False, 60, None, None, None)),
    "no client identifier": (body(0x02, b""), Connect("", True, 60, None, None, None)),
    "no client identifier, persistent": (body(0x00, b""), Connect("", False, 60, None, None, None)),
    "no keep alive": (body(0x02, b"x", keep_alive=0), Connect("x", True, 0, None, None, None)),
    "long keep alive": (body(0x02, b"x", keep_alive=0xFFFE), Connect("x", True, 65534, None, None, None)),
    "user": (body(0x82, b"x", b"u"), Connect("x", True, 60, None, "u", None)),
    "empty user": (body(0x82, b"x", b""), Connect("x", True, 60, None, "", None)),
    "user, password": (body(0xC2, b"x", b"u", b"\x00\xff"), Connect("x", True, 60, None, "u", b"\x00\xff")),
    "empty password": (body(0xC2, b"x", b"u", b""), Connect("x", True, 60, None, "u", b"")),
    "will": (body(0x06, b"x", b"a/b", b"p"), Connect("x", True, 60, Will("a/b", b"p", 0, False), None, None)),
    "will qos 1": (body(0x0E, b"x", b"t", b"p"), Connect("x", True, 60, Will("t", b"p", 1, False), None, None)),
    "will qos 2": (body(0x16, b"x", b"t", b"p"), Connect("x", True, 60, Will("t", b"p", 2, False), None, None)),
    "will retain": (body(0x26, b"x", b"t", b"p"), Connect("x", True, 60, Will("t", b"p", 0, True), None, None)),
    "will qos 2 retain, persistent": (
        body(0x34, b"x", b"t", b""),
        Connect("x", False, 60, Will("t", b"", 2, True), None, None),
    ),
    "everything in its order": (
        body(0xF6, "é".encode(), b"t/w", b"\x00\xc0", b"user", b"pass", keep_alive=258),
        Connect("é", True, 258, Will("t/w", b"\x00\xc0", 2, True), "user", b"pass"),
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_well_formed_connect_is_decoded(case: str) -> None:
    """[MQTT-3.1.3-1, MQTT-3.1.3-3]: fields in the order of section 3.1.3, empty ones included."""
    raw, connect = ACCEPTED[case]
    assert decode_connect(raw) == connect


@pytest.mark.parametrize("case", ACCEPTED)
def test_encode_connect_writes_the_same_bytes(case: str) -> None:
    """The encoder's flags follow from the fields and give the hand-written packet back."""
    raw, connect = ACCEPTED[case]
    packet = encode_connect(connect)
    assert packet == bytes((0x10, len(raw))) + raw


def test_the_largest_connect_is_decoded() -> None:
    """Five fields of 65,535 bytes: a remaining length of 327,685 and more is no reason to refuse."""
    long = "x" * 65_535
    connect = Connect(long, True, 1, Will(long, long.encode(), 1, False), long, long.encode())
    packet = encode_connect(connect)
    header = fixed_header(packet, 0)
    assert header is not None
    assert header[2] - header[1] == 10 + 5 * 65_537
    assert decode_connect(packet[header[1] :]) == connect


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\x04MQT",
        b"\x00\x05MQTTx\x04\x02\x00\x3c\x00\x01x",
        b"\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x01x",
        b"\x00\x04mqtt\x04\x02\x00\x3c\x00\x01x",
        b"\x01\x04MQTT\x04\x02\x00\x3c\x00\x01x",
    ],
    ids=["nothing", "cut", "longer", "MQTT 3.1", "lower case", "length"],
)
def test_another_protocol_name_is_refused(raw: bytes) -> None:
    """[MQTT-3.1.2-1]: whatever it is, it is not processed as MQTT 3.1.1."""
    fault = malformed(raw)
    assert (fault.clause, fault.message) == ("MQTT-3.1.2-1", "the protocol name is not MQTT")


@pytest.mark.parametrize("level", [0, 3, 5, 0x84, 255])
def test_another_protocol_level_is_unacceptable(level: int) -> None:
    """[MQTT-3.1.2-2]: answered with CONNACK 1, so it is told apart from a malformed packet."""
    for raw in (body(0x02, b"x", level=level), MQTT + bytes((level,)), body(0x03, level=level)):
        with pytest.raises(UnacceptableProtocol) as caught:
            decode_connect(raw)
        assert caught.value.level == level
        assert str(caught.value) == f"protocol level {level} is not supported, only 4 is [MQTT-3.1.2-2]"


@pytest.mark.parametrize("size", [6, 7, 8, 9])
def test_a_cut_variable_header_is_refused(size: int) -> None:
    """Ten bytes come before the first field."""
    fault = malformed(body(0x02)[:size])
    assert fault.clause == "section 3.1.2"
    assert fault.message == "CONNECT ends inside its variable header"


WILL_FIELDS = (b"t", b"p")
REFUSED = {
    "reserved flag": (body(0x03, b"x"), "MQTT-3.1.2-3", "the reserved connect flag is set"),
    "reserved flag alone": (body(0x01, b"x"), "MQTT-3.1.2-3", "the reserved connect flag is set"),
    "will QoS 1 without will": (body(0x0A, b"x"), "MQTT-3.1.2-13", "will QoS is set without a will"),
    "will QoS 2 without will": (body(0x12, b"x"), "MQTT-3.1.2-13", "will QoS is set without a will"),
    "will QoS 3 without will": (body(0x1A, b"x"), "MQTT-3.1.2-13", "will QoS is set without a will"),
    "will retain without will": (body(0x22, b"x"), "MQTT-3.1.2-15", "will retain is set without a will"),
    "will QoS 3": (body(0x1E, b"x", *WILL_FIELDS), "MQTT-3.1.2-14", "the will has QoS 3"),
    "password without user name": (
        body(0x42, b"x", b"p"),
        "MQTT-3.1.2-22",
        "the password flag is set without the user name flag",
    ),
    "client identifier absent": (
        body(0x02),
        "MQTT-3.1.3-3",
        "the packet ends before or inside its client identifier",
    ),
    "client identifier without length": (
        body(0x02) + b"\x00",
        "MQTT-3.1.3-3",
        "the packet ends before or inside its client identifier",
    ),
    "client identifier cut": (
        body(0x02) + b"\x00\x02x",
        "MQTT-3.1.3-3",
        "the packet ends before or inside its client identifier",
    ),
    "client identifier ill-formed": (body(0x02, b"\xff"), "MQTT-1.5.3-1", "a string is not well-formed utf-8"),
    "client identifier with U+0000": (body(0x02, b"a\x00"), "MQTT-1.5.3-2", "a string contains U+0000"),
    "will topic absent": (
        body(0x06, b"x"),
        "MQTT-3.1.2-9",
        "the packet ends before or inside its will topic",
    ),
    "will message absent": (
        body(0x06, b"x", b"t"),
        "MQTT-3.1.2-9",
        "the packet ends before or inside its will message",
    ),
    "will message cut": (
        body(0x06, b"x", b"t") + b"\x00\x02p",
        "MQTT-3.1.2-9",
        "the packet ends before or inside its will message",
    ),
    "will topic empty": (body(0x06, b"x", b"", b"p"), "MQTT-4.7.3-1", "a topic is empty"),
    "will topic with #": (body(0x06, b"x", b"a/#", b"p"), "MQTT-4.7.1-1", "a topic name contains a wildcard"),
    "will topic with +": (body(0x06, b"x", b"+/a", b"p"), "MQTT-4.7.1-1", "a topic name contains a wildcard"),
    "will topic with surrogate": (
        body(0x06, b"x", b"\xed\xa0\x80", b"p"),
        "MQTT-1.5.3-1",
        "a string is not well-formed utf-8",
    ),
    "user name absent": (
        body(0x82, b"x"),
        "MQTT-3.1.2-19",
        "the packet ends before or inside its user name",
    ),
    "user name ill-formed": (
        body(0x82, b"x", b"\xc0\x80"),
        "MQTT-1.5.3-1",
        "a string is not well-formed utf-8",
    ),
    "user name with U+0000": (body(0x82, b"x", b"\x00"), "MQTT-1.5.3-2", "a string contains U+0000"),
    "password absent": (
        body(0xC2, b"x", b"u"),
        "MQTT-3.1.2-21",
        "the packet ends before or inside its password",
    ),
    "user name without its flag": (
        body(0x02, b"x", b"u"),
        "MQTT-3.1.2-18",
        "CONNECT has bytes after its last field",
    ),
    "will without its flag": (
        body(0x02, b"x", *WILL_FIELDS),
        "MQTT-3.1.2-18",
        "CONNECT has bytes after its last field",
    ),
    "password without its flag": (
        body(0x82, b"x", b"u", b"p"),
        "MQTT-3.1.2-20",
        "CONNECT has bytes after its last field",
    ),
    "bytes after the password": (
        body(0xC2, b"x", b"u", b"p") + b"\x00",
        "MQTT-3.1.3-1",
        "CONNECT has bytes after its last field",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_connect_that_breaks_a_clause_is_refused_with_it(case: str) -> None:
    """Flags, presence and absence of fields, strings: each refusal names its clause."""
    raw, clause, message = REFUSED[case]
    fault = malformed(raw)
    assert (fault.clause, fault.message) == (clause, message)


@pytest.mark.parametrize("flags", range(256))
def test_connect_flags_agree_with_the_specification(flags: int) -> None:
    """All 256 flag bytes against the rules of section 3.1.2 written down a second time."""
    will, qos, retain = flags >> 2 & 1, flags >> 3 & 3, flags >> 5 & 1
    password, user = flags >> 6 & 1, flags >> 7
    allowed = not flags & 1 and (qos < 3 if will else not qos and not retain) and (user or not password)
    fields = [b"x", *[b"t"] * 2 * will, *[b"u"] * user, *[b"p"] * password]
    if allowed:
        connect = decode_connect(body(flags, *fields))
        assert connect.clean_session is bool(flags & 2)
        assert connect.will == (Will("t", b"t", qos, bool(retain)) if will else None)
        assert (connect.user_name, connect.password) == ("u" if user else None, b"p" if password else None)
    else:
        assert malformed(body(flags, *fields)).clause.startswith("MQTT-3.1.2-")


def test_a_field_that_does_not_fit_its_length_cannot_be_encoded() -> None:
    """65,535 bytes fit, one more is a ValueError."""
    with pytest.raises(ValueError, match="a field is longer than 65535 bytes"):
        encode_connect(Connect("x" * 65_536, True, 0, None, None, None))


def test_connack_says_session_present_and_code() -> None:
    """[MQTT-3.2.2-1 to -4]: a refusal never carries session present."""
    assert encode_connack(False, ConnectCode.ACCEPTED) == b"\x20\x02\x00\x00"
    assert encode_connack(True, ConnectCode.ACCEPTED) == b"\x20\x02\x01\x00"
    assert [encode_connack(False, code)[2:].hex() for code in ConnectCode] == [
        "0000", "0001", "0002", "0003", "0004", "0005",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="a CONNACK that refuses cannot have session present set"):
        encode_connack(True, ConnectCode.NOT_AUTHORIZED)


def test_connect_codes_have_the_numbers_of_the_specification() -> None:
    """Section 3.2.2.3."""
    assert [(code.name, code.value) for code in ConnectCode] == [
        ("ACCEPTED", 0),
        ("UNACCEPTABLE_PROTOCOL", 1),
        ("IDENTIFIER_REJECTED", 2),
        ("SERVER_UNAVAILABLE", 3),
        ("BAD_CREDENTIALS", 4),
        ("NOT_AUTHORIZED", 5),
    ]
