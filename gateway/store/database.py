"""The store's file: made, opened, locked, checked and, when it cannot be read, set aside.

`open_database` never fails on what stands in the file: a damaged one is renamed to `*.corrupt-<time>`, with its WAL, so
that what is in it can still be looked at, and an empty one takes its place. It fails on what an operator must decide:
a folder that cannot be written, a file of a newer program, a second gateway on the same file.

The whole file is checked after the start, beside the service (`check`), because that takes as long as the file is
large. What it finds damaged is marked, and set aside at the next start.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Final

from gateway.store.schema import Damaged, migrate
from gateway.store.writer import Trouble, connect, trouble_of
from mtls.errors import ConfigFault, Fault

SUFFIXES: Final = ("", "-wal", "-shm")
MARK_SUFFIX: Final = ".damaged"  # a file of this name beside the store: set it aside at the next start

log = logging.getLogger("mqtt_gateway.store")


@dataclass(frozen=True, slots=True)
class Opened:
    """A database that can be written, and what became of the one before it."""

    db: sqlite3.Connection
    lock: IO[bytes]
    set_aside: Path | None
    why: str


def open_database(path: Path, now: datetime) -> Opened:
    """Open the store at `path`, made when missing, up to date and locked against a second gateway."""
    lock = locked(path)
    try:
        set_aside, why = None, marked(path)
        if why:
            set_aside = put_aside(path, now, why)
        try:
            db = _open(path)
        except (sqlite3.Error, Damaged) as error:
            if isinstance(error, sqlite3.Error) and not _is_damage(error):
                raise Fault(f"cannot open the store {path}: {error}", hint="is the file system writable?") from error
            why = str(error)
            set_aside = put_aside(path, now, why)
            db = _open(path)
    except BaseException:
        lock.close()
        raise
    return Opened(db, lock, set_aside, why)


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether an error while opening lies in the file: SQLite says so, or cannot do with it what it must.

    Read-only as well: the lock beside it could be written, so it is the file's header that forbids it.
    """
    return trouble_of(error) in (None, Trouble.DAMAGED, Trouble.READ_ONLY)


def _open(path: Path) -> sqlite3.Connection:
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        with closing(sqlite3.connect(path, isolation_level=None)) as fresh:
            fresh.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only possible before the first table
            fresh.execute("VACUUM")
        sync_folder(path.parent)
    db = connect(path)
    try:
        migrate(db, str(path))
        db.execute("UPDATE schema_version SET version = version")  # a first commit: can it be written?
    except BaseException:
        db.close()
        raise
    return db


def locked(path: Path) -> IO[bytes]:
    """The lock that says that this file has its gateway; held until it is closed."""
    name = Path(f"{path}.lock")
    try:
        lock = os.fdopen(os.open(name, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "r+b")
    except OSError as error:
        raise ConfigFault(
            f"[store] path = {str(path)!a}: cannot write {name}: {error.strerror}",
            hint=f"make the folder, writable for the gateway's user: install -d -m 0700 {path.parent}",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise Fault(f"another program has the store {path} open", hint="is the gateway running already?") from error
    return lock


def put_aside(path: Path, now: datetime, why: str) -> Path:
    """Rename a damaged store with its WAL; the name it has now."""
    aside = Path(f"{path}.corrupt-{now.strftime('%Y%m%dT%H%M%S.%fZ')}")
    for suffix in SUFFIXES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    Path(f"{path}{MARK_SUFFIX}").unlink(missing_ok=True)
    sync_folder(path.parent)
    log.error("the store was damaged (%s) and is set aside as %s; an empty one takes its place", why, aside)
    return aside


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mark_damaged(path: Path, why: str) -> None:
    """Have the store set aside at the next start."""
    mark = Path(f"{path}{MARK_SUFFIX}")
    mark.write_text(why + "\n", encoding="utf-8")
    log.error("the store %s is damaged (%s); it is set aside at the next start", path, why)


def marked(path: Path) -> str:
    """Why the store is to be set aside, or nothing."""
    try:
        return Path(f"{path}{MARK_SUFFIX}").read_text(encoding="utf-8", errors="replace")[:200].strip() or "marked"
    except FileNotFoundError:
        return ""


def check(path: Path) -> str:
    """Read the whole file; what is wrong with it, or nothing. Takes as long as the file is large."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as db:
            rows = db.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.Error as error:
        return str(error) if _is_damage(error) else ""
    return "" if rows == [("ok",)] else str(rows[0][0])[:200]
