"""Which message goes up next: the live lane first, then the paced backlog. Pure bookkeeping over the spool's rows.

    committed --connected, room--> live ----\
        |                                    >--> in flight --PUBACK--> deleting --commit--> gone
        `--else: on disk only--> page ------/

Everything here is on disk already; what is in memory is bounded: the live lane by messages and bytes, the backlog by
one page of rows, what is in flight by the window. A message that finds no room in the live lane is no loss: it is
found by the scan, which reads the spool in pages by the rows' numbers, from the first row after every connect.

Order: the live lane keeps the order of arrival, the backlog keeps the order of arrival; between the two there is none,
because live messages overtake. A message of the backlog is marked as replayed for that reason.

The backlog may fill only half of the window, so that a live message never waits for a whole window of old ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.uplink.envelope import Stamp
from gateway.uplink.pacing import Pacer

MAX_LIVE_MESSAGES: Final = 1000
MAX_LIVE_BYTES: Final = 4 * 1024 * 1024
ROW_OVERHEAD: Final = 128  # bytes of SQLite and of the stamp that one row is accounted with beside its texts


@dataclass(frozen=True, slots=True)
class Spooled:
    """One message of the spool. `remote` is its topic upstream, by the map that was in force when it came in."""

    id: int
    stamp: Stamp
    topic: str
    remote: str
    payload: bytes

    @property
    def size(self) -> int:
        """Bytes that this message is accounted with."""
        return len(self.topic) + len(self.remote) + len(self.payload) + ROW_OVERHEAD


@dataclass(frozen=True, slots=True)
class Flight:
    """A message that was sent and is not acknowledged."""

    message: Spooled
    replayed: bool
    sent_at: float


class Lanes:
    """What is in memory of the spool while there is a connection."""

    def __init__(self, pacer: Pacer, window: int) -> None:
        self._pacer = pacer
        self._live: deque[Spooled] = deque()
        self._live_bytes = 0
        self._page: deque[Spooled] = deque()
        self._flights: dict[int, Flight] = {}  # by packet identifier, in order of sending
        self._replays = 0  # of the flights
        self._held: set[int] = set()  # rows in the live lane, in flight, or being deleted: the scan leaves them out
        self._aside: set[int] = set()  # rows that the upstream has refused, and that are not tried for a while
        self._connected = False
        self._scanning = False
        self._overflow = 0  # the newest row that found no room in the live lane
        self.window = window
        self.cursor = 0  # the newest row that the scan has seen

    # the connection

    def connected(self, window: int) -> None:
        """A connection begins: everything that is in the spool is backlog."""
        self.disconnected()
        self.window = window
        self.cursor = self._overflow = 0
        self._connected = self._scanning = True

    def rescan(self) -> None:
        """Look at the whole spool again, and try what was set aside."""
        self._aside.clear()
        self._scanning = self._connected
        self._page.clear()
        self.cursor = 0

    def disconnected(self) -> None:
        """A connection is over: what was in flight or waiting stays in the spool and nowhere else."""
        self._connected = self._scanning = False
        self._held.difference_update(message.id for message in self._live)
        self._held.difference_update(flight.message.id for flight in self._flights.values())
        self._live.clear()
        self._page.clear()
        self._flights.clear()
        self._live_bytes = self._replays = 0

    # what comes in

    def committed(self, message: Spooled) -> None:
        """A message is in the spool, on disk."""
        if not self._connected:
            return  # the scan finds it
        if len(self._live) >= MAX_LIVE_MESSAGES or self._live_bytes + message.size > MAX_LIVE_BYTES:
            self._overflow = message.id
            self._scanning = True
            return
        self._live.append(message)
        self._live_bytes += message.size
        self._held.add(message.id)

    def page(self, rows: Sequence[Spooled], after: int, cursor: int, *, is_last: bool) -> None:
        """The rows from `after` to `cursor`; `is_last` says that there were none after those."""
        if not self._connected or after != self.cursor:
            return  # asked for by an earlier scan
        self.cursor = cursor
        self._page.extend(row for row in rows if row.id not in self._held and row.id not in self._aside)
        if is_last and self._overflow <= self.cursor:
            self._scanning = False

    @property
    def wants_page(self) -> bool:
        """Whether the next page should be read now."""
        return self._connected and self._scanning and not self._page

    # what goes out

    def next(self, monotonic: float) -> tuple[Spooled, bool] | None:
        """The message to send now and whether it is a replay; None when there is none, or not yet."""
        if len(self._flights) >= self.window:
            return None
        if self._live:
            message = self._live.popleft()
            self._live_bytes -= message.size
            return message, False
        if not self._backlog_may_go() or self._pacer.wait_s(self._page[0].size, monotonic) > 0:
            return None
        message = self._page.popleft()
        self._pacer.take(message.size)
        self._held.add(message.id)
        return message, True

    def wait_s(self, monotonic: float) -> float | None:
        """Seconds until the pace lets the backlog go on; None when it is not the pace that it waits for."""
        if not self._backlog_may_go() or self._live:
            return None
        return self._pacer.wait_s(self._page[0].size, monotonic)

    def _backlog_may_go(self) -> bool:
        return bool(self._page) and self._replays < max(1, self.window // 2) and len(self._flights) < self.window

    def sent(self, packet_id: int, message: Spooled, monotonic: float, *, replayed: bool) -> None:
        """A message that `next` gave is on its way."""
        self._flights[packet_id] = Flight(message, replayed, monotonic)
        self._replays += replayed

    def acknowledged(self, packet_id: int) -> Flight | None:
        """PUBACK: the message may be deleted, and is held until that is done; None for an unknown identifier."""
        flight = self._flights.pop(packet_id, None)
        if flight is not None:
            self._replays -= flight.replayed
        return flight

    def refused(self, packet_id: int) -> Flight | None:
        """PUBACK that says no: the message stays in the spool, and is set aside."""
        flight = self.acknowledged(packet_id)
        if flight is not None:
            self.set_aside(flight.message)
        return flight

    def set_aside(self, message: Spooled) -> None:
        """Leave a message in the spool and do not try it before the next `rescan`."""
        self._held.discard(message.id)
        self._aside.add(message.id)

    def deleted(self, ids: Sequence[int]) -> None:
        """Rows are gone from the disk."""
        self._held.difference_update(ids)

    # figures

    @property
    def in_flight(self) -> int:
        """Messages sent and not acknowledged."""
        return len(self._flights)

    @property
    def live(self) -> int:
        """Messages in the live lane, not sent yet."""
        return len(self._live)

    @property
    def aside(self) -> int:
        """Messages that are not tried for now."""
        return len(self._aside)

    def oldest_in_flight(self) -> Spooled | None:
        """The unacknowledged message that came in first."""
        return min((flight.message for flight in self._flights.values()), key=lambda each: each.id, default=None)

    def oldest_sent_at(self) -> float | None:
        """When the oldest unacknowledged message was sent, by the monotonic clock."""
        return next((flight.sent_at for flight in self._flights.values()), None)
