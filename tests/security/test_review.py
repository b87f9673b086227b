"""What one valid certificate could do to the gateway and to others, found by reading; each fault once, with its twin."""

from __future__ import annotations

import gc
from collections.abc import Callable

from gateway.broker import packets
from gateway.broker.connection import Connection
from tests.support.gateway import DEVICE_POLICY, Gateway, wait_until

Maker = Callable[..., Gateway]


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
