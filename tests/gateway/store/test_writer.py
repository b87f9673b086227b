"""The writer: what is announced is on disk, in order, and no failure loses what was put."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.store.database import open_database
from gateway.store.statements import insert_rows
from gateway.store.writer import Trouble, Writer

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty store."""
    opened = open_database(tmp_path / "gateway.db", NOW)
    opened.db.execute("CREATE TABLE probe (n INTEGER PRIMARY KEY, body BLOB)")
    opened.db.close()
    opened.lock.close()
    return tmp_path / "gateway.db"


@asynccontextmanager
async def writing(path: Path, **options: Any) -> AsyncIterator[Writer]:
    writer = Writer(path, interval_s=0.0, **options)
    writer.start()
    try:
        yield writer
    finally:
        await writer.close()


def insert(*numbers: int, body: bytes = b"") -> Callable[[sqlite3.Connection], list[int]]:
    def work(db: sqlite3.Connection) -> list[int]:
        insert_rows(db, "probe", 2, [value for n in numbers for value in (n, body)])
        return list(numbers)

    return work


def stored(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as db:
        return [n for (n,) in db.execute("SELECT n FROM probe ORDER BY n")]


def scribble(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[4096 * 3 :] = b"\xff" * (len(damaged) - 4096 * 3)
    path.write_bytes(damaged)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is the thread's news
            await asyncio.sleep(0.005)


def test_what_is_announced_is_on_disk_and_in_order(path: Path) -> None:
    """Each announcement finds its own row in the file, seen by another connection, and none is out of order."""
    seen: list[int] = []

    async def run() -> None:
        def then(result: list[int]) -> None:
            assert result[0] in stored(path)
            seen.extend(result)

        async with writing(path) as writer:
            for n in range(50):
                ticket = writer.put(insert(n), then)
                if n % 7 == 0:
                    await asyncio.sleep(0)
            await until(lambda: writer.committed >= ticket)

    asyncio.run(run())
    assert seen == list(range(50))


def test_works_of_one_turn_share_a_commit(path: Path) -> None:
    """A thousand works put at once cost a handful of commits."""

    async def run() -> int:
        async with writing(path) as writer:
            for n in range(1000):
                writer.put(insert(n))
            await until(lambda: not writer.pending)
            return writer.commits

    assert asyncio.run(run()) <= 2
    assert stored(path) == list(range(1000))


def test_a_full_disk_withholds_and_then_everything_goes_through(path: Path) -> None:
    """SQLITE_FULL is told as trouble, nothing is announced, and the same works are committed when there is room."""
    troubles: list[Trouble | None] = []

    async def run() -> None:
        async with writing(path, troubled=lambda: troubles.append(writer.trouble)) as writer:
            writer.put(lambda db: db.execute("PRAGMA max_page_count = 30"))  # of this connection only
            await until(lambda: not writer.pending)
            announced: list[int] = []
            for n in range(10):
                writer.put(insert(n, body=bytes(40_000)), announced.extend)
            await until(lambda: bool(troubles))
            assert announced == []
            await until(lambda: not writer.pending)
            assert announced == list(range(10))

    asyncio.run(run())
    assert troubles == [Trouble.DISK_FULL, None]
    assert stored(path) == list(range(10))


def test_a_read_only_file_withholds_and_then_everything_goes_through(path: Path) -> None:
    """SQLITE_READONLY is told as trouble; the same works are committed when the file can be written again."""
    troubles: list[Trouble | None] = []

    async def run() -> None:
        async with writing(path, troubled=lambda: troubles.append(writer.trouble)) as writer:
            writer.put(lambda db: db.execute("PRAGMA query_only = 1"))  # of this connection only
            await until(lambda: not writer.pending)
            announced: list[int] = []
            writer.put(insert(1), announced.extend)
            await until(lambda: announced == [1])

    asyncio.run(run())
    assert troubles == [Trouble.READ_ONLY, None]
    assert stored(path) == [1]


def test_one_work_that_fails_by_itself_harms_no_other(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its announcement never comes, its rows are not there, and its neighbours' are."""
    announced: list[int] = []

    def broken(db: sqlite3.Connection) -> None:
        insert(99)(db)
        raise ValueError("a fault of this work")

    async def run() -> None:
        async with writing(path) as writer:
            writer.put(insert(1), announced.extend)
            writer.put(broken, lambda _: announced.append(99))
            writer.put(insert(2), announced.extend)
            await until(lambda: not writer.pending)

    asyncio.run(run())
    assert announced == [1, 2]
    assert stored(path) == [1, 2]
    assert "could not do one work" in caplog.text


def test_a_read_sees_everything_put_before_it(path: Path) -> None:
    """Reading is a work like any other."""
    found: list[int] = []

    async def run() -> None:
        async with writing(path) as writer:
            writer.put(insert(*range(300)))
            writer.put(lambda db: db.execute("SELECT count(*) FROM probe").fetchone()[0], found.append)
            await until(lambda: bool(found))

    asyncio.run(run())
    assert found == [300]


def test_a_damaged_file_is_told_and_nothing_more_is_committed(path: Path) -> None:
    """Damage is not tried again: it is for the next start to mend."""

    async def run() -> None:
        async with writing(path) as writer:
            writer.put(insert(*range(2000), body=bytes(100)))
            await until(lambda: not writer.pending)
        scribble(path)
        async with writing(path) as writer:
            writer.put(lambda db: db.execute("SELECT sum(length(body)) FROM probe").fetchall())
            await until(lambda: writer.trouble is Trouble.DAMAGED)
            assert writer.commits == 0

    asyncio.run(run())
