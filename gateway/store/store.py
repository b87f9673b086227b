"""The store as a whole: opened once, its writer, and whether there is room.

Room is judged in bytes: what the file's used pages and the works not yet committed come to must stay below `max_bytes`,
and the file system's free bytes above `min_free_bytes`. While there is none, or while nothing can be committed,
`accepting` is False: whoever would have to acknowledge a message then withholds the acknowledgement.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from gateway.store.database import Opened, check, mark_damaged, open_database, put_aside
from gateway.store.place import check_place, free_bytes
from gateway.store.schema import Damaged
from gateway.store.writer import Trouble, Writer, trouble_of
from mtls.errors import Fault

RESUME_PERCENT: Final = 98  # of max_bytes: below it there is room again, so that the answer does not flap
MEASURE_S: Final = 0.5  # how often the room is measured while nothing is written

T = TypeVar("T")

log = logging.getLogger("mqtt_gateway.store")


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Where the store lies and what it may take: [store] of the configuration."""

    path: Path
    max_bytes: int
    min_free_bytes: int
    commit_interval_s: float
    allow_volatile: bool


class Store:
    """An open store. `load` first, then `start` on the running loop."""

    def __init__(self, limits: StoreLimits, opened: Opened, warnings: list[str]) -> None:
        self.limits = limits
        self.warnings = warnings
        self.set_aside = opened.set_aside
        self.set_aside_why = opened.why
        self.accepting = True
        self.used_bytes = 0
        self.damaged = ""
        self._opened: Opened = opened
        self._settled: Callable[[], None] = lambda: None
        self._check: asyncio.Task[None] | None = None
        self._measured_at = 0.0
        self._measure(opened.db)
        self.writer = Writer(
            limits.path, interval_s=limits.commit_interval_s, settled=self._on_commit, troubled=self._judge
        )

    @classmethod
    def open(cls, limits: StoreLimits, now: datetime) -> Store:
        """Open or make the store; ConfigFault when it may not lie there, Fault when it cannot be opened."""
        warnings = check_place(limits.path, allow_volatile=limits.allow_volatile)
        return cls(limits, open_database(limits.path, now), warnings)

    def load(self, work: Callable[[sqlite3.Connection], T], now: datetime) -> T:
        """Read what is there, before `start` and once for all parts: a file that cannot be read is set aside."""
        try:
            return work(self._opened.db)
        except (sqlite3.Error, Damaged) as error:
            if isinstance(error, sqlite3.Error) and trouble_of(error) not in (None, Trouble.DAMAGED):
                raise Fault(f"cannot read the store {self.limits.path}: {error}") from error
            self._opened.db.close()
            self._opened.lock.close()
            self.set_aside, self.set_aside_why = put_aside(self.limits.path, now, str(error)), str(error)
            self._opened = open_database(self.limits.path, now)
            return work(self._opened.db)

    def start(self, settled: Callable[[], None]) -> None:
        """Begin to write; `settled` is called after each commit and whenever `accepting` may have changed."""
        self._opened.db.close()
        self._settled = settled
        self.writer.start()
        self._check = asyncio.get_running_loop().create_task(self._check_all())

    async def close(self) -> None:
        """Commit what was put and close the file."""
        await self.writer.close()
        if self._check is not None:
            self._check.cancel()
            await asyncio.gather(self._check, return_exceptions=True)
        self._opened.db.close()
        self._opened.lock.close()

    def spend(self, size: int) -> None:
        """Tell of bytes that a work just put will write."""
        self.writer.weigh(size)
        if self.used_bytes + self.writer.waiting_bytes >= self.limits.max_bytes:
            self.accepting = False

    def measure(self) -> None:
        """Have the room measured while nothing is written; called on a clock, harmless at any rate."""
        now = time.monotonic()
        if not self.writer.pending and now - self._measured_at >= MEASURE_S:
            self._measured_at = now
            self.writer.put(lambda db: None)

    @property
    def missing_bytes(self) -> int:
        """How many bytes must go before there is room by the bound of `max_bytes`."""
        return max(0, self.used_bytes + self.writer.waiting_bytes - self.limits.max_bytes * RESUME_PERCENT // 100)

    def report(self) -> dict[str, Any]:
        """Figures of the store."""
        writer = self.writer
        return {
            "path": str(self.limits.path),
            "accepting": self.accepting,
            "trouble": str(writer.trouble or ""),
            "damaged": self.damaged,
            "set_aside": str(self.set_aside or ""),
            "used_bytes": self.used_bytes,
            "max_bytes": self.limits.max_bytes,
            "free_bytes": writer.free_bytes,
            "min_free_bytes": self.limits.min_free_bytes,
            "waiting_bytes": writer.waiting_bytes,
            "commits": writer.commits,
            "works": writer.works,
            "commit_s": round(writer.commit_s, 3),
        }

    def _measure(self, db: sqlite3.Connection) -> None:
        ((pages,), (unused,), (size,)) = (
            db.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count", "page_size")
        )
        self.used_bytes = (pages - unused) * size
        free = free_bytes(self.limits.path.parent)
        self.accepting = self.used_bytes < self.limits.max_bytes and free >= self.limits.min_free_bytes

    def _on_commit(self) -> None:
        self.used_bytes = self.writer.used_bytes
        self._judge()

    def _judge(self) -> None:
        writer, limits = self.writer, self.limits
        bound = limits.max_bytes if self.accepting else limits.max_bytes * RESUME_PERCENT // 100
        room = self.used_bytes + writer.waiting_bytes < bound and writer.free_bytes >= limits.min_free_bytes
        accepting = room and writer.trouble is None
        if accepting is not self.accepting:
            log.warning("the store %s", "has room again" if accepting else f"has no room: {self._why()}")
        self.accepting = accepting
        if writer.trouble is Trouble.DAMAGED and not self.damaged:
            self._found_damaged("a page cannot be read")
        self._settled()

    def _why(self) -> str:
        writer, limits = self.writer, self.limits
        return str(
            writer.trouble
            or f"{self.used_bytes} of {limits.max_bytes} bytes used, {writer.free_bytes} free on the disk,"
            f" floor {limits.min_free_bytes}"
        )

    async def _check_all(self) -> None:
        why = await asyncio.to_thread(check, self.limits.path)
        if why:
            self._found_damaged(why)
            self._settled()

    def _found_damaged(self, why: str) -> None:
        self.damaged = why
        try:
            mark_damaged(self.limits.path, why)
        except OSError as error:
            log.error("the damaged store cannot be marked: %s", error.strerror)  # noqa: TRY400 - nothing to trace
