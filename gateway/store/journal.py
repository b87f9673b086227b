"""What the broker has written: sessions, subscriptions, queues, QoS 2 identifiers, retained messages and wills.

Every method returns at once; what it tells is on disk when the store's writer has committed the ticket of now. What
comes once per message collects in `Rows`; the rest are works of their own. Numbers of sessions and messages are given
here and grow, so that a number is never mistaken for another one that bore it before.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from gateway.store.rows import Rows, Stored, evict, forget, in_flight, page, sweep_forgotten
from gateway.store.statements import as_list
from gateway.store.store import Store

BODY_OVERHEAD: Final = 64  # bytes of a message's row and index beside topic and payload
DELIVERY_OVERHEAD: Final = 48  # bytes of a delivery's row and index
MAX_MARKS: Final = 10_000  # a day and a bit, at a look every ten seconds; what is older is at least that old
WORK_OVERHEAD: Final = 512  # what a work of its own costs in memory beside its values, until it is committed
EVICT_BYTES: Final = 256 * 1024  # freed at once, so that a full store does not evict message by message


class QueueFigures(NamedTuple):
    """What waits for a session, and how much of it was sent already."""

    queued: int
    queued_bytes: int
    in_flight: int


class Body(Protocol):
    """What is kept of a message."""

    topic_raw: bytes
    payload: bytes
    qos: int


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session as it was left: its number, whose it is, and what waits for it."""

    number: int
    identity: str
    client_id: str
    leaf_der: bytes
    offline_s: int
    subscriptions: tuple[tuple[str, int], ...]
    received: frozenset[int]
    queue: QueueFigures


@dataclass(frozen=True, slots=True)
class WillRow:
    """The will of a connection that was open when the gateway ended."""

    number: int
    client_id: str
    leaf_der: bytes
    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Restored:
    """Everything that stands in memory after a start; queues stay on disk."""

    sessions: tuple[SessionRow, ...]
    retained: tuple[tuple[str, bytes, int, str], ...]
    wills: tuple[WillRow, ...]
    next_session: int
    next_message: int
    forgotten: bool


_QUEUES: Final = """
SELECT session, sum(packet_id = 0), sum((packet_id = 0) * size), sum(packet_id <> 0) FROM deliveries GROUP BY session
"""
_SESSIONS: Final = "SELECT id, identity, client_id, leaf_der, offline_s FROM sessions ORDER BY id"
_WILLS: Final = "SELECT id, client_id, leaf_der, topic, payload, qos, retain FROM wills ORDER BY id"


def restore(db: sqlite3.Connection) -> Restored:
    """Read what a start needs; its cost grows with sessions and the number of queued messages, not with their bytes."""
    filters: dict[int, list[tuple[str, int]]] = {}
    for session, topic_filter, qos in db.execute("SELECT session, topic_filter, qos FROM subscriptions"):
        filters.setdefault(session, []).append((topic_filter, qos))
    received: dict[int, set[int]] = {}
    for session, packet_id in db.execute("SELECT session, packet_id FROM received"):
        received.setdefault(session, set()).add(packet_id)
    queues = {row[0]: row[1:] for row in db.execute(_QUEUES)}
    sessions = tuple(
        SessionRow(
            number=number,
            identity=identity,
            client_id=client_id,
            leaf_der=leaf_der,
            offline_s=offline_s,
            subscriptions=tuple(filters.get(number, ())),
            received=frozenset(received.get(number, ())),
            queue=QueueFigures(*queues.get(number, (0, 0, 0))),
        )
        for number, identity, client_id, leaf_der, offline_s in db.execute(_SESSIONS)
    )
    wills = tuple(
        WillRow(n, who, leaf, topic, body, qos, bool(r)) for n, who, leaf, topic, body, qos, r in db.execute(_WILLS)
    )
    (newest_session,) = db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'sessions'").fetchone()
    (newest_message,) = db.execute("SELECT max(id) FROM messages").fetchone()
    return Restored(
        sessions=sessions,
        retained=tuple(db.execute("SELECT topic, payload, qos, writer FROM retained ORDER BY rowid")),
        wills=wills,
        next_session=(newest_session or 0) + 1,
        next_message=(newest_message or 0) + 1,
        forgotten=db.execute("SELECT 1 FROM forgotten LIMIT 1").fetchone() is not None,
    )


class Journal:
    """Writes the broker's state through the store's writer."""

    def __init__(self, store: Store, restored: Restored) -> None:
        self.store = store
        self.writer = store.writer
        self.oldest_s = 0.0  # the least that the oldest stored message has waited, as of the last look
        self._marks: deque[tuple[int, float]] = deque(maxlen=MAX_MARKS)  # the next message's number, and when
        self.exhausted = False  # the last eviction found too little that may be dropped
        self._rows = Rows()
        self._rows_ticket = 0
        self._next_session = restored.next_session
        self._next_message = restored.next_message
        self._next_will = max((will.number for will in restored.wills), default=0) + 1
        if restored.forgotten:
            self._sweep()

    def _now(self) -> Rows:
        """The rows of the commit that is collected now."""
        if self._rows_ticket != self.writer.ticket:
            self._rows = Rows()
            self._rows_ticket = self.writer.put(self._rows.apply)
        return self._rows

    def _execute(self, sql: str, row: tuple[Any, ...]) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(sql, row)

        self.writer.put(work)
        self.writer.weigh(WORK_OVERHEAD + sum(len(value) for value in row if isinstance(value, str | bytes)))

    # sessions

    def begin(self, identity: str, client_id: str, leaf_der: bytes) -> int:
        """A new persistent session; its number."""
        number = self._next_session
        self._next_session += 1
        row = (number, identity, client_id, leaf_der)
        sql = "INSERT INTO sessions (id, identity, client_id, leaf_der) VALUES (?, ?, ?, ?)"
        self._execute(sql, row)
        return number

    def renew(self, session: int, leaf_der: bytes) -> None:
        """The session's client connected with this certificate."""
        sql = "UPDATE sessions SET leaf_der = ?, offline_s = 0 WHERE id = ?"
        self._execute(sql, (leaf_der, session))

    def aged(self, sessions: list[int], seconds: int) -> None:
        """These sessions had no connection for so long; the wall clock is not asked."""
        sql = "UPDATE sessions SET offline_s = offline_s + ? WHERE id IN (SELECT value FROM json_each(?))"
        self._execute(sql, (seconds, as_list(sessions)))

    def forget(self, session: int) -> None:
        """Forget a session with everything in it."""
        self.writer.put(lambda db: forget(db, [session]))
        self._sweep()

    def _sweep(self) -> None:
        self.writer.put(sweep_forgotten, lambda more: self._sweep() if more else None)

    def subscribe(self, session: int, topic_filter: str, qos: int) -> None:
        """Make or replace a subscription."""
        row = (session, topic_filter, qos)
        self._execute("INSERT OR REPLACE INTO subscriptions VALUES (?, ?, ?)", row)

    def unsubscribe(self, session: int, topic_filter: str) -> None:
        """Remove a subscription."""
        sql = "DELETE FROM subscriptions WHERE session = ? AND topic_filter = ?"
        self._execute(sql, (session, topic_filter))

    # queues

    def keep(
        self, session: int, body: Body, qos: int, retain: bool, packet_id: int, size: int, *, droppable: bool
    ) -> int:
        """Keep a message and its first delivery; its number. As `deliver`, in one step: the usual case."""
        number = self._next_message
        self._next_message = number + 1
        rows = self._now()
        rows.messages += (number, body.topic_raw, body.payload, body.qos, int(droppable))
        rows.deliveries += (session, number, qos, int(retain), packet_id, 0, size)
        self.store.spend(len(body.topic_raw) + len(body.payload) + BODY_OVERHEAD + DELIVERY_OVERHEAD)
        return number

    def deliver(self, session: int, message: int, qos: int, retain: bool, packet_id: int, size: int) -> None:
        """Queue a kept message for one more session, or with a packet identifier put it in flight."""
        self._now().deliveries += (session, message, qos, int(retain), packet_id, 0, size)
        self.store.spend(DELIVERY_OVERHEAD)

    def launch(self, session: int, message: int, packet_id: int) -> None:
        """Put a queued message in flight."""
        self._now().launched[session, message] = packet_id

    def release(self, session: int, message: int) -> None:
        """PUBREC came: from here on it is PUBREL that is repeated."""
        self._now().released.append((session, message))

    def done(self, session: int, message: int) -> None:
        """A delivery is over."""
        self._now().done.append((session, message))

    def trim(self, session: int) -> None:
        """Drop the oldest queued message of a session."""
        trims = self._now().trims
        trims[session] = trims.get(session, 0) + 1

    def page(self, session: int, after: int, then: Callable[[tuple[list[Stored], bool]], None]) -> None:
        """Read queued messages behind number `after`."""
        self.writer.put(lambda db: page(db, session, after), then)

    def in_flight(self, session: int, then: Callable[[list[Stored]], None]) -> None:
        """Read what was in flight."""
        self.writer.put(lambda db: in_flight(db, session), then)

    def evict(self, then: Callable[[list[tuple[int, int, int]]], None]) -> None:
        """Make room by dropping the oldest messages of classes that allow it; `then` learns who lost what."""
        need = max(self.store.missing_bytes, EVICT_BYTES)

        def freed(result: tuple[int, list[tuple[int, int, int]]]) -> None:
            self.exhausted = result[0] < EVICT_BYTES
            then(result[1])

        self.writer.put(lambda db: evict(db, need), freed)

    def look(self, now: float) -> None:
        """Find out how long the oldest stored message has waited, by the steady clock of this process."""
        self._marks.append((self._next_message, now))

        def found(oldest: int | None) -> None:
            since = next((at for number, at in self._marks if oldest is not None and number > oldest), now)
            self.oldest_s = now - since

        self.writer.put(lambda db: db.execute("SELECT min(message) FROM deliveries").fetchone()[0], found)

    # received QoS 2

    def receive(self, session: int, packet_id: int) -> None:
        """A QoS 2 message of the session's client was taken."""
        self._now().received[session, packet_id] = True

    def complete(self, session: int, packet_id: int) -> None:
        """Its identifier is released."""
        self._now().received[session, packet_id] = False

    # retained messages and wills

    def retain(self, topic: str, payload: bytes, qos: int, writer: str) -> None:
        """Keep the retained message of a topic and who wrote it, or with an empty payload forget it."""
        self._now().retained[topic] = (payload, qos, writer) if payload else None
        self.store.spend(len(topic) + len(payload) + BODY_OVERHEAD)

    def will(self, client_id: str, leaf_der: bytes, topic: str, payload: bytes, qos: int, *, retain: bool) -> int:
        """Keep the will of a connection that begins; its number."""
        number = self._next_will
        self._next_will += 1
        row: tuple[Any, ...] = (number, client_id, leaf_der, topic, payload, qos, int(retain))
        self._execute("INSERT OR REPLACE INTO wills VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return number

    def will_over(self, number: int) -> None:
        """The connection is over, or its will was fired."""
        self._execute("DELETE FROM wills WHERE id = ?", (number,))
