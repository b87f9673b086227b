"""What one commit changes of queues and retained messages: collected by row, written in a few statements.

Within one commit rows are inserted first, then changed, then deleted, whatever came first; that is the right order
because a message's number is never used twice, and what can come and go is kept here by its last state only.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from gateway.store.statements import as_list, insert_rows

PAGE_MESSAGES: Final = 256
PAGE_BYTES: Final = 1024 * 1024
FORGET_CHUNK: Final = 1000  # deliveries of forgotten sessions deleted per commit, so that no commit takes long
EVICT_CHUNK: Final = 512


class Stored(NamedTuple):
    """One message as a session's queue holds it."""

    number: int
    topic_raw: bytes
    payload: bytes
    published_qos: int
    qos: int
    retain: bool
    packet_id: int
    released: bool


class Rows:
    """The changes of one commit. `trims` are sessions whose oldest queued messages are to go, and how many."""

    __slots__ = ("deliveries", "done", "launched", "messages", "received", "released", "retained", "trims")

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.deliveries: list[Any] = []
        self.launched: dict[tuple[int, int], int] = {}  # (session, message) -> packet identifier
        self.released: list[tuple[int, int]] = []
        self.done: list[tuple[int, int]] = []
        self.received: dict[tuple[int, int], bool] = {}  # (session, packet identifier) -> still there
        self.retained: dict[str, tuple[bytes, int, str] | None] = {}
        self.trims: dict[int, int] = {}

    def apply(self, db: sqlite3.Connection) -> None:
        """Write everything."""
        if self.messages:
            insert_rows(db, "messages", 5, self.messages)
        if self.deliveries:
            insert_rows(db, "deliveries", 7, self.deliveries)
        if self.launched:
            triples = [(session, message, packet) for (session, message), packet in self.launched.items()]
            db.execute(_LAUNCH, (json.dumps(triples),))
        if self.released:
            db.execute(_RELEASE, (json.dumps(self.released),))
        if self.received:
            self._receive(db)
        if self.retained:
            self._retain(db)
        if self.done:
            delete_deliveries(db, self.done)
        for session, count in self.trims.items():
            trim(db, session, count)

    def _receive(self, db: sqlite3.Connection) -> None:
        present = [value for pair, there in self.received.items() if there for value in pair]
        absent = [pair for pair, there in self.received.items() if not there]
        if absent:
            db.execute(f"DELETE FROM received WHERE (session, packet_id) IN ({_PAIRS})", (json.dumps(absent),))  # noqa: S608
        insert_rows(db, "received", 2, present)

    def _retain(self, db: sqlite3.Connection) -> None:
        gone = [topic for topic, row in self.retained.items() if row is None]
        if gone:
            db.execute("DELETE FROM retained WHERE topic IN (SELECT value FROM json_each(?))", (json.dumps(gone),))
        kept = [value for topic, row in self.retained.items() if row is not None for value in (topic, *row)]
        insert_rows(db, "retained", 4, kept)


_PAIRS: Final = "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(?)"
_LAUNCH: Final = """
UPDATE deliveries SET packet_id = new.packet_id FROM (
    SELECT json_extract(value, '$[0]') AS session, json_extract(value, '$[1]') AS message,
           json_extract(value, '$[2]') AS packet_id FROM json_each(?)
) AS new WHERE deliveries.session = new.session AND deliveries.message = new.message
"""
_RELEASE: Final = f"UPDATE deliveries SET released = 1 WHERE (session, message) IN ({_PAIRS})"  # noqa: S608
_DONE: Final = f"DELETE FROM deliveries WHERE (session, message) IN ({_PAIRS})"  # noqa: S608
_UNWANTED: Final = """
DELETE FROM messages WHERE id IN (SELECT value FROM json_each(?))
    AND NOT EXISTS (SELECT 1 FROM deliveries WHERE message = messages.id)
"""
_QUEUE: Final = """
SELECT message, topic, payload, messages.qos, deliveries.qos, retain, packet_id, released, size
FROM deliveries JOIN messages ON messages.id = deliveries.message
"""


def delete_deliveries(db: sqlite3.Connection, pairs: Sequence[tuple[int, int]]) -> None:
    """Delete deliveries, and every message that nobody wants any more."""
    db.execute(_DONE, (json.dumps(pairs),))
    db.execute(_UNWANTED, (as_list({message for _, message in pairs}),))


def trim(db: sqlite3.Connection, session: int, count: int) -> None:
    """Delete the oldest queued messages of a session."""
    query = "SELECT message FROM deliveries WHERE session = ? AND packet_id = 0 ORDER BY message LIMIT ?"
    rows = db.execute(query, (session, count)).fetchall()
    delete_deliveries(db, [(session, message) for (message,) in rows])


def page(db: sqlite3.Connection, session: int, after: int) -> tuple[list[Stored], bool]:
    """Queued messages of a session behind number `after`, oldest first; whether these are all."""
    cursor = db.execute(
        f"{_QUEUE} WHERE session = ? AND message > ? AND packet_id = 0 ORDER BY message LIMIT ?",
        (session, after, PAGE_MESSAGES),
    )
    rows, size = [], 0
    for *row, weight in cursor:
        rows.append(_stored(row))
        size += weight
        if size >= PAGE_BYTES:
            return rows, False
    return rows, len(rows) < PAGE_MESSAGES


def in_flight(db: sqlite3.Connection, session: int) -> list[Stored]:
    """What was sent to a session's client and not acknowledged, in the order of sending as far as it is known."""
    query = f"{_QUEUE} WHERE session = ? AND packet_id <> 0 ORDER BY message"
    return [_stored(row) for *row, _ in db.execute(query, (session,))]


def _stored(row: list[Any]) -> Stored:
    number, topic, payload, published_qos, qos, retain, packet_id, released = row
    return Stored(number, topic, payload, published_qos, qos, bool(retain), packet_id, bool(released))


def evict(db: sqlite3.Connection, need: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Delete the oldest droppable messages that are not in flight, until `need` bytes are free.

    The bytes freed, and (session, messages, bytes) for each session that lost some.
    """
    rows = db.execute(
        "SELECT id, length(payload) + length(topic) FROM messages WHERE droppable AND NOT EXISTS"
        " (SELECT 1 FROM deliveries WHERE message = messages.id AND packet_id <> 0) ORDER BY id LIMIT ?",
        (EVICT_CHUNK,),
    )
    numbers, freed = [], 0
    for number, size in rows.fetchall():
        numbers.append(number)
        freed += size
        if freed >= need:
            break
    chosen = (as_list(numbers),)
    lost = db.execute(
        "SELECT session, count(*), sum(size) FROM deliveries"
        " WHERE message IN (SELECT value FROM json_each(?)) GROUP BY session",
        chosen,
    ).fetchall()
    db.execute("DELETE FROM deliveries WHERE message IN (SELECT value FROM json_each(?))", chosen)
    db.execute("DELETE FROM messages WHERE id IN (SELECT value FROM json_each(?))", chosen)
    return freed, lost


def forget(db: sqlite3.Connection, sessions: Iterable[int]) -> None:
    """Forget sessions at once; what they held goes in chunks (`sweep_forgotten`)."""
    for session in sessions:
        for table in ("subscriptions", "received"):
            db.execute(f"DELETE FROM {table} WHERE session = ?", (session,))  # noqa: S608 - names of our own
        db.execute("DELETE FROM sessions WHERE id = ?", (session,))
        db.execute("INSERT OR IGNORE INTO forgotten VALUES (?)", (session,))


def sweep_forgotten(db: sqlite3.Connection) -> bool:
    """Delete a chunk of what forgotten sessions held; whether there may be more."""
    row = db.execute("SELECT session FROM forgotten LIMIT 1").fetchone()
    if row is None:
        return False
    found = db.execute("SELECT message FROM deliveries WHERE session = ? LIMIT ?", (row[0], FORGET_CHUNK)).fetchall()
    delete_deliveries(db, [(row[0], message) for (message,) in found])
    if len(found) < FORGET_CHUNK:
        db.execute("DELETE FROM forgotten WHERE session = ?", row)
    return True
