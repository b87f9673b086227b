"""The one writer: a thread that commits groups of work, and tells the event loop when each is on disk.

    loop: put, put, put --group--> thread: BEGIN, work, work, work, COMMIT (one fsync) --> loop: then, then, then

A group is what the loop put while the group before it was being committed, and at least what one turn of the loop put;
no two commits begin within `interval_s` of each other unless `MAX_GROUP_WORKS` or `MAX_GROUP_BYTES` wait. So a lone
message is committed at once, and under load the disk's own speed makes the groups larger.

A failed commit (disk full, input/output error, read-only) is no end: the transaction is rolled back and the same group
is tried again until it succeeds, while `trouble` says why. Nothing is announced that is not on disk, and nothing that
was put is forgotten. One work that fails by itself is set aside and logged; its `then` is never called.
A damaged file cannot be mended here: `trouble` is DAMAGED from then on and nothing more is committed.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from gateway.store.place import free_bytes

MAX_GROUP_WORKS: Final = 2000
MAX_GROUP_BYTES: Final = 4 * 1024 * 1024
RETRY_S: Final = 0.5  # between two tries of a group that could not be committed
HANG_S: Final = 60.0  # a worn SD card has been seen to take several seconds for one fsync
CLOSE_TIMEOUT_S: Final = 10.0  # for what is still to be committed at the end
CACHED_STATEMENTS: Final = 256

VACUUM_PAGES: Final = 1024  # given back per commit, 4 MiB: a drained backlog leaves the disk without a long pause
_PAGES: Final = (
    "SELECT page_count, freelist_count, page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)

Work = Callable[[sqlite3.Connection], Any]
Then = Callable[[Any], None]
Group = list[tuple[Work, Then | None]]

log = logging.getLogger("mqtt_gateway.store")


class Trouble(StrEnum):
    """Why nothing is committed now."""

    DISK_FULL = "disk_full"
    READ_ONLY = "read_only"
    IO_ERROR = "io_error"
    DAMAGED = "damaged"


_TROUBLES: Final = {
    sqlite3.SQLITE_FULL: Trouble.DISK_FULL,
    sqlite3.SQLITE_READONLY: Trouble.READ_ONLY,
    sqlite3.SQLITE_IOERR: Trouble.IO_ERROR,
    sqlite3.SQLITE_CANTOPEN: Trouble.IO_ERROR,
    sqlite3.SQLITE_PERM: Trouble.IO_ERROR,
    sqlite3.SQLITE_BUSY: Trouble.IO_ERROR,
    sqlite3.SQLITE_NOMEM: Trouble.IO_ERROR,
    sqlite3.SQLITE_CORRUPT: Trouble.DAMAGED,
    sqlite3.SQLITE_NOTADB: Trouble.DAMAGED,
}


def trouble_of(error: sqlite3.Error) -> Trouble | None:
    """What kind of trouble an error of SQLite is; None when the fault is the statement's own."""
    code = getattr(error, "sqlite_errorcode", None)
    return _TROUBLES.get(code & 0xFF) if code is not None else None


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing database for writing: WAL, every commit on disk before it returns."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=5.0,
        check_same_thread=False,
        cached_statements=CACHED_STATEMENTS,
    )
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA wal_autocheckpoint = 2000")
        db.execute("PRAGMA trusted_schema = OFF")
    except sqlite3.Error:
        db.close()
        raise
    return db


class Writer:
    """Commits what the loop puts. Every method but the thread's own is called on the loop that `start` was called on.

    `settled` is called on the loop after each commit, when every `then` of its group has run; `troubled` when
    `trouble` changes.
    """

    def __init__(
        self,
        path: Path,
        *,
        interval_s: float,
        settled: Callable[[], None] = lambda: None,
        troubled: Callable[[], None] = lambda: None,
    ) -> None:
        self.trouble: Trouble | None = None
        self.newest = 0  # the ticket of what was put last
        self.committed = 0  # the newest ticket that is on disk; when it is `newest`, everything is
        self.commits = 0  # transactions that changed something: an fsync each
        self.works = 0  # works committed
        self.commit_s = 0.0  # time that the thread spent in transactions
        self.used_bytes = 0  # of the file's pages, as of the newest commit
        self.free_bytes = free_bytes(path.parent)
        self.waiting_bytes = 0
        self._path = path
        self._interval_s = interval_s
        self._settled = settled
        self._troubled = troubled
        self.ticket = 1  # of the group that is collected now
        self._group: Group = []
        self._group_bytes = 0
        self._busy_bytes = 0
        self._busy = False
        self._scheduled: asyncio.Handle | None = None
        self._began_at = 0.0
        self._idle: asyncio.Future[None] | None = None
        self._handed: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def start(self) -> None:
        """Begin to write; called on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        if self._group:
            self._schedule()

    # what the loop asks

    def put(self, work: Work, then: Then | None = None) -> int:
        """Have `work` committed; the ticket of its group."""
        self._group.append((work, then))
        if len(self._group) == 1 or len(self._group) == MAX_GROUP_WORKS:
            self._schedule()
        self.newest = self.ticket
        return self.ticket

    def weigh(self, size: int) -> None:
        """Tell of bytes that the group in hand holds in memory."""
        before = self._group_bytes
        self._group_bytes = before + size
        self.waiting_bytes += size
        if before < MAX_GROUP_BYTES <= self._group_bytes:
            self._schedule()

    @property
    def pending(self) -> bool:
        """Whether anything that was put is not on disk yet."""
        return self.newest > self.committed

    @property
    def progresses(self) -> bool:
        """False when one transaction takes so long that the disk, or this thread, must hang. Retries are progress."""
        return not self._busy or self.trouble is not None or time.monotonic() - self._began_at < HANG_S

    async def close(self) -> None:
        """Commit what was put, within a time limit, and end the thread. What did not fit was never announced."""
        if not self._thread.is_alive():
            return
        if self.pending and self.trouble is None:
            self._idle = self._loop.create_future()
            self._schedule(now=True)
            await asyncio.wait({self._idle}, timeout=CLOSE_TIMEOUT_S)
        self._ending.set()
        self._handed.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_TIMEOUT_S)

    def _schedule(self, *, now: bool = False) -> None:
        """Hand the group over at the end of this turn, or when the interval since the last commit is over."""
        if self._busy or not self._thread.is_alive():
            return
        full = len(self._group) >= MAX_GROUP_WORKS or self._group_bytes >= MAX_GROUP_BYTES
        wait_s = self._began_at + self._interval_s - time.monotonic()
        if self._scheduled is not None:
            self._scheduled.cancel()
        if now or full or wait_s <= 0:
            self._scheduled = self._loop.call_soon(self._hand_over)
        else:
            self._scheduled = self._loop.call_later(wait_s, self._hand_over)

    def _hand_over(self) -> None:
        self._scheduled = None
        if self._busy or not self._group:
            return
        group, self._group = self._group, []
        self._busy_bytes, self._group_bytes = self._group_bytes, 0
        self._busy = True
        self.ticket += 1
        self._began_at = time.monotonic()
        self._handed.put(group)

    def _on_commit(self, group: Group, results: list[Any], used_bytes: int, free: int, changed: bool) -> None:
        """The thread's news, on the loop: the group is on disk."""
        self.used_bytes, self.free_bytes = used_bytes, free
        self._busy = False
        self.committed = self.ticket - 1
        self.waiting_bytes -= self._busy_bytes
        self._busy_bytes = 0
        self.commits += changed
        self.works += len(group)
        if self._group:
            self._schedule(now=self._idle is not None)
        for (_, then), result in zip(group, results, strict=True):
            if then is not None and result is not _FAILED:
                then(result)
        self._settled()
        if self._idle is not None and not self.pending and not self._idle.done():
            self._idle.set_result(None)

    def _on_trouble(self, trouble: Trouble | None) -> None:
        self.trouble = trouble
        if trouble is not None and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)  # the end does not wait for a disk that does not write
        self._troubled()

    # the thread

    def _run(self) -> None:
        db: sqlite3.Connection | None = None
        while (group := self._handed.get()) is not None:
            told: Trouble | None = None
            while not self._ending.is_set() or told is None:
                began = time.monotonic()
                try:
                    db = db or connect(self._path)
                    before = db.total_changes
                    results = _commit(db, group)
                    changed = db.total_changes != before
                    used_bytes, free = _used_bytes(db), free_bytes(self._path.parent)
                except sqlite3.Error as error:
                    trouble = trouble_of(error) or Trouble.IO_ERROR
                    if trouble is not told:
                        log.error("the store cannot commit (%s): %s", trouble, error)  # noqa: TRY400 - tried again
                        self._tell(self._on_trouble, trouble)
                    told = trouble
                    _close(db)
                    db = None
                    if trouble is Trouble.DAMAGED:
                        return
                    self._ending.wait(RETRY_S)
                    continue
                self.commit_s += time.monotonic() - began
                if told is not None:
                    log.warning("the store commits again")
                    self._tell(self._on_trouble, None)
                self._tell(self._on_commit, group, results, used_bytes, free, changed)
                break
        _close(db)

    def _tell(self, news: Callable[..., None], *facts: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(news, *facts)
        except RuntimeError:  # the loop is closed: nobody is left to be told
            self._ending.set()


_FAILED: Final = object()  # the result of a work that was set aside


def _commit(db: sqlite3.Connection, group: Group) -> list[Any]:
    """One transaction with everything in it; when one work fails by itself, everything but that one."""
    try:
        return _transaction(db, [work for work, _ in group])
    except sqlite3.Error as error:
        if trouble_of(error) is not None:
            raise
    except Exception:
        log.debug("a work of the store failed", exc_info=True)
    return _transaction(db, [_apart(work) for work, _ in group])


def _transaction(db: sqlite3.Connection, works: list[Work]) -> list[Any]:
    db.execute("BEGIN IMMEDIATE")
    try:
        results = [work(db) for work in works]
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return results


def _apart(work: Work) -> Work:
    """The same work, in a savepoint of its own, so that its own fault stays its own."""

    def run(db: sqlite3.Connection) -> Any:
        db.execute("SAVEPOINT one")
        try:
            result = work(db)
        except Exception as error:
            if isinstance(error, sqlite3.Error) and trouble_of(error) is not None:
                raise
            log.exception("the store could not do one work; what waits for it is not acknowledged")
            db.execute("ROLLBACK TO one")
            result = _FAILED
        db.execute("RELEASE one")
        return result

    return run


def _used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of pages that hold something; what is left over of deleted messages is given back to the disk slowly."""
    pages, unused, size = db.execute(_PAGES).fetchone()
    if unused > VACUUM_PAGES and unused > pages // 2:
        db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
    return int((pages - unused) * size)


def _close(db: sqlite3.Connection | None) -> None:
    if db is not None:
        try:
            db.close()
        except sqlite3.Error:
            log.debug("closing the store failed", exc_info=True)
