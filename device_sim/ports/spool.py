"""Readings on their way, on disk: committed before they are called safe, deleted by the gateway's PUBACK only.

SQLite in WAL mode with synchronous=FULL: when `put` has returned, neither kill -9 nor a power cut takes the readings
away. After a crash everything that was not acknowledged is sent again; a reading may arrive twice, never not at all.

The bound is in bytes. When it is reached, `drop-oldest` deletes the oldest readings that are not in flight and counts
them; `wait` holds the port's reader back, so that the bytes wait in the driver, or in a device that counts what is
announced as safe. A damaged file is set aside under another name and an empty one takes its place. One process has
a file open at a time. Readings are taken one by one, so memory does not grow with what is stored.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO

from device_sim.outbox import PER_READING_BYTES, Queue
from gateway.store.database import locked, put_aside
from gateway.store.place import check_place
from gateway.store.writer import connect
from mtls.errors import ConfigFault, Fault

_VERSION = 1  # of the schema, in the file's header; a file without one was made before there were versions
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS reading (id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL,"
    " payload BLOB NOT NULL, qos INTEGER NOT NULL, size INTEGER NOT NULL)"
)


class WhenFull(StrEnum):
    """Who yields when the spool is full."""

    DROP_OLDEST = "drop-oldest"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be published."""

    topic: str
    payload: bytes
    qos: int = 1

    @property
    def size(self) -> int:
        """What it costs in the spool."""
        return len(self.topic.encode()) + len(self.payload) + PER_READING_BYTES


class Spool(Queue):
    """The durable queue of one agent; every port puts, one connection takes."""

    def __init__(self, path: Path, max_bytes: int, when_full: WhenFull, narrate: Callable[[str], None]) -> None:
        self._max_bytes = max_bytes
        self._when_full = when_full
        self._in_flight: dict[int, int] = {}  # packet id -> row
        self._last_taken = 0
        self._lock, self._db = _open(path, narrate)
        self._rows: int
        self._bytes: int
        self._rows, self._bytes = self._db.execute("SELECT count(*), coalesce(sum(size), 0) FROM reading").fetchone()
        if self._rows:
            narrate(f"{path} holds {self._rows} readings that were not acknowledged; they are sent first")
        super().__init__()  # the last: it opens the bell, and a spool that cannot be had leaves nothing open

    # --- the ports' side ---

    def put(self, messages: Sequence[Message]) -> bool:
        """Commit readings together; True when they are safe, False when the spool was ended and they are not."""
        size = sum(message.size for message in messages)
        with self._changed:
            while self._must_wait(size):
                self._changed.wait()
            if self._is_ended:
                return False
            with self._transaction():
                self._make_room(size)
                self._db.executemany(
                    "INSERT INTO reading (topic, payload, qos, size) VALUES (?, ?, ?, ?)",
                    [(message.topic, message.payload, message.qos, message.size) for message in messages],
                )
            self._rows += len(messages)
            self._bytes += size
            self._taken += len(messages)
        self.ring()
        return True

    # --- the connection's side ---

    def take(self) -> tuple[int, Message] | None:
        """The oldest reading that is not in flight, with its row; None when there is none."""
        with self._changed:
            row = self._db.execute(
                "SELECT id, topic, payload, qos FROM reading WHERE id > ? ORDER BY id LIMIT 1", (self._last_taken,)
            ).fetchone()
            if row is None:
                return None
            self._last_taken = row[0]
            return row[0], Message(*row[1:])

    def sent(self, packet_id: int, row: int) -> None:
        """A reading taken was published and waits for its acknowledgement."""
        with self._changed:
            self._in_flight[packet_id] = row

    def acknowledge(self, packet_ids: Sequence[int]) -> None:
        """The gateway has these; ids that are no reading's are nobody's business here."""
        with self._changed:
            rows = [row for packet_id in packet_ids if (row := self._in_flight.pop(packet_id, None)) is not None]
            if not rows:
                return
            with self._transaction():
                for row in rows:
                    self._delete(row)
            self._acknowledged += len(rows)
            self._changed.notify_all()

    def connection_lost(self) -> None:
        """What was in flight is taken again, from the oldest on."""
        with self._changed:
            self._in_flight.clear()
            self._last_taken = 0

    @property
    def in_flight(self) -> int:
        """How many readings wait for their acknowledgement."""
        return len(self._in_flight)

    @property
    def is_empty(self) -> bool:
        """Nothing is stored."""
        return not self._rows

    def close(self) -> None:
        """Close the file; what it holds is sent by the next run."""
        self.end()
        with self._changed:
            self._db.close()
            self._lock.close()
        self._bell.close()

    # --- inside, with the lock held ---

    def _must_wait(self, size: int) -> bool:
        is_full = self._rows > 0 and self._bytes + size > self._max_bytes
        return is_full and self._when_full is WhenFull.WAIT and not self._is_ended

    def _make_room(self, size: int) -> None:
        while self._bytes + size > self._max_bytes:
            oldest = self._db.execute(
                "SELECT id FROM reading WHERE id > ? ORDER BY id LIMIT 1", (self._last_taken,)
            ).fetchone()
            if oldest is None:
                return
            self._delete(oldest[0])
            self._dropped += 1

    def _delete(self, row: int) -> None:
        found = self._db.execute("DELETE FROM reading WHERE id = ? RETURNING size", (row,)).fetchone()
        if found is not None:
            self._rows -= 1
            self._bytes -= found[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise Fault(f"the spool cannot be written: {error}", hint="is the disk full or read-only? df -h") from error


def _open(path: Path, narrate: Callable[[str], None]) -> tuple[IO[bytes], sqlite3.Connection]:
    """The file's lock and the file, made or set aside as need be; Fault when another program has it."""
    for warning in check_place(path, allow_volatile=True):
        narrate(f"warning: {warning.replace('[store]', str(path))}")
    path.touch(mode=0o600)
    lock = locked(path)
    try:
        try:
            return lock, _checked(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise Fault(f"cannot open the spool {path}: {error}", hint="is the file system writable?") from error
            aside = put_aside(path, datetime.now(UTC), str(error))
            narrate(f"{path} was damaged ({error}) and is set aside as {aside}; an empty spool takes its place")
            path.touch(mode=0o600)
            return lock, _checked(path)
    except BaseException:
        lock.close()
        raise


def _checked(path: Path) -> sqlite3.Connection:
    db = connect(path)
    try:
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        _stamp(db, path)
        db.execute(_SCHEMA)
    except BaseException:
        db.close()
        raise
    if verdict != "ok":
        db.close()
        raise sqlite3.DatabaseError(str(verdict))
    return db


def _stamp(db: sqlite3.Connection, path: Path) -> None:
    """Write the version of the schema into a file that has none; ConfigFault when a newer program wrote it."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > _VERSION:
        raise ConfigFault(
            f"the spool {path} has schema {version}, and this version of device-sim knows schema {_VERSION}",
            hint="run the newer version that wrote it, or move the file away; nothing in it was changed",
        )
    if version < _VERSION:
        db.execute(f"PRAGMA user_version = {_VERSION}")
