"""Limits on what one client can make the gateway hold or do; others are served all the while."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from gateway.broker import shares
from gateway.broker.packets import encode_publish
from tests.support.gateway import DEVICE_POLICY, Gateway, wait_until

Maker = Callable[..., Gateway]


def limited(limits: str) -> str:
    """The usual policy with other limits for devices."""
    return DEVICE_POLICY.replace("limits = { max_sessions = 1 }", f"limits = {{ {limits} }}")


def test_publish_rate_slows_the_reading_and_drops_nothing(make_gateway: Maker) -> None:
    """35 messages at 20 per second, of which 20 may come at once: all arrive; another device is not slowed."""
    gateway = make_gateway(limited("publish_rate = 20"))
    backend = gateway.connected("backend")
    assert backend.subscribe(("devices/dev-a/#", 0), ("devices/dev-b/#", 0)) == [0, 0]
    fast, other = gateway.connected("dev-a"), gateway.connected("dev-b")
    started = time.monotonic()
    for number in range(35):
        fast.publish("devices/dev-a/t", bytes((number,)))
        assert backend.expect_publish().payload == bytes((number,))
    assert time.monotonic() - started > 0.6
    fast.publish("devices/dev-a/t", b"held back")
    other.publish("devices/dev-b/t", b"other")
    assert [backend.expect_publish().payload for _ in range(2)] == [b"other", b"held back"]
    fast.ping()
    assert gateway.audit("disconnected") == []


def test_without_a_publish_rate_nothing_is_slowed(make_gateway: Maker) -> None:
    """The allow twin: no rate limit unless configured."""
    gateway = make_gateway()
    backend = gateway.connected("backend")
    assert backend.subscribe(("devices/#", 0)) == [0]
    device = gateway.connected("dev-a")
    device.send(encode_publish(b"devices/dev-a/t", b"x", 0, False, False, 0) * 2000)
    for _ in range(2000):
        backend.expect_publish()


def test_a_packet_above_the_roles_size_ends_the_connection(make_gateway: Maker) -> None:
    """`max_packet_bytes` of the role; a packet of exactly the limit passes."""
    gateway = make_gateway(limited("max_packet_bytes = 1000"))
    device = gateway.connected("dev-a")
    assert device.subscribe(("devices/dev-a/#", 0)) == [0]
    size = 1000 - 2 - len("devices/dev-a/t")
    device.publish("devices/dev-a/t", b"x" * size)
    assert len(device.expect_publish().payload) == size
    device.publish("devices/dev-a/t", b"x" * (size + 1))
    assert device.expect_closed() == []
    (line,) = gateway.audit("disconnected")
    assert line["reason"] == "packet_too_large"
    gateway.connected("backend").publish("devices/dev-a/t", b"x" * 5000)


def test_subscriptions_per_session_are_bounded(make_gateway: Maker) -> None:
    """Beyond the bound 0x80; replacing one of them is still allowed, and room made is used."""
    gateway = make_gateway(limits={"max_subscriptions_per_session": 2})
    device = gateway.connected("dev-a")
    filters = [(f"devices/dev-a/{n}", 1) for n in range(3)]
    assert device.subscribe(*filters) == [1, 1, 0x80]
    assert device.subscribe(("devices/dev-a/0", 0)) == [0]
    device.send(b"\xa2\x13\x00\x05\x00\x0fdevices/dev-a/1")
    assert device.read() == (0xB0, b"\x00\x05")
    assert device.subscribe(filters[2]) == [1]


@pytest.mark.parametrize("levels", [8, 9])
def test_topic_levels_are_bounded(make_gateway: Maker, levels: int) -> None:
    """A topic of the limit is routed, one level more is a denied publish and a refused filter."""
    gateway = make_gateway(limits={"max_topic_levels": 8})
    topic = "/".join(["devices", "dev-a", *(["x"] * (levels - 2))])
    device = gateway.connected("dev-a")
    allowed = levels <= 8
    assert device.subscribe((topic, 0), ("devices/dev-a/#", 0)) == [0 if allowed else 0x80, 0]
    device.publish(topic, qos=1)
    expected = {0x40, 0x30} if allowed else {0x40}
    assert {device.read()[0] for _ in expected} == expected
    device.ping()


def test_retained_bytes_are_bounded(make_gateway: Maker) -> None:
    """A retained message beyond its writer's share is delivered, not kept, and counted; removing one makes room."""
    gateway = make_gateway(limits={"retained_max_bytes": 4 * 3 * 1500})
    backend = gateway.connected("backend")
    assert backend.subscribe(("devices/#", 0)) == [0]
    for number in range(4):
        backend.publish(f"devices/{number}", b"x" * 900, retain=True)
        assert backend.expect_publish().topic == f"devices/{number}"
    status = gateway.status()
    assert (status["retained"], status["retained_refused"]) == (3, 1)
    backend.publish("devices/0", b"", retain=True)
    backend.publish("devices/3", b"x" * 900, retain=True)
    backend.expect_publish()
    backend.expect_publish()
    assert gateway.status()["retained"] == 3


def test_one_identity_cannot_keep_the_others_from_retaining(make_gateway: Maker) -> None:
    """It retains as much as it is let; its neighbour's state is retained all the same."""
    gateway = make_gateway(limits={"retained_max_bytes": 40_000})
    greedy, neighbour = gateway.connected("backend"), gateway.connected("dev-b")
    for number in range(60):
        greedy.publish(f"devices/{number}", b"x" * 900, retain=True)
    greedy.ping()
    kept = gateway.status()["retained"]
    assert 0 < kept < 10
    neighbour.publish("devices/dev-b/state", b"up", retain=True)
    neighbour.ping()
    assert gateway.status()["retained"] == kept + 1


@pytest.mark.parametrize(("policy", "kept"), [("drop-oldest", [5, 6, 7]), ("drop-newest", [0, 1, 2])])
def test_a_full_queue_follows_queue_full(make_gateway: Maker, policy: str, kept: list[int]) -> None:
    """Three of eight messages for an offline device are kept; the publisher is acknowledged throughout."""
    gateway = make_gateway(limited(f'queue_messages = 3, queue_full = "{policy}"'))
    device = gateway.connected("dev-a", clean=False)
    assert device.subscribe(("devices/dev-a/#", 1)) == [1]
    device.disconnect()
    wait_until(lambda: not gateway.sessions()["dev-a"]["connected"], "offline")
    backend = gateway.connected("backend")
    for number in range(8):
        backend.publish("devices/dev-a/c", bytes((number,)), qos=1, packet_id=number + 1)
        assert backend.read() == (0x40, (number + 1).to_bytes(2))
    assert gateway.sessions()["dev-a"]["dropped"] == 5
    assert [line["reason"] for line in gateway.audit("denied")] == ["queue_full"]
    again = gateway.client("dev-a")
    assert again.connect("dev-a", clean=False) == (True, 0)
    assert [again.expect_publish().payload[0] for _ in kept] == kept


SEVERAL = DEVICE_POLICY.replace("version = 1", 'version = 1\n[identity]\nclient_id = ["{id}", "{id}:*"]').replace(
    "max_sessions = 1", 'queue_full = "%s"'
)


@pytest.mark.parametrize("policy", ["drop-oldest", "drop-newest"])
def test_one_identity_cannot_hold_a_full_queue_for_each_of_many_sessions(
    make_gateway: Maker, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is filled before the next begins; they come to twice their share at most, and a neighbour's is its own."""
    monkeypatch.setattr(shares, "MAX_QUEUED_BYTES", 1_000_000)
    gateway = make_gateway(SEVERAL % policy)
    backend = gateway.connected("backend")
    owners = [f"dev-a:{number}" for number in range(15)] + ["dev-b:0"]
    for client_id in owners:
        device, topic = client_id[:5], f"devices/{client_id.replace(':', '/')}"
        client = gateway.connected(device, client_id, clean=False)
        assert client.subscribe((topic, 1)) == [1]
        client.disconnect()
        for packet_id in range(1, 51):
            backend.publish(topic, bytes(20_000), 1, packet_id=packet_id)
        backend.ping_after_acks(50)
    sessions = gateway.sessions()
    held = [sessions[client_id]["queued"] for client_id in owners]
    assert [sessions[client_id]["dropped"] for client_id in owners] == [50 - queued for queued in held]
    assert held.pop() == 49
    assert held[0] == 49
    assert all(held[:4])
    assert 95 <= sum(held) <= 98


def test_one_identity_cannot_leave_a_window_in_flight_for_each_of_many_sessions(
    make_gateway: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not acknowledged stays owed, until it is too much: the oldest are forgotten, a neighbour's is kept."""
    monkeypatch.setattr(shares, "MAX_QUEUED_BYTES", 1_000_000)
    gateway = make_gateway(SEVERAL % "drop-oldest")
    backend = gateway.connected("backend")
    owners = ["dev-b:0"] + [f"dev-a:{number}" for number in range(8)]
    for client_id in owners:
        topic = f"devices/{client_id.replace(':', '/')}"
        client = gateway.connected(client_id[:5], client_id, clean=False)
        assert client.subscribe((topic, 1)) == [1]
        for packet_id in range(1, 21):
            backend.publish(topic, bytes(40_000), 1, packet_id=packet_id)
        backend.ping_after_acks(20)
        for _ in range(20):
            client.expect_publish()
        client.close()
        wait_until(lambda name=client_id: not gateway.sessions()[name]["connected"], "offline")
    kept = [(name, gateway.sessions()[name]["inflight"]) for name in owners if name in gateway.sessions()]
    assert kept == [("dev-b:0", 20), ("dev-a:5", 20), ("dev-a:6", 20), ("dev-a:7", 20)]
    again = gateway.client("dev-a")
    assert again.connect("dev-a:5", clean=False) == (True, 0)
    assert again.expect_publish().dup


LONG = "devices/{}/{}/{}\U0001f600/+"  # one such character, and Python keeps four bytes for each of the others


def test_subscriptions_of_one_identity_are_bounded_in_bytes(make_gateway: Maker) -> None:
    """A hundred of the longest filters would cost 50 MiB a session; its neighbour's usual ones are granted."""
    gateway = make_gateway(SEVERAL % "drop-oldest")
    codes = []
    for session in range(2):
        device = gateway.connected("dev-a", f"dev-a:{session}")
        for number in range(20):
            codes += device.subscribe((LONG.format("dev-a", number, "x" * 65_000), 1))
    assert codes == [1] * 4 + [0x80] * 36
    assert {line["reason"] for line in gateway.audit("denied")} == {"subscribe_denied"}
    neighbour = gateway.connected("dev-b")
    assert neighbour.subscribe(*((f"devices/dev-b/{n}/state/+", 1) for n in range(100))) == [1] * 100
    gateway.connected("dev-a", "dev-a:0")  # takes over with a clean session: what it had makes room
    again = gateway.connected("dev-a", "dev-a:2")
    assert again.subscribe((LONG.format("dev-a", "again", "x" * 65_000), 1)) == [1]


def test_stored_sessions_end_after_the_expiry(make_gateway: Maker) -> None:
    """A session without a connection is forgotten; one that is connected stays."""
    gateway = make_gateway(limits={"session_expiry_s": 1})
    staying = gateway.connected("dev-b", clean=False)
    gateway.connected("dev-a", clean=False).disconnect()
    wait_until(lambda: list(gateway.sessions()) == ["dev-b"], "expiry")
    staying.ping()


def test_a_subscribe_with_more_filters_than_a_session_may_have_is_not_judged_filter_by_filter(
    make_gateway: Maker,
) -> None:
    """The first ones are judged, the rest refused with one audit line; every filter has its return code."""
    gateway = make_gateway(limits={"max_subscriptions_per_session": 2})
    device = gateway.connected("dev-a")
    codes = device.subscribe(*((f"devices/dev-b/{n}", 0) for n in range(2000)))
    assert codes == [0x80] * 2000
    assert [line["topic"] for line in gateway.audit("denied")] == [
        "devices/dev-b/0",
        "devices/dev-b/1",
        "1998 more filters",
    ]
