"""The store's file: made, locked, brought up to date, and set aside when it cannot be read."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.store import database
from gateway.store.database import check, mark_damaged, open_database
from gateway.store.statements import insert_rows
from mtls.errors import ConfigFault, Fault

NOW = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
FLIPS = 100  # bytes flipped one at a time, sampled over the whole file


def opened_and_closed(path: Path) -> Path | None:
    """Open the store, read every table, close it; what was set aside."""
    opened = open_database(path, NOW)
    opened.db.close()
    opened.lock.close()
    return opened.set_aside


def filled(path: Path) -> bytes:
    """A store with a few hundred messages, checkpointed; its bytes."""
    opened_and_closed(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        rows = [value for n in range(1, 400) for value in (n, b"devices/a", bytes(150), 1, 0)]
        insert_rows(db, "messages", 5, rows)
        insert_rows(db, "deliveries", 7, [v for n in range(1, 400) for v in (1, n, 1, 0, 0, 0, 200)])
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


def test_a_new_store_is_private_and_durable(tmp_path: Path) -> None:
    """Mode 0600, WAL, and every commit synchronous."""
    opened = open_database(tmp_path / "gateway.db", NOW)
    with opened.lock, closing(opened.db) as db:
        assert (tmp_path / "gateway.db").stat().st_mode & 0o777 == 0o600
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        assert db.execute("PRAGMA auto_vacuum").fetchone() == (2,)


def test_a_second_gateway_on_the_same_file_is_refused(tmp_path: Path) -> None:
    """Two writers would each acknowledge what the other does not know."""
    first = open_database(tmp_path / "gateway.db", NOW)
    with pytest.raises(Fault, match="another program has the store"):
        open_database(tmp_path / "gateway.db", NOW)
    first.db.close()
    first.lock.close()
    assert opened_and_closed(tmp_path / "gateway.db") is None


def test_a_store_of_a_newer_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Its schema is named, and its bytes stay as they are."""
    path = tmp_path / "gateway.db"
    opened_and_closed(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE schema_version SET version = 99")
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigFault, match="has schema 99, and this version of the gateway knows schema"):
        open_database(path, NOW)
    assert opened_is_there(path)


def opened_is_there(path: Path) -> bool:
    return path.exists() and not list(path.parent.glob("*.corrupt-*"))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The fault says what to make."""
    with pytest.raises(ConfigFault, match="cannot write") as fault:
        open_database(tmp_path / "none" / "gateway.db", NOW)
    assert "install -d" in fault.value.hint


@pytest.mark.parametrize("content", [b"", b"not a database " * 500], ids=["empty", "text"])
def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, content: bytes) -> None:
    """D6: what stood there is kept under another name; an empty file is simply a new store."""
    path = tmp_path / "gateway.db"
    path.write_bytes(content)
    aside = opened_and_closed(path)
    assert (aside is not None) == bool(content)
    if aside is not None:
        assert aside.read_bytes() == content
        assert aside.name == "gateway.db.corrupt-20260101T123000.000000Z"
    assert check(path) == ""


def test_a_flipped_byte_never_stops_the_start(tmp_path: Path) -> None:
    """D6: bytes sampled over the whole file, the header's every one among them; the open file can be written."""
    path = tmp_path / "gateway.db"
    whole = filled(path)
    chosen = random.Random(5)  # noqa: S311 - a sample
    for position in [*range(100), *(chosen.randrange(100, len(whole)) for _ in range(FLIPS))]:
        for leftover in tmp_path.iterdir():
            leftover.unlink()
        flipped = bytearray(whole)
        flipped[position] ^= 1 << chosen.randrange(8)
        path.write_bytes(flipped)
        opened = open_database(path, NOW)
        with opened.lock, closing(opened.db) as db:
            try:
                insert_rows(db, "retained", 4, ["a/b", b"x", 0, "dev-a"])
            except sqlite3.DatabaseError:
                assert opened.set_aside is None  # not seen while opening: the writer tells it, the check finds it
                assert check(path)


def test_what_the_check_finds_is_set_aside_at_the_next_start(tmp_path: Path) -> None:
    """D6: the check runs beside the service; its mark is what the next start goes by."""
    path = tmp_path / "gateway.db"
    whole = bytearray(filled(path))
    whole[-8192:-4096] = bytes(range(256)) * 16
    path.write_bytes(whole)
    why = check(path)
    assert why
    mark_damaged(path, why)
    aside = opened_and_closed(path)
    assert aside is not None
    assert aside.read_bytes() == whole
    assert database.marked(path) == ""
    assert opened_and_closed(path) is None


def test_a_truncated_wal_is_no_reason_to_stop(tmp_path: Path) -> None:
    """Commits that the WAL still holds whole are there, the cut one is not, and the start goes on."""
    path = tmp_path / "gateway.db"
    filled(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        for n in range(1000, 1010):
            insert_rows(db, "messages", 5, [n, b"t", bytes(3000), 1, 0])
        copies = {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in ("", "-wal")}
    Path(f"{path}-shm").unlink(missing_ok=True)
    for cut in range(0, len(copies["-wal"]), 997):
        path.write_bytes(copies[""])
        Path(f"{path}-wal").write_bytes(copies["-wal"][:cut])
        opened = open_database(path, NOW)
        with opened.lock, closing(opened.db) as db:
            found = [n for (n,) in db.execute("SELECT id FROM messages WHERE id >= 1000 ORDER BY id")]
        assert opened.set_aside is None
        assert found == list(range(1000, 1000 + len(found)))
