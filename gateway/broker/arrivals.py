"""Connections between certificate and CONNECT: their deadline, and how many one identity may have there.

Who has one valid certificate can make handshakes as fast as the gateway can, and say nothing. Each such connection
holds a place for some seconds; so one identity gets an eighth of all places for them, and the others stay for others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.broker.wheel import Wheel

if TYPE_CHECKING:
    from gateway.broker.connection import Connection
    from mtls.identity import DeviceId

SHARE = 8  # one part in this many of max_connections
ALWAYS = 16  # and never fewer than these


class Arrivals:
    """Connections whose CONNECT is not answered yet."""

    def __init__(self) -> None:
        self._wheel: Wheel[Connection] = Wheel()
        self._by_identity: dict[DeviceId, set[Connection]] = {}

    def are_full(self, identity: DeviceId, max_connections: int) -> bool:
        """Whether an identity has its share of places already."""
        return len(self._by_identity.get(identity, ())) >= max(ALWAYS, max_connections // SHARE)

    def add(self, connection: Connection, due: int) -> None:
        """Wait for CONNECT until the tick `due`."""
        self._wheel.add(connection, due)
        self._by_identity.setdefault(connection.peer.id, set()).add(connection)

    def discard(self, connection: Connection) -> None:
        """Its CONNECT is answered, or it is gone."""
        self._wheel.discard(connection)
        waiting = self._by_identity.get(connection.peer.id)
        if waiting is not None:
            waiting.discard(connection)
            if not waiting:
                del self._by_identity[connection.peer.id]

    def overdue(self, tick: int) -> list[Connection]:
        """Connections that have had their time at exactly `tick`."""
        return self._wheel.pop(tick)
