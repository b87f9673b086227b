"""The spool: messages for the upstream in the store's database, from their acceptance to the upstream's PUBACK.

Rows are written through the store's one writer, together with everything else that the publisher's acknowledgement
waits for, and are read in pages and deleted through it too, so what is told here comes in the order of the disk. A
long backlog is never in memory. How much there is, is counted at the start over an index, and kept from then on.

Bounded in bytes: topic, name upstream, payload and `ROW_OVERHEAD` for each row. What happens at the bound is the
owner's decision; `make_room` deletes the oldest rows. There is no age at which a row goes: the clock is not to be
trusted with that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from gateway.store.statements import as_list, insert_rows
from gateway.store.writer import Writer
from gateway.uplink.envelope import Stamp
from gateway.uplink.lanes import Spooled

PAGE_ROWS: Final = 256
PAGE_BYTES: Final = 1024 * 1024
DROP_SHARE: Final = 100  # a hundredth of the bound goes at once, so that a full spool is not one delete each
_COLUMNS: Final = 10


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of one read: those behind `after` up to `cursor`; `is_last` says that there were none behind them."""

    rows: tuple[Spooled, ...]
    after: int
    cursor: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Oldest:
    """When the oldest row came in, by the gateway's clock of then."""

    time_us: int
    time_state: str


@dataclass(frozen=True, slots=True)
class Found:
    """What the spool holds at the start."""

    messages: int
    bytes: int
    newest: int


def count(db: sqlite3.Connection) -> Found:
    """Count what is there; reads an index, not the rows."""
    query = "SELECT count(*), ifnull(sum(size), 0), ifnull(max(id), 0) FROM uplink"
    return Found(*db.execute(query).fetchone())


class Spool:
    """The rows on disk, by number. Every method is called on the loop that the writer was started on."""

    def __init__(self, writer: Writer, found: Found, spend: Callable[[int], None] | None = None) -> None:
        """`found` is what `count` has counted; `spend` is told of bytes that are about to be written."""
        self.committed: Callable[[Spooled], None] = _nobody  # is told of each message that is on disk
        self.messages = found.messages
        self.bytes = found.bytes
        self._writer = writer
        self._spend = spend or writer.weigh
        self._adding: list[Spooled] = []
        self._ticket = 0
        self._waiting_bytes = 0  # put, not on disk yet
        self._leaving_bytes = 0  # about to be deleted to make room
        self._next_id = found.newest + 1

    @property
    def accounted_bytes(self) -> int:
        """What is in it, on the way into it, and not on the way out of it."""
        return self.bytes + self._waiting_bytes - self._leaving_bytes

    def add(self, stamp: Stamp, topic: str, remote: str, payload: bytes) -> Spooled:
        """Have a message committed with the group in hand; `committed` is told when it is on disk."""
        message = Spooled(self._next_id, stamp, topic, remote, payload)
        self._next_id += 1
        if not self._adding or self._ticket != self._writer.ticket:
            self._adding = []
            self._ticket = self._writer.put(partial(_insert, self._adding), partial(self._added, self._adding))
        self._adding.append(message)
        self._waiting_bytes += message.size
        self._spend(message.size)
        return message

    def _added(self, messages: list[Spooled], _: Any) -> None:
        self.messages += len(messages)
        size = sum(message.size for message in messages)
        self.bytes += size
        self._waiting_bytes -= size
        for message in messages:
            self.committed(message)

    def delete(self, ids: Sequence[int], then: Callable[[Sequence[int]], None]) -> None:
        """Have rows deleted, which nobody waits for; `then` is told when they are gone."""

        def gone(found: tuple[int, int]) -> None:
            self.messages -= found[0]
            self.bytes -= found[1]
            then(ids)

        self._writer.put(partial(_delete, ids), gone)

    def make_room(self, size: int, max_bytes: int, then: Callable[[int, int], None]) -> None:
        """Have the oldest rows deleted, at least `size` bytes of them; `then` is told how many rows and bytes."""
        size = max(size, max_bytes // DROP_SHARE)
        self._leaving_bytes += size

        def gone(found: tuple[int, int]) -> None:
            self._leaving_bytes -= size
            self.messages -= found[0]
            self.bytes -= found[1]
            then(*found)

        self._writer.put(partial(_delete_oldest, size), gone)

    def read(self, cursor: int, then: Callable[[Page], None]) -> None:
        """Have the rows after `cursor` read, some of them."""
        self._writer.put(partial(_read, cursor), then)

    def find_oldest(self, then: Callable[[Oldest | None], None]) -> None:
        """Have the oldest row looked at; None when there is none."""
        self._writer.put(_read_oldest, then)


def _nobody(_: Spooled) -> None:
    """Until somebody wants to be told."""


# what the writer's thread runs


def _read(cursor: int, db: sqlite3.Connection) -> Page:
    rows: list[Spooled] = []
    size = 0
    with closing(
        db.execute(
            "SELECT id, device_id, boot_id, sequence, time_us, time_state, topic, remote, payload"
            " FROM uplink WHERE id > ? ORDER BY id LIMIT ?",
            (cursor, PAGE_ROWS),
        )
    ) as found:
        for number, device_id, boot_id, sequence, time_us, time_state, topic, remote, payload in found:
            stamp = Stamp(device_id, boot_id, sequence, time_us, time_state)
            rows.append(Spooled(number, stamp, topic, remote, payload))
            size += rows[-1].size
            if size >= PAGE_BYTES:
                break
    is_last = len(rows) < PAGE_ROWS and size < PAGE_BYTES
    return Page(tuple(rows), cursor, rows[-1].id if rows else cursor, is_last)


def _read_oldest(db: sqlite3.Connection) -> Oldest | None:
    row = db.execute("SELECT time_us, time_state FROM uplink ORDER BY id LIMIT 1").fetchone()
    return Oldest(*row) if row is not None else None


def _insert(messages: Sequence[Spooled], db: sqlite3.Connection) -> None:
    values: list[Any] = []
    for message in messages:
        stamp = message.stamp
        values += (message.id, stamp.device_id, stamp.boot_id, stamp.sequence, stamp.time_us, stamp.time_state)
        values += (message.topic, message.remote, message.payload, message.size)
    insert_rows(db, "uplink", _COLUMNS, values)


def _delete(ids: Sequence[int], db: sqlite3.Connection) -> tuple[int, int]:
    found = db.execute(
        "DELETE FROM uplink WHERE id IN (SELECT value FROM json_each(?)) RETURNING size",
        (as_list(ids),),
    ).fetchall()
    return len(found), sum(size for (size,) in found)


def _delete_oldest(size: int, db: sqlite3.Connection) -> tuple[int, int]:
    """Find how far the oldest rows make up `size`, then delete up to there."""
    rows = freed = last = 0
    with closing(db.execute("SELECT id, size FROM uplink ORDER BY id")) as found:
        for number, row_size in found:
            if freed >= size:
                break
            rows, freed, last = rows + 1, freed + row_size, number
    db.execute("DELETE FROM uplink WHERE id <= ?", (last,))
    return rows, freed
