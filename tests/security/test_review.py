"""What one valid certificate could do to the gateway and to others, found by reading; each fault with its twin."""

from __future__ import annotations

import gc
from collections.abc import Callable

from gateway.broker import packets
from gateway.broker.connection import Connection
from tests.support.gateway import DEVICE_POLICY, Gateway, wait_until

Maker = Callable[..., Gateway]


def most_waiting(gateway: Gateway, work: Callable[[], None]) -> int:
    """The most bytes that waited to be written to one connection after any flush, while `work` was done."""
    plane, most = gateway.broker.plane, [0]
    write_out = plane._write_out

    def watch(connection: Connection) -> None:
        waiting = sum(map(len, connection.outbox))
        write_out(connection)
        most[0] = max(most[0], waiting, connection.wire.get_write_buffer_size())

    plane._write_out = watch  # type: ignore[method-assign]
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
    """400 SUBSCRIBEs in one write, to a retained message of 200 kB: it is sent, and not 400 times into memory."""
    device = gateway.connected("dev-b")
    device.publish("devices/dev-b/state", b"x" * 200_000, retain=True)
    device.ping()
    subscribe = packets.encode_subscribe(1, [("devices/dev-b/state", 0)])

    def attack() -> None:
        device.send(subscribe * 400 + packets.PINGREQ)
        received = [device.read()[0] for _ in range(402)]
        assert received.count(0x90) == 400
        assert received.count(0x31) >= 1

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
    """Messages of one byte fill a bound of 100 kB long before there are 10,000 of them."""
    gateway = make_gateway(limits={"retained_max_bytes": 100_000})
    backend = gateway.connected("backend")
    for number in range(300):
        backend.publish(f"devices/{number}", b"1", retain=True)
    backend.ping()
    assert 100 < gateway.status()["retained"] < 200
