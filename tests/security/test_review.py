"""What one valid certificate could do to the gateway and to others, found by reading; each fault with its twin."""

from __future__ import annotations

import errno
import gc
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from gateway.broker import packets
from gateway.broker.connection import Connection
from mtls.errors import Reason
from tests.support.gateway import DEADLINE_S, DEVICE_POLICY, Gateway, wait_until
from tests.support.pki import Pki

Maker = Callable[..., Gateway]


def most_waiting(gateway: Gateway, work: Callable[[], None]) -> int:
    """The most bytes that waited to be written to one connection after any flush, while `work` was done."""
    plane, most = gateway.broker.plane, [0]
    write_out = plane.write_out

    def watch(connection: Connection) -> None:
        waiting = sum(map(len, connection.outbox))
        write_out(connection)
        most[0] = max(most[0], waiting, connection.wire.get_write_buffer_size())

    plane.write_out = watch  # type: ignore[method-assign]
    work()
    return most[0]


def connections_in_memory() -> int:
    """Connection objects that something still holds."""
    gc.collect()
    return sum(isinstance(thing, Connection) for thing in gc.get_objects())


def test_closed_connections_with_a_long_keep_alive_are_forgotten_at_once(gateway: Gateway) -> None:
    """20 connections with a keep alive of 18 hours, closed: none is held, with its TLS buffers, until that is over."""
    before = connections_in_memory()
    for _ in range(20):
        gateway.connected("dev-b", keep_alive_s=65535).disconnect()
    wait_until(lambda: connections_in_memory() <= before, "closed connections let go")
    gateway.connected("dev-a", keep_alive_s=65535).ping()


def test_a_throttled_connection_is_forgotten_when_it_closes(make_gateway: Maker) -> None:
    """Hours of waiting that a publisher has run up do not hold its closed connections."""
    gateway = make_gateway(DEVICE_POLICY.replace("max_sessions = 1", "publish_rate = 1"))
    before = connections_in_memory()
    for _ in range(5):
        device = gateway.connected("dev-b")
        device.send(packets.encode_publish(b"a", b"", 0, False, False, 0) * 5000)
        wait_until(lambda: gateway.call(lambda: any(c.throttled for c in gateway.broker.plane.live)), "throttled")
    gateway.connected("dev-b").disconnect()
    wait_until(lambda: connections_in_memory() <= before, "closed connections let go")


def test_subscribing_again_and_again_does_not_multiply_a_retained_message(gateway: Gateway) -> None:
    """400 SUBSCRIBEs in one write, to a retained message of 200 kB: answered, and not 400 times in memory."""
    device = gateway.connected("dev-b")
    device.publish("devices/dev-b/state", b"x" * 200_000, retain=True)
    device.ping()
    subscribe = packets.encode_subscribe(1, [("devices/dev-b/state", 0)])

    def attack() -> None:
        device.send(subscribe * 400 + packets.PINGREQ)
        received: list[int] = []
        while 0xD0 not in received:
            received.append(device.read()[0])
        assert received.count(0x90) == 400
        assert received.count(0x31) <= 20

    assert most_waiting(gateway, attack) < 1_000_000


def test_a_retained_message_set_after_subscribe_in_the_same_write_is_delivered_once(gateway: Gateway) -> None:
    """SUBSCRIBE and a retained PUBLISH in one write: the message comes live, and not as retained once more."""
    device = gateway.connected("dev-b")
    device.send(
        packets.encode_subscribe(1, [("devices/dev-b/#", 0)])
        + packets.encode_publish(b"devices/dev-b/state", b"new", 0, True, False, 0)
    )
    assert device.read()[0] == 0x90
    assert not device.expect_publish().retain
    device.ping()


def test_small_retained_messages_count_for_what_they_cost(make_gateway: Maker) -> None:
    """Messages of one byte fill a writer's share of 100 kB long before there are 10,000 of them."""
    gateway = make_gateway(limits={"retained_max_bytes": 400_000})
    backend = gateway.connected("backend")
    for number in range(300):
        backend.publish(f"devices/{number}", b"1", retain=True)
    backend.ping()
    assert 100 < gateway.status()["retained"] < 200


def test_a_peer_that_asks_and_never_reads_costs_bounded_memory(gateway: Gateway) -> None:
    """QoS 1 messages without end and nobody reads the acknowledgements: reading stops, and goes on when they are."""
    device = gateway.connected("dev-b", keep_alive_s=0)
    message = packets.encode_publish(b"devices/dev-b/t", b"", 1, False, False, 1)
    connection = gateway.call(lambda: next(iter(gateway.broker.plane.live)))
    batch, sent, unsent = message * 200, 0, False

    def attack() -> None:
        nonlocal sent, unsent
        device.socket.setblocking(False)
        while not connection.choked:
            try:
                device.socket.send(batch)
                sent, unsent = sent + 200, False
            except ssl.SSLWantWriteError:  # the gateway may stop reading at any moment: this batch is to be tried again
                unsent = True
            assert sent < 10_000_000

    assert most_waiting(gateway, attack) < 2_000_000
    device.socket.settimeout(DEADLINE_S)
    for _ in range(sent):
        assert device.read()[0] == 0x40
    if unsent:
        device.socket.send(batch)
        assert [device.read()[0] for _ in range(200)] == [0x40] * 200
    device.ping()
    assert not connection.choked


def test_a_flood_of_new_topics_lets_others_have_their_turn(gateway: Gateway) -> None:
    """5,000 topics never seen before in one read: the first few are judged, then others; none is lost."""
    device = gateway.connected("dev-b")
    flood = b"".join(packets.encode_publish(b"devices/dev-b/%d" % n, b"", 0, False, False, 0) for n in range(5000))
    plane = gateway.broker.plane

    def one_read() -> int:
        plane.received(next(iter(plane.live)), flood)
        return plane.messages_in

    assert gateway.call(one_read) <= 100
    wait_until(lambda: plane.messages_in == 5000, "the rest")
    device.ping()


TWO_JOBS = """
version = 1
[[role]]
name = "reader of everything"
match = { ou = "audit" }
subscribe = ["devices/#"]
[[role]]
name = "device"
match = { id = "*" }
subscribe = ["devices/{id}/#"]
receive = ["devices/#"]
publish = ["devices/{id}/#"]
"""


@pytest.mark.parametrize(("renewed_ou", "kept"), [("audit", True), ("line", False)])
def test_a_resumed_session_keeps_no_subscription_that_the_renewed_certificate_does_not_cover(
    make_gateway: Maker, pki: Pki, renewed_ou: str, kept: bool
) -> None:
    """Subscribed as an auditor, back with a certificate for the line: the wide subscription is gone."""
    gateway = make_gateway(TWO_JOBS)
    auditor = gateway.client(pki.device("dev-a", ou="audit"))
    assert auditor.connect("dev-a", clean=False)[1] == 0
    assert auditor.subscribe(("devices/#", 1)) == [1]
    auditor.disconnect()
    wait_until(lambda: not gateway.sessions()["dev-a"]["connected"], "offline")
    again = gateway.client(pki.device("dev-a", ou=renewed_ou))
    assert again.connect("dev-a", clean=False) == (True, 0)
    gateway.connected("dev-b").publish("devices/dev-b/t", qos=1)
    if kept:
        assert again.expect_publish().topic == "devices/dev-b/t"
    else:
        wait_until(lambda: gateway.status()["messages_in"], "published")
        again.ping()


@pytest.mark.parametrize("connected", [True, False])
def test_a_reload_that_reads_another_name_from_a_certificate_ends_its_connection(
    make_gateway: Maker, tmp_path: Path, connected: bool
) -> None:
    """The identity rule changes from CN to SAN while a certificate with both is connected, before CONNECT or after."""
    pki = Pki(tmp_path / "two names")
    by_name = DEVICE_POLICY.replace("version = 1", 'version = 1\n[identity]\nclient_id = ["*"]\n', 1)
    gateway = make_gateway(by_name, pki=pki)
    client = gateway.client(pki.raw_leaf(cn="dev-a", san=[x509.DNSName("dev-b")]))
    if connected:
        assert client.connect("anything", clean=False)[1] == 0
    else:
        wait_until(lambda: gateway.call(lambda: len(gateway.broker.plane.live)), "opened")
    gateway.policy_file.write_text(by_name.replace("[identity]", '[identity]\nsource = "san-dns"'))
    report = gateway.reload()
    assert [(name, refusal.reason) for name, refusal in report.closed] == [("dev-a", Reason.IDENTITY_CONFLICT)]
    client.expect_closed()
    assert gateway.sessions() == {}


def test_a_will_fired_by_a_revocation_goes_to_nobody_who_lost_the_right_in_the_same_reload(
    make_gateway: Maker, tmp_path: Path
) -> None:
    """One reload denies the sender and takes the readers' rights: the will reaches the one who kept it."""
    deny = tmp_path / "deny.toml"
    deny.write_text("")
    policy = """
version = 1
[[role]]
name = "sender"
match = { id = "dev-z" }
will = ["news"]
will_on_revoke = "fire"
[[role]]
name = "reader"
match = { id = "reader*" }
subscribe = ["news", "other"]
"""
    gateway = make_gateway(policy, listener={"deny_file": str(deny)})
    will = packets.Will("news", b"gone", 0, False)
    sender = gateway.connected("dev-z", will=will)
    loser, keeper = gateway.connected("reader-a"), gateway.connected("reader-b")
    assert loser.subscribe(("news", 0)) == keeper.subscribe(("news", 0)) == [0]
    deny.write_text('ids = ["dev-z"]')
    gateway.policy_file.write_text(
        policy
        + """
[[role]]
name = "no news"
match = { id = "reader-a" }
deny = [{ action = "receive", topic = "news" }]
"""
    )
    gateway.reload()
    sender.expect_closed()
    assert keeper.expect_publish().payload == b"gone"
    loser.ping()


def test_one_identity_cannot_hold_every_place_with_connections_that_say_nothing(make_gateway: Maker) -> None:
    """30 silent TLS connections of one device against 50 places: it gets 16 of them, another device is served."""
    gateway = make_gateway(limits={"max_connections": 50})
    silent = [gateway.client("dev-b") for _ in range(30)]
    wait_until(lambda: gateway.status()["connections"] == 16, "the share")
    assert {line["reason"] for line in gateway.audit("refused")} == {"too_many_connections"}
    gateway.connected("dev-a").ping()
    for client in silent:
        client.close()
    wait_until(lambda: gateway.status()["connections"] == 1, "places given back")
    gateway.connected("dev-b").ping()


def test_without_descriptors_the_listener_pauses_instead_of_spinning(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accept() fails for want of descriptors: one try a second; when there are some again, clients are served."""
    tries: list[int] = []

    class Exhausted(socket.socket):
        def accept(self) -> Any:
            tries.append(1)
            raise OSError(errno.EMFILE, "too many open files")

    listener, exhausted = gateway.broker._listener, Exhausted()
    accept, out_of_descriptors = listener._accept, [True]
    gateway.call(listener._unwatch)
    monkeypatch.setattr(listener, "_accept", lambda sock: accept(exhausted if out_of_descriptors else sock))
    gateway.call(listener._watch)
    with socket.create_connection(("127.0.0.1", gateway.port)):
        wait_until(lambda: len(tries) >= 2, "a second try")
        assert len(tries) <= 3
        out_of_descriptors.clear()
    gateway.connected("dev-a").ping()
    exhausted.close()
