"""Traps P1-P7 and Q2: what a device may say, hear and leave behind, seen from outside."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from gateway.broker.packets import Will, encode_publish
from tests.support.gateway import DEVICE_POLICY, Gateway, wait_until

Maker = Callable[..., Gateway]


def denials(gateway: Gateway) -> list[tuple[str, str]]:
    return [(line["reason"], line["topic"]) for line in gateway.audit("denied")]


@pytest.mark.parametrize(
    ("topic", "retain"),
    [("devices/dev-b/state", False), ("devices/dev-a/telemetry", False), ("broadcast/x", True), ("$SYS/x", False)],
)
def test_p1_a_will_outside_the_own_will_grants_is_refused_at_connect(
    gateway: Gateway, topic: str, retain: bool
) -> None:
    """Code 5, no session, nothing retained, nothing delivered, one audit line."""
    backend = gateway.connected("backend")
    assert backend.subscribe(("devices/#", 0), ("broadcast/#", 0)) == [0, 0]
    client = gateway.client("dev-a")
    assert client.connect("dev-a", will=Will(topic, b"boo", 0, retain)) == (False, 5)
    assert client.expect_closed() == []
    backend.ping()
    assert list(gateway.sessions()) == ["backend"]
    assert gateway.status()["retained"] == 0
    assert [line["reason"] for line in gateway.audit("refused")] == ["will_refused"]


def test_p1_the_own_will_is_published_when_the_device_vanishes(gateway: Gateway) -> None:
    """The allow twin, retained."""
    backend = gateway.connected("backend")
    assert backend.subscribe(("devices/#", 0)) == [0]
    client = gateway.connected("dev-a", will=Will("devices/dev-a/state", b"gone", 0, True))
    client.close()
    assert backend.expect_publish().payload == b"gone"
    assert gateway.status()["retained"] == 1


def test_an_orderly_disconnect_drops_the_will(gateway: Gateway) -> None:
    """DISCONNECT discards the will message [MQTT-3.14.4-3]."""
    backend = gateway.connected("backend")
    assert backend.subscribe(("devices/#", 0)) == [0]
    client = gateway.connected("dev-a", will=Will("devices/dev-a/state", b"gone", 0, False))
    client.disconnect()
    wait_until(lambda: list(gateway.sessions()) == ["backend"], "device gone")
    backend.ping()


def test_p2_retained_messages_go_to_the_subscriber_and_to_nobody_else(gateway: Gateway) -> None:
    """A device that connects, subscribed or not, gets nothing that another subscribed to."""
    backend = gateway.connected("backend")
    backend.publish("devices/dev-a/state", b"kept", retain=True)
    assert backend.subscribe(("devices/#", 0)) == [0]
    assert backend.expect_publish().retain
    stranger = gateway.connected("dev-b")
    assert stranger.subscribe(("devices/dev-b/#", 0)) == [0]
    stranger.ping()


@pytest.mark.parametrize(
    "topic_filter",
    ["#", "+/+/#", "devices/+/state", "devices/#", "$SYS/#", "+/x", "devices/dev-b/#", "$share/g/devices/dev-a/#"],
)
def test_p3_a_filter_wider_than_one_grant_gets_0x80(gateway: Gateway, topic_filter: str) -> None:
    """Refused with SUBACK 0x80 and one audit line, never a silent OK; nothing is delivered."""
    device = gateway.connected("dev-a")
    assert device.subscribe((topic_filter, 1)) == [0x80]
    backend = gateway.connected("backend")
    backend.publish("devices/dev-b/state")
    backend.ping()
    device.ping()
    assert denials(gateway) == [("subscribe_denied", topic_filter)]
    assert gateway.sessions()["dev-a"]["subscriptions"] == 0


@pytest.mark.parametrize("topic_filter", ["devices/dev-a/#", "devices/dev-a/+/x", "broadcast/#", "broadcast"])
def test_p3_a_filter_within_one_grant_is_granted(gateway: Gateway, topic_filter: str) -> None:
    """The allow twin."""
    assert gateway.connected("dev-a").subscribe((topic_filter, 1)) == [1]


@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("published", [0, 1, 2])
def test_p4_delivered_qos_is_the_lower_of_published_and_granted(gateway: Gateway, published: int, granted: int) -> None:
    """For every pair of published and granted QoS."""
    device = gateway.connected("dev-a")
    assert device.subscribe(("devices/dev-a/cmd", granted)) == [granted]
    backend = gateway.connected("backend")
    backend.publish("devices/dev-a/cmd", qos=published, packet_id=3)
    assert device.expect_publish().qos == min(published, granted)


def test_cve_2017_7650_wildcards_as_a_name_are_refused(gateway: Gateway) -> None:
    """A certificate named + or # is nobody."""
    for name in ("+", "#"):
        client = gateway.client(gateway.pki.raw_leaf(cn=name))
        assert client.expect_closed() == []
    assert {line["reason"] for line in gateway.audit("refused")} == {"identity_malformed"}
    assert gateway.sessions() == {}


def test_cve_2018_12546_a_retained_message_is_judged_by_the_receivers_rights_of_now(make_gateway: Maker) -> None:
    """A device that lost the right to a topic does not get its retained message."""
    gateway = make_gateway()
    backend = gateway.connected("backend")
    backend.publish("broadcast/notice", b"old", retain=True)
    device = gateway.connected("dev-a")
    assert device.subscribe(("broadcast/#", 0)) == [0]
    assert device.expect_publish().payload == b"old"
    gateway.policy_file.write_text(DEVICE_POLICY.replace(', "broadcast/#"]\nlimits', "]\nlimits"))
    gateway.reload()
    assert device.subscribe(("broadcast/#", 0), packet_id=2) == [0x80]
    device.ping()


def test_cve_2021_34434_a_subscription_does_not_outlive_the_right(make_gateway: Maker) -> None:
    """After the reload that takes the right, a live subscription delivers nothing and is gone."""
    gateway = make_gateway()
    device = gateway.connected("dev-a")
    assert device.subscribe(("broadcast/#", 0), ("devices/dev-a/#", 0)) == [0, 0]
    gateway.policy_file.write_text(DEVICE_POLICY.replace(', "broadcast/#"]\nlimits', "]\nlimits"))
    gateway.reload()
    backend = gateway.connected("backend")
    backend.publish("broadcast/x")
    backend.publish("devices/dev-a/cmd", b"still")
    assert device.expect_publish().payload == b"still"
    assert gateway.sessions()["dev-a"]["subscriptions"] == 1


def test_p7_publish_with_a_wildcard_or_bad_text_closes_the_connection(gateway: Gateway) -> None:
    """Closed, not left as a zombie; nothing is delivered."""
    backend = gateway.connected("backend")
    assert backend.subscribe(("devices/#", 0)) == [0]
    for raw in (b"devices/+/x", b"devices/#", b"", b"devices/\xff", b"devices/\x00", b"devices/\xed\xa0\x80"):
        device = gateway.connected("dev-a")
        device.send(encode_publish(raw, b"x", 0, False, False, 0))
        assert device.expect_closed() == []
    backend.ping()
    assert {line["reason"] for line in gateway.audit("disconnected")} == {"protocol_error"}


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("topic", ["$SYS/broker/x", "devices/dev-b/x", "broadcast/x"])
def test_p7_a_publish_without_a_grant_is_dropped_and_acknowledged(gateway: Gateway, topic: str, qos: int) -> None:
    """Dropped, acknowledged at its QoS [MQTT-3.3.5-2], one audit line, nothing retained; the connection lives."""
    backend = gateway.connected("backend")
    assert backend.subscribe(("devices/#", 0), ("broadcast/#", 0)) == [0, 0]
    device = gateway.connected("dev-a")
    device.publish(topic, qos=qos, retain=True, packet_id=9)
    if qos:
        assert device.read() == (0x40 if qos == 1 else 0x50, b"\x00\x09")
    if qos == 2:
        device.send(b"\x62\x02\x00\x09")
        assert device.read() == (0x70, b"\x00\x09")
    device.ping()
    backend.ping()
    assert denials(gateway) == [("retain_denied", topic)]
    assert gateway.status()["retained"] == 0


def test_a_role_can_disconnect_on_a_denied_publish(make_gateway: Maker) -> None:
    """`on_denied_publish = "disconnect"` ends the connection without an acknowledgement."""
    policy = DEVICE_POLICY.replace("limits = {", 'on_denied_publish = "disconnect"\nlimits = {')
    gateway = make_gateway(policy)
    device = gateway.connected("dev-a")
    device.publish("devices/dev-b/x", qos=1)
    assert device.expect_closed() == []


def test_q2_a_silent_subscriber_costs_a_bounded_queue(make_gateway: Maker) -> None:
    """A subscriber that stops reading: memory stays bounded, others are served, drops are counted."""
    gateway = make_gateway()
    slow = gateway.connected("dev-a", keep_alive_s=0)
    assert slow.subscribe(("broadcast/#", 0), ("devices/dev-a/#", 1)) == [0, 1]
    brisk = gateway.connected("dev-b")
    assert brisk.subscribe(("devices/dev-b/#", 0)) == [0]
    backend = gateway.connected("backend", keep_alive_s=0)
    process = psutil.Process()
    payload = b"x" * 50_000
    before = process.memory_info().rss
    for number in range(2000):
        backend.publish("broadcast/flood", payload)
        backend.publish("devices/dev-a/flood", payload, qos=1, packet_id=number + 1)
        assert backend.read() == (0x40, (number + 1).to_bytes(2))
    grown = process.memory_info().rss - before
    assert grown < 60 * 1024 * 1024, f"{grown >> 20} MiB for 200 MB published to a silent subscriber"
    backend.publish("devices/dev-b/cmd", b"brisk")
    assert brisk.expect_publish(2).payload == b"brisk"
    assert gateway.sessions()["dev-a"]["dropped"] > 0
