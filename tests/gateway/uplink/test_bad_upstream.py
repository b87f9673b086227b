"""Upstreams that are not well: refusing, silent, absurd. Nothing that was acknowledged here is lost by them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.broker import packets
from gateway.uplink.envelope import Envelope
from mtls.bounded_socket import MAX_PACKET_BYTES
from tests.gateway.uplink.conftest import Site
from tests.gateway.uplink.upstreams import Consumer, mosquitto
from tests.support.gateway import wait_until
from tests.support.pki import Credential, Pki
from tests.support.tls_servers import server_side, serving

CONNACK = b"\x20\x02\x00\x00"
Answer = Callable[[socket.socket], None]


@contextmanager
def upstream_that(pki: Pki, answer: Answer) -> Iterator[int]:
    """A TLS server that takes CONNECT and then does as told."""
    context = server_side(pki.server(), ca_file=pki.root_file)

    def serve(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.recv(4096)
            answer(tls)

    with serving(serve) as port:
        yield port


def swallow(tls: socket.socket) -> None:
    while tls.recv(65536):
        pass


def says(*packets: bytes) -> Answer:
    def answer(tls: socket.socket) -> None:
        for packet in packets:
            tls.sendall(packet)
        swallow(tls)

    return answer


def test_an_upstream_that_accepts_and_never_acknowledges_is_left(
    tmp_path: Path, pki: Pki, gateway_identity: Credential
) -> None:
    """After its time it is left with a clear word, and the messages are where they were."""
    with (
        upstream_that(pki, says(CONNACK)) as port,
        Site(tmp_path, pki, gateway_identity, port, ack_timeout_s=0.5) as site,
    ):
        site.take(("devices/a/x", b"1", "a"), ("devices/a/x", b"2", "a"))
        wait_until(lambda: "has not acknowledged" in site.report()["last_fault"])
        wait_until(lambda: site.report()["connections"] >= 2)
        assert site.report()["spool_messages"] == 2


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x40\x02\x00\x63" * 50,
        b"\x40\x02\x00\x00",
        b"\xf0\x00",
        b"\x00\x00",
        b"\x40\x01\x00",
        b"\x40\x00",
        b"\x30\x05\x00\x20ab",
        b"\x30\x04\x00\x02\xff\xfe",
        b"\x90\x03\x00\x01\x80",
        b"\x20\x02\x00\x00",
        b"\xff" * 64,
        b"\x30\xff\xff\xff\x7f" + b"\x00" * 100,
    ],
    ids=[
        *("acks of nothing", "ack of id 0", "type 15", "type 0", "short ack", "empty ack", "short publish"),
        *("topic no utf8", "a refused subscription of nothing", "a second connack", "ff", "256 MiB"),
    ],
)
def test_absurd_answers_delete_nothing_and_end_nothing_but_the_connection(
    tmp_path: Path, pki: Pki, gateway_identity: Credential, nonsense: bytes
) -> None:
    """Acknowledgements of nothing, garbage and giants: the message stays, the uplink lives and tries again."""
    with (
        upstream_that(pki, says(CONNACK, nonsense)) as port,
        Site(tmp_path, pki, gateway_identity, port, ack_timeout_s=0.5) as site,
    ):
        site.take(*[("devices/a/x", b"1", "a")] * 3)
        wait_until(lambda: site.report()["connections"] >= 2)
        assert site.report()["spool_messages"] == 3


def test_a_giant_packet_is_not_taken_into_memory(tmp_path: Path, pki: Pki, gateway_identity: Credential) -> None:
    """Its length alone ends the connection."""
    length = MAX_PACKET_BYTES + 10
    announced = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
    with (
        upstream_that(pki, says(CONNACK, b"\x30" + announced)) as port,
        Site(tmp_path, pki, gateway_identity, port) as site,
    ):
        wait_until(lambda: "more than" in site.report()["last_fault"])


@pytest.mark.parametrize(
    ("answer", "says_"),
    [
        (says(b"\x20\x02\x00\x05"), "refused CONNECT"),
        (says(b"\x20\x02\x00\x01"), "connection"),
        (lambda tls: None, "closed|lost|ended|reset"),
    ],
    ids=["not authorised", "protocol level", "closes"],
)
def test_an_upstream_that_refuses_us_is_said_so(
    tmp_path: Path, pki: Pki, gateway_identity: Credential, answer: Answer, says_: str
) -> None:
    """The reason stands in the status, and the uplink goes on trying."""
    with upstream_that(pki, answer) as port, Site(tmp_path, pki, gateway_identity, port) as site:
        fault = wait_until(lambda: site.report()["last_fault"])
        assert any(word in fault for word in says_.split("|")), fault
        assert site.report()["connections"] == 0


def test_a_host_name_that_python_cannot_encode_is_one_more_reason_for_no_connection(
    tmp_path: Path, pki: Pki, gateway_identity: Credential
) -> None:
    """The configuration refuses such names; whatever else a connect may raise, the uplink goes on, and the gateway."""
    with Site(tmp_path, pki, gateway_identity, 8883, host="upstream..example.com") as site:
        assert wait_until(lambda: site.report()["last_fault"]) == "UnicodeError"
        site.take(("devices/a/x", b"1", "a"))
        assert site.report()["spool_messages"] == 1


def test_a_server_of_another_ca_is_refused(
    tmp_path: Path, pki: Pki, gateway_identity: Credential, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Mutual: the upstream proves itself, or gets nothing."""
    other = Pki(tmp_path_factory.mktemp("other"), "other")
    read: list[bytes] = []

    def note(tls: socket.socket) -> None:
        read.append(tls.recv(4096))

    context = server_side(other.server(), ca_file=pki.root_file)

    def serve(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            note(tls)

    with serving(serve) as port, Site(tmp_path, pki, gateway_identity, port) as site:
        site.take(("devices/a/x", b"1", "a"))
        wait_until(lambda: "trusted" in site.report()["last_fault"] or "signed" in site.report()["last_fault"])
        assert site.report()["spool_messages"] == 1
    assert not any(read)


def test_a_message_that_an_mqtt_5_upstream_refuses_stays_and_others_go_on(
    tmp_path: Path, pki: Pki, gateway_identity: Credential, consumer_identity: Credential
) -> None:
    """Refused by a real ACL: kept, counted, named in the status; what is allowed arrives."""
    acl = tmp_path / "acl"
    acl.write_text("user gw-1\ntopic write site/gw-1/devices/allowed/#\nuser consumer\ntopic read #\n")
    acl.chmod(0o644)
    with (
        mosquitto(tmp_path / "up", pki, options=f"acl_file {acl}\n") as upstream,
        Consumer(upstream.port, pki, consumer_identity, mqtt5=True) as consumer,
        Site(tmp_path, pki, gateway_identity, upstream.port, envelope=Envelope.MQTT5) as site,
    ):
        wait_until(lambda: site.report()["state"] == "connected")
        site.take(("devices/denied/x", b"1", "denied"), ("devices/allowed/x", b"2", "allowed"))
        wait_until(lambda: consumer.messages)
        wait_until(lambda: site.report()["refused"] == 1)
        report = site.report()
        assert [m.payload for m in consumer.messages] == [b"2"]
        assert report["set_aside"] == 1
        wait_until(lambda: site.report()["spool_messages"] == 1)
        assert "site/gw-1/devices/denied/x" in report["last_refusal"]
        assert report["state"] == "connected"


def test_a_message_that_is_larger_than_an_mqtt_5_upstream_takes_stays(
    tmp_path: Path, pki: Pki, gateway_identity: Credential, consumer_identity: Credential
) -> None:
    """It is not sent, or the upstream would end the connection at it for ever."""
    with (
        mosquitto(tmp_path / "up", pki, options="max_packet_size 2000\n") as upstream,
        Consumer(upstream.port, pki, consumer_identity, mqtt5=True) as consumer,
        Site(tmp_path, pki, gateway_identity, upstream.port, envelope=Envelope.MQTT5) as site,
    ):
        site.take(("devices/a/x", b"x" * 3000, "a"), ("devices/a/x", b"2", "a"))
        wait_until(lambda: consumer.messages)
        wait_until(lambda: site.report()["refused"] == 1)
        wait_until(lambda: site.report()["spool_messages"] == 1)
        assert site.report()["connections"] == 1
        site.take(("devices/a/fast", b"x" * 3000, "a"), qos=0)
        report = site.report()
        assert (report["refused"], "devices/a/fast: it takes no" in report["last_refusal"]) == (2, True)


def test_a_message_at_which_every_connection_ends_does_not_hold_the_others_up(
    tmp_path: Path, pki: Pki, gateway_identity: Credential
) -> None:
    """MQTT 3.1.1 has no other way to refuse: the message stays, set aside, and the others arrive."""
    arrived: list[bytes] = []

    def answer(tls: socket.socket) -> None:
        tls.sendall(CONNACK)
        data = b""
        while more := tls.recv(65536):
            data += more
            while (header := packets.fixed_header(data, 0)) is not None and header[2] <= len(data):
                first, body, stop = header
                if first >> 4 == packets.PacketType.PUBLISH:
                    publish = packets.decode_publish(first, data[body:stop])
                    if b"poison" in publish.payload:
                        return
                    arrived.append(publish.payload)
                    tls.sendall(packets.encode_ack(packets.PacketType.PUBACK, publish.packet_id))
                data = data[stop:]

    with (
        upstream_that(pki, answer) as port,
        Site(tmp_path, pki, gateway_identity, port, envelope=Envelope.NONE) as site,
    ):
        site.take(("devices/a/x", b"poison", "a"), *(("devices/a/x", str(n).encode(), "a") for n in range(50)))
        wait_until(lambda: set(arrived) == {str(n).encode() for n in range(50)})
        wait_until(lambda: site.report()["spool_messages"] == 1)
        report = site.report()
        assert report["set_aside"] == report["refused"] == 1
        assert "in a row" in report["last_refusal"]
