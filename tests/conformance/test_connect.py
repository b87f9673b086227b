"""CONNECT and CONNACK: MQTT 3.1.1 sections 3.1, 3.2 and 3.14, seen by a raw client over mutual TLS."""

from __future__ import annotations

import time

import pytest

from gateway.broker import packets
from gateway.broker.packets import Connect, Will
from tests.support.gateway import Gateway, RawClient, wait_until

CONNECTED = (0x20, b"\x00\x00")


def raw_connect(flags: int, payload: bytes, *, name: bytes = b"\x00\x04MQTT", level: int = 4, keep: int = 60) -> bytes:
    """A CONNECT with any flags over any payload."""
    body = name + bytes((level, flags)) + keep.to_bytes(2) + payload
    assert len(body) < 128
    return bytes((0x10, len(body))) + body


def text(value: bytes) -> bytes:
    return len(value).to_bytes(2) + value


def client_of(broker: Gateway) -> RawClient:
    return broker.client("dev-a")


def closed_without_answer(client: RawClient) -> None:
    assert client.expect_closed() == []


def test_the_first_packet_must_be_connect(broker: Gateway) -> None:
    """[MQTT-3.1.0-1] Anything else closes the connection."""
    for packet in (packets.PINGREQ, packets.encode_subscribe(1, [("a", 0)]), packets.DISCONNECT):
        client = client_of(broker)
        client.send(packet)
        closed_without_answer(client)


def test_a_second_connect_ends_the_connection(broker: Gateway) -> None:
    """[MQTT-3.1.0-2] A second CONNECT is a protocol violation."""
    client = broker.connected("dev-a", "second")
    client.send(packets.encode_connect(Connect("second", True, 60, None, None, None)))
    closed_without_answer(client)


@pytest.mark.parametrize(
    "packet",
    [
        raw_connect(0x02, text(b"x"), name=b"\x00\x04mqtt"),
        raw_connect(0x03, text(b"x")),
        raw_connect(0x06, text(b"x")),
        raw_connect(0x0A, text(b"x")),
        raw_connect(0x22, text(b"x")),
        raw_connect(0x1E, text(b"x") + text(b"t") + text(b"m")),
        raw_connect(0x02, text(b"x") + text(b"user")),
        raw_connect(0x82, text(b"x")),
        raw_connect(0x82, text(b"x") + text(b"user") + text(b"password")),
        raw_connect(0xC2, text(b"x") + text(b"user")),
        raw_connect(0x42, text(b"x") + text(b"password")),
        raw_connect(0x02, b""),
        raw_connect(0x02, text(b"\xff")),
        raw_connect(0x06, text(b"x") + text(b"\xff") + text(b"m")),
        raw_connect(0x82, text(b"x") + text(b"\xff")),
    ],
    ids=[
        "3.1.2-1 protocol name",
        "3.1.2-3 reserved flag",
        "3.1.2-9 will fields missing",
        "3.1.2-13 will QoS without will",
        "3.1.2-15 will retain without will",
        "3.1.2-14 will QoS 3",
        "3.1.2-18 user name without its flag",
        "3.1.2-19 user name missing",
        "3.1.2-20 password without its flag",
        "3.1.2-21 password missing",
        "3.1.2-22 password flag without user name flag",
        "3.1.3-3 no client identifier",
        "3.1.3-4 client identifier is not UTF-8",
        "3.1.3-10 will topic is not UTF-8",
        "3.1.3-11 user name is not UTF-8",
    ],
)
def test_a_connect_that_does_not_conform_is_closed_without_connack(broker: Gateway, packet: bytes) -> None:
    """[MQTT-3.1.4-1] and the clause in the test's name: closed without CONNACK, nothing left behind."""
    client = client_of(broker)
    client.send(packet)
    closed_without_answer(client)
    assert "x" not in broker.sessions()


@pytest.mark.parametrize(
    "packet",
    [
        raw_connect(0x02, text(b"fields-a")),
        raw_connect(0x06, text(b"fields-b") + text(b"t") + text(b"m")),
        raw_connect(0x36, text(b"fields-c") + text(b"t") + text(b"m")),
        raw_connect(0x82, text(b"fields-d") + text(b"user")),
        raw_connect(0xC2, text(b"fields-e") + text(b"user") + text(b"pass\x00\xff")),
        raw_connect(0xF6, text(b"fields-f") + text(b"t") + text(b"") + text(b"user") + text(b"")),
    ],
)
def test_fields_come_in_their_order_and_are_present_as_flagged(broker: Gateway, packet: bytes) -> None:
    """[MQTT-3.1.3-1] Client identifier, will topic, will message, user name, password."""
    client = client_of(broker)
    client.send(packet)
    assert client.read() == CONNECTED


@pytest.mark.parametrize("level", [3, 5, 0, 255])
def test_an_unsupported_protocol_level_is_answered_with_1(broker: Gateway, level: int) -> None:
    """[MQTT-3.1.2-2] CONNACK return code 1, session present 0, then closed."""
    client = client_of(broker)
    client.send(raw_connect(0x02, text(b"x"), level=level))
    assert client.expect_closed() == [(0x20, b"\x00\x01")]


def test_a_stored_session_is_resumed_with_its_subscriptions_and_messages(broker: Gateway) -> None:
    """[MQTT-3.1.2-4, 3.1.2-5, 3.2.2-2, 4.1.0-1] Clean session 0: QoS 1 and 2 messages wait for the client."""
    client = broker.connected("dev-a", "stored", clean=False)
    assert client.subscribe(("stored/#", 2)) == [2]
    client.disconnect()
    wait_until(lambda: not broker.sessions()["stored"]["connected"], "disconnected")
    sender = broker.connected("dev-b", "stored-sender")
    for qos in (0, 1, 2):
        sender.publish(f"stored/{qos}", qos=qos, packet_id=qos or 1)
    sender.ping_after_acks(2)
    again = client_of(broker)
    assert again.connect("stored", clean=False) == (True, 0)
    assert [again.expect_publish().topic for _ in range(2)] == ["stored/1", "stored/2"]


def test_clean_session_discards_what_was_stored(broker: Gateway) -> None:
    """[MQTT-3.1.2-6, 3.1.4-3, 3.2.2-1] Clean session 1 starts anew and leaves nothing behind."""
    client = broker.connected("dev-a", "cleaned", clean=False)
    assert client.subscribe(("cleaned/#", 1)) == [1]
    client.disconnect()
    fresh = client_of(broker)
    assert fresh.connect("cleaned", clean=True) == (False, 0)
    broker.connected("dev-b", "cleaned-sender").publish("cleaned/x")
    fresh.ping()
    fresh.disconnect()
    third = client_of(broker)
    assert third.connect("cleaned", clean=False) == (False, 0)


def test_session_present_is_0_where_nothing_is_stored(broker: Gateway) -> None:
    """[MQTT-3.2.2-3] Clean session 0 without a stored session."""
    assert client_of(broker).connect("never-seen", clean=False) == (False, 0)


def test_a_refused_connect_has_session_present_0_and_is_closed(broker: Gateway) -> None:
    """[MQTT-3.2.2-4, 3.2.2-5] A return code above 0 ends the connection."""
    broker.connected("dev-a", "", clean=True).disconnect()
    client = client_of(broker)
    assert client.connect("", clean=False) == (False, 2)
    assert client.expect_closed() == []


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
def test_a_will_is_stored_and_published_when_the_client_vanishes(broker: Gateway, qos: int, retain: bool) -> None:
    """[MQTT-3.1.2-8, 3.1.2-16, 3.1.2-17] With its QoS, retained or not."""
    topic = f"will/{qos}/{retain}"
    watcher = broker.connected("dev-b", f"watch{qos}{retain}")
    assert watcher.subscribe((topic, 2)) == [2]
    broker.connected("dev-a", "mortal", will=Will(topic, b"gone", qos, retain)).close()
    message = watcher.expect_publish()
    assert (message.payload, message.qos, message.retain) == (b"gone", qos, False)
    late = broker.connected("dev-c", f"late{qos}{retain}")
    assert late.subscribe((topic, 2)) == [2]
    if retain:
        kept = late.expect_publish()
        assert (kept.payload, kept.retain) == (b"gone", True)
    else:
        late.ping()


def test_a_will_is_published_once_only(broker: Gateway) -> None:
    """[MQTT-3.1.2-10] It is removed from the session once published."""
    watcher = broker.connected("dev-b", "watch-once")
    assert watcher.subscribe(("once/#", 0)) == [0]
    broker.connected("dev-a", "once", clean=False, will=Will("once/x", b"gone", 0, False)).close()
    assert watcher.expect_publish().topic == "once/x"
    again = client_of(broker)
    assert again.connect("once", clean=False) == (True, 0)
    again.close()
    wait_until(lambda: not broker.sessions()["once"]["connected"], "gone again")
    watcher.ping()


def test_without_a_will_flag_nothing_is_published(broker: Gateway) -> None:
    """[MQTT-3.1.2-12] A client that left no will vanishes silently."""
    watcher = broker.connected("dev-b", "watch-none")
    assert watcher.subscribe(("none/#", 0)) == [0]
    broker.connected("dev-a", "none").close()
    wait_until(lambda: "none" not in broker.sessions(), "gone")
    watcher.ping()


def test_an_orderly_disconnect_discards_the_will(broker: Gateway) -> None:
    """[MQTT-3.14.4-3] and the connection is closed by the server as well."""
    watcher = broker.connected("dev-b", "watch-orderly")
    assert watcher.subscribe(("orderly/#", 0)) == [0]
    client = broker.connected("dev-a", "orderly", will=Will("orderly/x", b"gone", 0, False))
    client.send(packets.DISCONNECT)
    assert client.expect_closed() == []
    watcher.ping()


def test_disconnect_with_reserved_bits_is_a_violation(broker: Gateway) -> None:
    """[MQTT-3.14.1-1] The connection ends and the will is published."""
    watcher = broker.connected("dev-b", "watch-bits")
    assert watcher.subscribe(("bits/#", 0)) == [0]
    client = broker.connected("dev-a", "bits", will=Will("bits/x", b"gone", 0, False))
    client.send(b"\xe1\x00")
    closed_without_answer(client)
    assert watcher.expect_publish().payload == b"gone"


@pytest.mark.parametrize(
    "client_id", ["a", "0123456789abcdefghijklm", "NOPQRSTUVWXYZnopqrstuvw", "ä/ö#+$ €", "x" * 65535]
)
def test_client_identifiers_of_any_length_and_text(broker: Gateway, client_id: str) -> None:
    """[MQTT-3.1.3-2, 3.1.3-5] The 23 simple characters, and what a server may allow besides, where the policy does."""
    client = client_of(broker)
    client.send(packets.encode_connect(Connect(client_id, True, 60, None, None, None)))
    assert client.read() == CONNECTED


def test_an_empty_client_identifier_gets_a_unique_one(broker: Gateway) -> None:
    """[MQTT-3.1.3-6, 3.1.3-7] Two clients without one do not meet."""
    first, second = broker.connected("dev-a", ""), broker.connected("dev-a", "")
    first.ping()
    second.ping()
    assert len([name for name in broker.sessions() if name.startswith("auto-")]) == 2


def test_an_empty_client_identifier_needs_clean_session(broker: Gateway) -> None:
    """[MQTT-3.1.3-8, 3.1.3-9] Return code 2, then closed."""
    client = client_of(broker)
    assert client.connect("", clean=False) == (False, 2)
    assert client.expect_closed() == []


def test_a_client_of_the_same_identifier_is_disconnected(broker: Gateway) -> None:
    """[MQTT-3.1.4-2, 3.1.4-4] The newer connection is accepted."""
    old = broker.connected("dev-a", "twice")
    new = broker.connected("dev-a", "twice")
    assert old.expect_closed() == []
    new.ping()


def test_packets_sent_with_connect_are_handled_after_it_and_not_at_all_when_refused(broker: Gateway) -> None:
    """[MQTT-3.1.4-5, 3.2.0-1] CONNACK comes first; a refused client's packets are not processed."""
    watcher = broker.connected("dev-b", "watch-eager")
    assert watcher.subscribe(("eager/#", 0)) == [0]
    eager = client_of(broker)
    connect = packets.encode_connect(Connect("eager", True, 60, None, None, None))
    publish = packets.encode_publish(b"eager/x", b"", 0, False, False, 0)
    eager.send(connect + publish + packets.PINGREQ)
    assert [eager.read(), eager.read()] == [CONNECTED, (0xD0, b"")]
    assert watcher.expect_publish().topic == "eager/x"
    refused = client_of(broker)
    refused.send(packets.encode_connect(Connect("", False, 60, None, None, None)) + publish)
    assert refused.expect_closed() == [(0x20, b"\x00\x02")]
    watcher.ping()


def test_the_largest_connect_is_served(broker: Gateway) -> None:
    """Every field at 65,535 bytes, 327,695 bytes in all, where the limit is configured so."""
    big = 65_535
    connect = Connect("c" * big, True, 60, Will("w" * big, b"m" * big, 0, False), "u" * big, b"p" * big)
    client = client_of(broker)
    packet = packets.encode_connect(connect)
    assert packets.fixed_header(packet, 0) == (0x10, 4, 4 + 327_695)
    client.send(packet)
    assert client.read() == CONNECTED


def test_keep_alive_is_one_and_a_half_times_and_0_means_for_ever(broker: Gateway) -> None:
    """[MQTT-3.1.2-24] Only a client that promised packets is closed for silence."""
    patient, hasty = broker.connected("dev-a", "patient", keep_alive_s=0), client_of(broker)
    began = time.monotonic()  # before the gateway begins to count
    assert hasty.connect("hasty", keep_alive_s=1) == (False, 0)
    assert hasty.expect_closed(5) == []
    assert time.monotonic() - began >= 1.5
    patient.ping()


def test_a_connect_beyond_the_limit_is_closed_without_connack(broker: Gateway) -> None:
    """[MQTT-3.2.2-6] No return code says too large, so there is none; the fixed header suffices."""
    client = client_of(broker)
    client.send(b"\x10\xd0\x80\x14")  # 327,760 bytes, of which none follow
    closed_without_answer(client)
