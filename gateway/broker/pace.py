"""How fast a connection is read: by its publish rate, and by how fast it takes our answers. Nothing is dropped.

Each connection has credit for messages, earned at its rate and at most a second's worth of it. What was read already is
handled, and paid for by silence: reading goes on when the credit is back (policy rule 10). A peer that
asks and does not take the answers is not read until it does; its keep alive runs on.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from gateway.broker.connection import Connection
from gateway.broker.outlet import State

if TYPE_CHECKING:
    from gateway.broker.plane import DataPlane

UNREAD_MAX_BYTES = 1024 * 1024  # answers that a peer has not taken


def throttle(plane: DataPlane, connection: Connection, published: int) -> None:
    """Charge a connection for `published` messages, and stop reading it while it is in debt."""
    rate = connection.publish_rate
    if rate is None or connection.state is not State.CONNECTED:
        return
    now = time.monotonic()
    earned = connection.credit + (now - connection.credited_at) * rate
    connection.credit = min(earned, max(rate, 1.0)) - published
    connection.credited_at = now
    if connection.credit < 0 and not connection.throttled:
        connection.throttled = True
        connection.wire.pause_reading()
        wait_s = -connection.credit / rate
        connection.timer = asyncio.get_running_loop().call_later(wait_s, _release, plane, connection)


def _release(plane: DataPlane, connection: Connection) -> None:
    connection.throttled = False
    connection.timer = None
    connection.last_tick = plane.tick
    throttle(plane, connection, 0)  # what it had sent already may have cost more since
    read_on(connection)


def choke(connection: Connection) -> None:
    """Stop reading a peer that leaves too many answers untaken."""
    wire = connection.wire
    if connection.blocked and not wire.is_closing() and wire.get_write_buffer_size() > UNREAD_MAX_BYTES:
        connection.choked = True
        wire.pause_reading()


def read_on(connection: Connection) -> None:
    """Read again, unless something else still holds the reading up."""
    held = connection.suspended or connection.throttled or connection.choked or connection.slowed
    if connection.state is State.CONNECTED and not held:
        connection.wire.resume_reading()
