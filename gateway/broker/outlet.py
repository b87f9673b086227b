"""What leaves for one client: at once, or when what it relies on is on disk.

Packets collect in `outbox` until the host flushes it, once per turn of its loop. A packet that is held waits for a
commit of the store, and everything held after it waits behind it, so that answers keep the order of their questions
[MQTT-4.6.0-2]. Nothing leaves after close.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.broker.host import Host


class State(Enum):
    """Where a connection stands."""

    AWAITING_CONNECT = "awaiting CONNECT"
    ADMITTING = "admitting"
    CONNECTED = "connected"
    CLOSED = "closed"


class Outlet:
    """The outgoing half of a connection."""

    __slots__ = ("blocked", "dirty", "held", "host", "outbox", "state")

    def __init__(self, host: Host) -> None:
        self.host = host
        self.state = State.AWAITING_CONNECT
        self.outbox: list[bytes] = []
        self.dirty = False
        self.blocked = False
        self.held: deque[tuple[int, list[bytes]]] | None = None  # what waits, by the ticket of its commit

    def send(self, packet: bytes) -> None:
        """Queue one encoded packet; it leaves with the host's next flush. Nothing is sent after close."""
        if self.state is State.CLOSED:
            return
        self.outbox.append(packet)
        if not self.dirty:
            self.mark()

    def hold(self, packet: bytes) -> None:
        """Queue one encoded packet behind everything stored so far; it leaves when that is on disk."""
        writer = self.host.writer
        if writer is None or not (self.held or writer.newest > writer.committed):
            self.send(packet)
        elif self.state is not State.CLOSED:
            if self.held is None:
                self.held = deque()
            if not self.held:
                self.host.holders[self] = None
            if self.held and self.held[-1][0] == writer.newest:
                self.held[-1][1].append(packet)
            else:
                self.held.append((writer.newest, [packet]))

    def acknowledge(self, packet: bytes, *, stored: bool) -> None:
        """Answer in the order of the questions [MQTT-4.6.0-2]: what was stored when it is on disk."""
        if stored or self.held:
            self.hold(packet)
        else:
            self.send(packet)

    def settle(self, committed: int) -> bool:
        """Let out what waited for commits up to ticket `committed`; whether more waits."""
        held = self.held
        while held and held[0][0] <= committed:
            self.outbox += held.popleft()[1]
        if self.outbox and not self.dirty:
            self.mark()
        return bool(held)

    def mark(self) -> None:
        """Have the outbox written with the host's next flush."""
        self.dirty = True
        self.host.dirty.append(self)
        self.host.schedule_flush()
