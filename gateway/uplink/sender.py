"""The sending machine: from spool and lanes to the line, and from the upstream's answers back to the spool.

It serves one connection at a time. A message goes up in the order that the lanes give, and is deleted from the spool
when the upstream has acknowledged it and on nothing else. A few messages per turn of the event loop, so that devices
are served in between; what the line does not take waits in the lanes, never in a buffer without end.

A message that the upstream refuses (MQTT 5), that is larger than it takes, or at which it has ended several connections
in a row (all that MQTT 3.1.1 leaves it), stays in the spool and is set aside, so that the others go on; it is tried
again later. Too many refusals are taken as an upstream that is not well. One that acknowledges nothing for
`ACK_TIMEOUT_S` is left. Acknowledgements of nothing that was sent are ignored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol

from gateway.uplink.connection import Connection
from gateway.uplink.envelope import Envelope, Stamp, to_json, to_user_properties
from gateway.uplink.lanes import Lanes, Spooled
from gateway.uplink.pacing import Meter
from gateway.uplink.spool import Oldest, Page, Spool
from mtls.terminal import sanitise

PER_TURN: Final = 16  # messages given to the line before others on the event loop have their turn
ACK_TIMEOUT_S: Final = 30.0  # the upstream acknowledges the oldest message within this, or is left
MAX_REFUSED: Final = 100  # on one connection; beyond it the upstream is taken as not well
RETRY_REFUSED_S: Final = 600.0
MAX_STRIKES: Final = 5  # connections in a row that ended with the same oldest message unacknowledged
REPLAY_HALF_LIFE_S: Final = 15.0
TICK_S: Final = 1.0
TOO_LARGE: Final = "it takes no message of that size"
REFUSED: Final = 0x80  # reason codes from here on say no
PACKET_OVERHEAD: Final = 16  # fixed header, length of the topic, packet identifier and length of the properties

log = logging.getLogger("mqtt_gateway.uplink")


class CommandTaker(Protocol):
    """Where commands go."""

    def take(self, topic: str, payload: bytes, qos: int, *, retained: bool, done: Callable[[], None]) -> bool:
        """Bring a message down; `done` is called when it may be acknowledged. False when too many wait."""

    def go_on(self) -> None:
        """Bring down what waits for room."""

    def forget(self) -> None:
        """The connection is over."""


class Sender:
    """Owner of a connection, and of the lanes while it has one."""

    def __init__(
        self,
        spool: Spool,
        lanes: Lanes,
        commands: CommandTaker,
        envelope: Envelope,
        *,
        window: int,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spool = spool
        self.lanes = lanes
        self.acknowledged_by_lane: Counter[str] = Counter()
        self.refused = 0
        self.last_refusal = ""
        self.subscriptions: dict[str, str] = {}  # by filter: granted or refused
        self.oldest: Oldest | None = None
        self.replays = Meter(REPLAY_HALF_LIFE_S, monotonic())
        self._commands = commands
        self._envelope = envelope
        self._window = window
        self._ack_timeout_s = ack_timeout_s
        self._monotonic = monotonic
        self._connection: Connection | None = None
        self._ended: asyncio.Future[str] | None = None
        self._refused_here = 0
        self._retry_at: float | None = None
        self._suspect = 0
        self._strikes = 0
        self._reading = False
        self._looking = False
        self._done: list[int] = []
        self._scheduled: asyncio.Handle | None = None
        spool.committed = self._committed

    # the connection's life

    def expect(self) -> asyncio.Future[str]:
        """A connection is about to be made; the future says why it ended."""
        self._ended = asyncio.get_running_loop().create_future()
        return self._ended

    def connected(self, connection: Connection) -> None:
        """CONNACK: from here on messages go."""
        self._connection = connection
        self._refused_here = 0
        self.lanes.connected(min(self._window, connection.receive_maximum))
        self._soon()

    def lost(self, why: str) -> None:
        """The connection is over; what was in flight is in the spool."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._strike(self.lanes.oldest_in_flight())
            connection.close()
        self.lanes.disconnected()
        self._commands.forget()
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(why)

    def _strike(self, oldest: Spooled | None) -> None:
        """Suspect a message at which one connection after the other ends."""
        if oldest is None or oldest.id != self._suspect:
            self._suspect, self._strikes = oldest.id if oldest is not None else 0, 0
        self._strikes += 1
        if oldest is not None and self._strikes >= MAX_STRIKES:
            self.lanes.set_aside(oldest)
            self._note_refusal(oldest, f"{MAX_STRIKES} connections in a row have ended at it")

    def tick(self) -> None:
        """Once a second: what only time brings."""
        now = self._monotonic()
        sent_at = self.lanes.oldest_sent_at()
        if sent_at is not None and now - sent_at > self._ack_timeout_s:
            self._suspect = 0  # it says nothing at all: no message is to blame
            self.lost(f"it has not acknowledged a message for {self._ack_timeout_s:g} s")
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at, self._refused_here = None, 0
            self.lanes.rescan()
            self._soon()
        self._commands.go_on()
        self.look()

    def look(self) -> None:
        """Have the oldest row looked at, for the figures."""
        if not self._looking:
            self._looking = True
            self.spool.find_oldest(self._found_oldest)

    def _found_oldest(self, oldest: Oldest | None) -> None:
        self._looking = False
        self.oldest = oldest

    # out

    def pass_on(self, stamp: Stamp, topic: str, remote: str, payload: bytes) -> bool:
        """Send a QoS 0 message now; False when there is no connection or no room on the line."""
        connection = self._connection
        if connection is None or connection.blocked or self.lanes.live:
            return False
        if self._publish(connection, stamp, topic, remote, payload, 0, replayed=False) is None:
            self._count_refusal(remote, TOO_LARGE)
        self._soon()
        return True

    def _committed(self, message: Spooled) -> None:
        self.lanes.committed(message)
        if self._connection is not None:
            self._soon()

    def _soon(self, wait_s: float = 0.0) -> None:
        """Have the lanes looked at; a shorter wait takes a longer one's place."""
        loop = asyncio.get_running_loop()
        if self._scheduled is not None:
            if not isinstance(self._scheduled, asyncio.TimerHandle) or self._scheduled.when() <= loop.time() + wait_s:
                return
            self._scheduled.cancel()
        self._scheduled = loop.call_later(wait_s, self._pump) if wait_s > 0 else loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._scheduled = None
        connection = self._connection
        if connection is None:
            return
        left = PER_TURN
        while left and not connection.blocked:
            found = self.lanes.next(self._monotonic())
            if found is None:
                break
            left -= 1
            self._send(connection, *found)
        connection.flush()
        if self._connection is None or connection.blocked:
            return  # lost, or `writable` goes on
        if not left:
            self._soon()
            return
        if self.lanes.wants_page and not self._reading:
            self._reading = True
            self.spool.read(self.lanes.cursor, self._read)
        wait_s = self.lanes.wait_s(self._monotonic())
        if wait_s is not None:
            self._soon(wait_s)

    def _read(self, page: Page) -> None:
        self._reading = False
        self.lanes.page(page.rows, page.after, page.cursor, is_last=page.is_last)
        if self._connection is not None:
            self._soon()

    def _send(self, connection: Connection, message: Spooled, replayed: bool) -> None:
        arguments = (message.stamp, message.topic, message.remote, message.payload)
        packet_id = self._publish(connection, *arguments, 1, replayed=replayed)
        if packet_id is None:
            self.lanes.set_aside(message)
            self._note_refusal(message, TOO_LARGE)
        else:
            self.lanes.sent(packet_id, message, self._monotonic(), replayed=replayed)

    def _publish(
        self, connection: Connection, stamp: Stamp, topic: str, remote: str, payload: bytes, qos: int, *, replayed: bool
    ) -> int | None:
        properties: list[tuple[str, str]] = []
        if self._envelope is Envelope.JSON:
            payload = to_json(stamp, topic, payload, replayed=replayed)
        elif self._envelope is Envelope.MQTT5:
            properties = to_user_properties(stamp, topic, replayed=replayed)
        if connection.max_packet_bytes is not None:
            named = sum(len(name.encode()) + len(value.encode()) + 5 for name, value in properties)
            if PACKET_OVERHEAD + len(remote.encode()) + named + len(payload) > connection.max_packet_bytes:
                return None
        return connection.publish(remote, payload, qos, properties)

    # what the connection says

    def writable(self) -> None:
        """The line takes more again."""
        self._soon()

    def acknowledged(self, packet_id: int, code: int) -> None:
        """PUBACK: delete the message, or keep it when the upstream says no."""
        if code >= REFUSED:
            flight = self.lanes.refused(packet_id)
            if flight is not None:
                self._note_refusal(flight.message, f"reason code {code:#04x}")
            return
        flight = self.lanes.acknowledged(packet_id)
        if flight is None:
            return
        if flight.replayed:
            self.replays.add(1, self._monotonic())
        self.acknowledged_by_lane["backlog" if flight.replayed else "live"] += 1
        if not self._done:
            asyncio.get_running_loop().call_soon(self._delete)
        self._done.append(flight.message.id)
        self._soon()

    def _delete(self) -> None:
        done, self._done = self._done, []
        self.spool.delete(done, self.lanes.deleted)

    def _note_refusal(self, message: Spooled, why: str) -> None:
        self._count_refusal(message.remote, why)
        self._refused_here += 1
        if self._retry_at is None:
            self._retry_at = self._monotonic() + RETRY_REFUSED_S
            log.warning("the upstream refuses a message, which stays in the spool: %s", self.last_refusal)
        if self._refused_here > MAX_REFUSED:
            self._retry_at = None
            self.lanes.rescan()
            self.lost(f"it refuses our messages ({self.last_refusal})")

    def _count_refusal(self, remote: str, why: str) -> None:
        self.refused += 1
        self.last_refusal = f"{sanitise(remote)}: {why}"

    def command(self, packet_id: int, topic: str, payload: bytes, qos: int, retained: bool) -> None:
        """A message of a subscription."""
        connection = self._connection

        def done() -> None:
            if qos and connection is not None:
                connection.acknowledge(packet_id)

        if not self._commands.take(topic, payload, qos, retained=retained, done=done):
            self.lost("it sends commands faster than the store takes them")

    def subscribed(self, topic_filter: str, code: int) -> None:
        """The answer to one subscription."""
        self.subscriptions[topic_filter] = "refused" if code >= REFUSED else "granted"
        if code >= REFUSED:
            log.warning("the upstream refuses our subscription of %s (%#04x)", sanitise(topic_filter), code)
