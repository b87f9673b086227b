"""The end of a connection: recorded, its session released, last bytes out, its will fired unless the right is gone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from amqtt.events import BrokerEvents

from gateway.broker import wills

if TYPE_CHECKING:
    from gateway.broker.connection import Connection
    from gateway.broker.plane import DataPlane


def leave(plane: DataPlane, connection: Connection) -> None:
    """Take a connection that is closed, as far as the protocol goes, out of the data plane."""
    _forget(plane, connection)
    session = connection.session
    _record(plane, connection, "refused" if session is None else "disconnected")
    if session is not None and session.link is connection:
        session.detach(time.monotonic())
        if session.clean:
            plane.exchange.discard(session)
    plane.write_out(connection)
    connection.wire.close()
    will, connection.will = connection.will, None
    if session is not None and will is not None:
        wills.fire(plane, session, will)
    wills.over(plane, connection)
    plane.lane.event(BrokerEvents.CLIENT_DISCONNECTED, connection)


def _forget(plane: DataPlane, connection: Connection) -> None:
    """Take a connection out of everything that would keep it, and its TLS buffers, beyond its end."""
    plane.live.pop(connection, None)
    plane.arrivals.discard(connection)
    plane.wheel.discard(connection)
    plane.holders.pop(connection, None)
    if plane.durability is not None:
        plane.durability.discard(connection)
    if connection.timer is not None:
        connection.timer.cancel()
        connection.timer = None


def _record(plane: DataPlane, connection: Connection, event: str) -> None:
    """Count and audit how a connection ended, once, and before the peer can see it."""
    ending = connection.ending
    if connection.audited or ending is None:
        return
    plane.counts[f"{event}.{ending.reason}"] += 1
    plane.audit.write(
        event,
        peer=connection.peer,
        client_id=connection.session.client_id if connection.session is not None else "",
        reason=ending.reason,
        detail=ending.detail,
        address=connection.address,
    )
