"""Traps S2-S4, S7-S11, S13: whose session it is, and what a refused or silent client leaves behind."""

from __future__ import annotations

import contextlib
import functools
import socket
import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gateway.broker import packets
from gateway.broker.packets import Connect, Will
from tests.support.gateway import OPEN_POLICY, Closed, Gateway, RawClient, wait_until

Maker = Callable[..., Gateway]


def refusals(gateway: Gateway) -> list[str]:
    return [line["reason"] for line in gateway.audit("refused")]


@pytest.mark.parametrize("clean", [True, False], ids=["clean session", "stored session"])
def test_s2_s3_another_device_naming_my_client_id_is_refused_and_harms_nothing(gateway: Gateway, clean: bool) -> None:
    """B with A's client identifier: code 2, and A keeps connection, subscription and session."""
    a = gateway.connected("dev-a", clean=False)
    assert a.subscribe(("devices/dev-a/#", 1)) == [1]
    b = gateway.client("dev-b")
    assert b.connect("dev-a", clean=clean) == (False, 2)
    assert b.expect_closed() == []
    assert refusals(gateway) == ["client_id_refused"]
    a.publish("devices/dev-a/cmd")
    assert a.expect_publish().topic == "devices/dev-a/cmd"
    a.disconnect()
    again = gateway.client("dev-a")
    assert again.connect("dev-a", clean=False) == (True, 0)
    assert list(gateway.sessions()) == ["dev-a"]


def test_s2_the_same_device_resumes_its_own_session(gateway: Gateway) -> None:
    """The allow twin: A with A's client identifier finds its session."""
    gateway.connected("dev-a", clean=False).disconnect()
    again = gateway.client("dev-a")
    assert again.connect("dev-a", clean=False) == (True, 0)


def test_s2_an_identity_never_resumes_what_another_left_under_the_same_client_id(make_gateway: Maker) -> None:
    """Even where any client identifier is allowed, a session belongs to (identity, client identifier)."""
    gateway = make_gateway(OPEN_POLICY)
    a = gateway.connected("dev-a", "shared", clean=False)
    assert a.subscribe(("secret/#", 1)) == [1]
    a.disconnect()
    b = gateway.client("dev-b")
    assert b.connect("shared", clean=False) == (False, 0)
    gateway.connected("dev-c").publish("secret/x", qos=0)
    b.ping()


def test_s4_refused_connects_with_large_wills_leave_nothing_behind(gateway: Gateway) -> None:
    """200 refused CONNECTs with 60 kB wills: no session, no growth."""
    process = psutil.Process()
    will = Will("devices/dev-b/state", b"w" * 60_000, 0, False)
    packet = packets.encode_connect(Connect("dev-a", True, 60, will, None, None))

    def refused_once() -> None:
        client = gateway.client("dev-b")
        client.send(packet)
        assert client.read() == (0x20, b"\x00\x02")
        client.close()

    for _ in range(150):  # buffers and caches of the first ones are no growth
        refused_once()
    before = process.memory_info().rss
    for _ in range(200):
        refused_once()
    assert process.memory_info().rss - before < 8 * 1024 * 1024
    assert gateway.sessions() == {}
    wait_until(lambda: gateway.status()["connections"] == 0, "refused connections closed")


def test_s4_250_idle_tls_connections_do_not_keep_a_device_out(gateway: Gateway) -> None:
    """Connections that never send CONNECT cost a socket each, and nobody else's admission."""
    idle = [gateway.client("dev-idle") for _ in range(250)]
    device = gateway.connected("dev-a")
    device.ping()
    assert list(gateway.sessions()) == ["dev-a"]
    assert len(idle) == 250


def test_s7_after_a_renewal_the_new_certificates_facts_apply(gateway: Gateway) -> None:
    """Identity belongs to the connection: a stored session reports the certificate of the newest one."""
    old, new = gateway.pki.device("dev-a"), gateway.pki.device("dev-a")
    assert old.certificate.serial_number != new.certificate.serial_number
    for credential in (old, new):
        client = gateway.client(credential)
        assert client.connect("dev-a", clean=False)[1] == 0
        client.disconnect()
    wait_until(lambda: not gateway.sessions()["dev-a"]["connected"], "session stored")
    assert int(gateway.sessions()["dev-a"]["certificate_serial"], 16) == new.certificate.serial_number


@pytest.mark.parametrize("clean", [True, False], ids=["clean session", "stored session"])
def test_s8_a_device_takes_over_its_own_half_open_connection(gateway: Gateway, clean: bool) -> None:
    """The old socket is closed, its will fires, and messages flow on the new one."""
    backend = gateway.connected("backend")
    assert backend.subscribe(("devices/#", 1)) == [1]
    will = Will("devices/dev-a/state", b"gone", 1, False)
    old = gateway.connected("dev-a", clean=clean, will=will)
    new = gateway.client("dev-a")
    assert new.connect("dev-a", clean=clean) == (not clean, 0)
    assert old.expect_closed() == []
    assert backend.expect_publish().payload == b"gone"
    assert new.subscribe(("devices/dev-a/cmd", 0)) == [0]
    new.publish("devices/dev-a/cmd", b"alive")
    assert new.expect_publish().payload == b"alive"


def test_s8_queued_messages_are_sent_without_retain(gateway: Gateway) -> None:
    """What waited for a stored session arrives with RETAIN 0."""
    device = gateway.connected("dev-a", clean=False)
    assert device.subscribe(("devices/dev-a/cmd", 1)) == [1]
    device.disconnect()
    backend = gateway.connected("backend")
    backend.publish("devices/dev-a/cmd", b"1", qos=1, packet_id=7)
    assert backend.read() == (0x40, b"\x00\x07")
    device = gateway.client("dev-a")
    assert device.connect("dev-a", clean=False) == (True, 0)
    message = device.expect_publish()
    assert (message.payload, message.retain, message.dup, message.qos) == (b"1", False, False, 1)


def test_s9_a_peer_that_never_finishes_its_handshake_is_closed(make_gateway: Maker) -> None:
    """A TCP connection without a TLS handshake ends at the time limit."""
    gateway = make_gateway(limits={"handshake_timeout_s": 1})
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as silent:
        assert silent.recv(1) == b""
    wait_until(lambda: refusals(gateway) == ["handshake_timeout"], "audit line")


@pytest.mark.parametrize("sent", [b"", b"\x10", b"\x10\x20\x00\x04MQTT"], ids=["nothing", "one byte", "half a CONNECT"])
def test_s9_a_peer_that_never_finishes_connect_is_closed(make_gateway: Maker, sent: bytes) -> None:
    """Silence or a partial CONNECT ends at the time limit."""
    gateway = make_gateway(limits={"connect_timeout_s": 1})
    client = gateway.client("dev-a")
    if sent:
        client.send(sent)
    assert client.expect_closed(5) == []
    wait_until(lambda: refusals(gateway) == ["connect_timeout"], "audit line")


def _drip(client: RawClient, data: bytes) -> None:
    """Send a byte now and then until the peer closes."""
    client.socket.settimeout(0.2)
    for byte in data:
        client.send(bytes((byte,)))
        try:
            if client.socket.recv(1) == b"":
                raise Closed
        except TimeoutError:
            continue


def test_s9_a_connect_dripped_byte_by_byte_is_closed_at_the_limit(make_gateway: Maker) -> None:
    """Each byte is progress and none of it counts."""
    gateway = make_gateway(limits={"connect_timeout_s": 1})
    client = gateway.client("dev-a")
    packet = packets.encode_connect(Connect("dev-a", True, 60, None, None, None))
    started = time.monotonic()
    with pytest.raises((OSError, Closed)):
        _drip(client, packet * 20)
    assert time.monotonic() - started < 5


def test_s9_a_quick_connect_is_served(make_gateway: Maker) -> None:
    """The allow twin of the time limits."""
    make_gateway(limits={"connect_timeout_s": 1, "handshake_timeout_s": 1}).connected("dev-a").ping()


def _header(first: int, length: int) -> bytes:
    out = bytearray((first,))
    while length > 127:
        out.append(length & 127 | 128)
        length >>= 7
    return bytes((*out, length))


def _flood(client: RawClient, header: bytes, total: int) -> None:
    """Send a header and as much of the body as the peer takes."""
    client.send(header)
    chunk = b"x" * 65536
    try:
        for _ in range(total // len(chunk)):
            client.send(chunk)
    except OSError:
        pass


def test_s10_a_200_mb_connect_is_refused_from_its_fixed_header(gateway: Gateway) -> None:
    """The size is judged before the body; memory stays flat."""
    process = psutil.Process()
    client = gateway.client("dev-a")
    before = process.memory_info().rss
    _flood(client, _header(0x10, 200_000_000), 200_000_000)
    wait_until(lambda: refusals(gateway) == ["connect_too_large"], "audit line")
    assert process.memory_info().rss - before < 8 * 1024 * 1024


def test_s10_a_64_mb_publish_ends_the_connection_from_its_fixed_header(gateway: Gateway) -> None:
    """The same for a PUBLISH of a connected device."""
    process = psutil.Process()
    client = gateway.connected("dev-a")
    before = process.memory_info().rss
    _flood(client, _header(0x30, 64_000_000), 64_000_000)
    ended = wait_until(lambda: gateway.audit("disconnected"), "audit line")
    assert [line["reason"] for line in ended] == ["packet_too_large"]
    assert process.memory_info().rss - before < 8 * 1024 * 1024


def test_s10_a_connect_of_exactly_the_limit_is_served(make_gateway: Maker) -> None:
    """The allow twin: a large will below the limit is admitted."""
    gateway = make_gateway()
    will = Will("devices/dev-a/state", b"w" * 60_000, 0, False)
    gateway.connected("dev-a", will=will).ping()


def test_s11_keep_alive_closes_a_silent_client_and_fires_its_will(gateway: Gateway) -> None:
    """Nothing for 1.5 times the keep alive: closed, and the will is published."""
    backend = gateway.connected("backend", keep_alive_s=0)
    assert backend.subscribe(("devices/#", 0)) == [0]
    will = Will("devices/dev-a/state", b"silent", 0, False)
    client = gateway.connected("dev-a", keep_alive_s=1, will=will)
    started = time.monotonic()
    assert client.expect_closed(6) == []
    assert 1.0 < time.monotonic() - started < 4
    assert backend.expect_publish().payload == b"silent"
    assert [line["reason"] for line in gateway.audit("disconnected")] == ["keep_alive_timeout"]


def test_s11_bytes_of_an_unfinished_packet_do_not_count_as_a_packet(gateway: Gateway) -> None:
    """A client that stalls in the middle of a packet is closed as a silent one."""
    client = gateway.connected("dev-a", keep_alive_s=1)
    client.send(_header(0x30, 1000))
    started = time.monotonic()
    closed = False
    while not closed and time.monotonic() - started < 8:
        try:
            client.send(b"x")
            client.read(0.2)
        except TimeoutError:
            continue
        except (OSError, Closed):
            closed = True
    assert closed
    assert [line["reason"] for line in gateway.audit("disconnected")] == ["keep_alive_timeout"]


def test_s11_pings_keep_a_client_alive(gateway: Gateway) -> None:
    """The allow twin: a PINGREQ within the interval holds the connection."""
    client = gateway.connected("dev-a", keep_alive_s=1)
    until = time.monotonic() + 3
    while time.monotonic() < until:
        client.ping()
        with pytest.raises(TimeoutError):
            client.read(0.5)
    client.ping()


def test_s13_max_connections_refuses_at_once(make_gateway: Maker) -> None:
    """The connection beyond the limit is refused, not kept waiting; room made is used."""
    gateway = make_gateway(limits={"max_connections": 2})
    first, second = gateway.connected("dev-a"), gateway.connected("dev-b")
    started = time.monotonic()
    with pytest.raises((OSError, ssl.SSLError)):
        gateway.client("dev-c")
    assert time.monotonic() - started < 2
    assert refusals(gateway) == ["too_many_connections"]
    second.disconnect()
    wait_until(lambda: gateway.status()["connections"] == 1, "slot free")
    gateway.connected("dev-c").ping()
    first.ping()


def test_handshakes_of_one_address_are_limited(make_gateway: Maker) -> None:
    """A peer that opens sockets without shaking hands is refused beyond its share."""
    gateway = make_gateway(limits={"max_handshakes_per_address": 2, "handshake_timeout_s": 5})
    silent = [socket.create_connection(("127.0.0.1", gateway.port), timeout=5) for _ in range(3)]
    try:
        wait_until(lambda: refusals(gateway) == ["too_many_handshakes"], "audit line")
        assert silent[2].recv(1) == b""
    finally:
        for sock in silent:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
    wait_until(lambda: gateway.status()["connections"] == 0, "slots free")
    gateway.connected("dev-a").ping()


def test_addresses_of_one_ipv6_network_share_their_handshakes(make_gateway: Maker) -> None:
    """A host has 2^64 of them: they count as one, and another network's are not touched."""
    gateway = make_gateway(limits={"max_handshakes_per_address": 2, "handshake_timeout_s": 5})
    listener = gateway.broker._listener
    with contextlib.ExitStack() as open_here, socket.create_server(("127.0.0.1", 0)) as door:
        for address in ("2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:0:1::1"):
            open_here.enter_context(socket.create_connection(door.getsockname(), timeout=5))
            gateway.call(functools.partial(listener._admit_socket, door.accept()[0], address))
        wait_until(lambda: refusals(gateway) == ["too_many_handshakes"], "audit line")
        assert [line["address"] for line in gateway.audit("refused")] == ["2001:db8::3"]
    wait_until(lambda: gateway.status()["connections"] == 0, "slots free")


def test_max_sessions_refuses_the_newcomer(make_gateway: Maker, tmp_path: Path) -> None:
    """A device with its allowed number of live sessions cannot open one more; the old ones stay."""
    policy = """
version = 1
[identity]
client_id = ["{id}", "{id}:*"]
[[role]]
name = "device"
match = { id = "*" }
publish = ["devices/{id}/#"]
limits = { max_sessions = 2 }
"""
    gateway = make_gateway(policy)
    first, second = gateway.connected("dev-a"), gateway.connected("dev-a", "dev-a:2")
    third = gateway.client("dev-a")
    assert third.connect("dev-a:3") == (False, 3)
    assert refusals(gateway) == ["too_many_sessions"]
    first.ping()
    second.ping()
    assert sorted(gateway.sessions()) == ["dev-a", "dev-a:2"]
