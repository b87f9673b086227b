"""The ledger's SQLite file: making it, opening it, transactions, and SQLite's errors as faults of ours.

WAL mode with `synchronous=FULL` and foreign keys: a write that returns is on disk. A missing, foreign,
corrupt or newer file is a fault, one of the version before is migrated. Opening never makes one, because an empty
ledger in the place of a lost one would hand out keys and certificate serials a second time.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from mtls.errors import Fault
from provisioning.ledger_migration import is_old, migrate
from provisioning.ledger_schema import APPLICATION_ID, MIGRATES_FROM, SCHEMA, SCHEMA_VERSION, Event, Unit

BUSY_TIMEOUT_S = 10.0  # another station's commit takes milliseconds; longer means a program that hangs


class LedgerFault(Fault):
    """The ledger cannot be read or written."""


def utc_now() -> datetime:
    """The system's clock; the callers that must doubt it do so before they come here."""
    return datetime.now(UTC)


def as_text(moment: datetime) -> str:
    """ISO 8601 in UTC to the microsecond, in one width, so that text order is time order."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def as_moment(text: str) -> datetime:
    """What `as_text` wrote."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def chained(before: str, row: Sequence[object]) -> str:
    """The digest that an event carries: of the event before it and of its own columns."""
    return hashlib.sha256(f"{before}\n{json.dumps(list(row))}".encode()).hexdigest()


def columns(row_type: type) -> str:
    """A row type's fields as a SELECT list; rows are read in the order of their dataclass."""
    return ", ".join(field.name for field in fields(row_type))


class LedgerFile:
    """An open ledger file; use as a context manager or close it. Not shared between threads."""

    def __init__(self, connection: sqlite3.Connection, path: Path, clock: Callable[[], datetime]) -> None:
        self._connection = connection
        self._clock = clock
        self.path = path

    @classmethod
    def create(cls, path: Path, *, clock: Callable[[], datetime] = utc_now) -> Self:
        """Make a new, empty ledger with mode 0600; an existing file is a fault and stays as it is."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
        except FileExistsError:
            raise LedgerFault(f"{path} exists already", hint="use it, or choose another folder") from None
        except OSError as error:
            raise LedgerFault(f"cannot make the ledger {path}: {error.strerror}") from None
        connection: sqlite3.Connection | None = None
        try:
            with _faults(path):
                connection = _connect(path)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(
                    f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; "
                    f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
        except LedgerFault:
            if connection is not None:
                connection.close()
            for leftover in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                leftover.unlink(missing_ok=True)
            raise
        return cls(connection, path, clock)

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], datetime] = utc_now) -> Self:
        """Open an existing ledger, and take over one of the version before.

        Missing, foreign, corrupt or of a newer program is a fault.
        """
        if not path.is_file():
            raise LedgerFault(f"there is no ledger at {path}", hint="make a CA first: mqtt-provision ca init --dir CA")
        connection: sqlite3.Connection | None = None
        try:
            with _faults(path):
                connection = _connect(path)
                _check_schema(connection, path)
                connection.execute("PRAGMA journal_mode = WAL")
                ledger = cls(connection, path, clock)
                if is_old(connection):
                    ledger._migrate()
        except LedgerFault:
            if connection is not None:
                connection.close()
            raise
        return ledger

    def _migrate(self) -> None:
        self._connection.execute("PRAGMA foreign_keys = OFF")  # has no effect inside a transaction
        try:
            with self._write() as db:
                if is_old(db):
                    migrate(db)
                    self._note(db, "ledger_migrated", facts={"from": MIGRATES_FROM, "to": SCHEMA_VERSION})
        finally:
            self._connection.execute("PRAGMA foreign_keys = ON")

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def copy_to(self, path: Path) -> None:
        """Copy the whole ledger into a new file, as it stands at one moment, while others write."""
        with _faults(self.path):
            copy = sqlite3.connect(path)
            try:
                self._connection.backup(copy)
            finally:
                copy.close()

    def integrity_problems(self) -> list[str]:
        """What SQLite itself finds wrong with the file."""
        wrong = [str(row[0]) for row in self._read("PRAGMA integrity_check") if row[0] != "ok"]
        wrong += [f"a row of {row[0]} refers to nothing" for row in self._read("PRAGMA foreign_key_check")]
        return wrong

    def note(self, kind: str, *, unit: Unit | None = None, facts: Mapping[str, object] = {}) -> None:
        """Append an event; never give it key material or raw peer text."""
        with self._write() as db:
            self._note(db, kind, unit_id=None if unit is None else unit.id, facts=facts)

    def _note(
        self,
        db: sqlite3.Connection,
        kind: str,
        *,
        unit_id: int | None = None,
        certificate_id: int | None = None,
        facts: Mapping[str, object] = {},
    ) -> None:
        detail = json.dumps(facts, default=str) if facts else ""
        last = db.execute("SELECT id, chain FROM events ORDER BY id DESC LIMIT 1").fetchone() or (0, "")
        row = (last[0] + 1, as_text(self._clock()), kind, unit_id, certificate_id, detail)
        db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, chained(last[1], row)))

    def events(self, *, unit: Unit | None = None) -> list[Event]:
        """The history, oldest first, of one unit or of all."""
        where, values = ("", ()) if unit is None else ("WHERE unit_id = ?", (unit.id,))
        query = f"SELECT {columns(Event)} FROM events {where} ORDER BY id"  # noqa: S608
        return [Event(*row) for row in self._read(query, *values)]

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with _faults(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One IMMEDIATE transaction: all or nothing, on disk when it returns."""
        with _faults(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise LedgerFault(f"{path} is not a ledger of this program", hint="name the CA's folder with --dir")
    if version > SCHEMA_VERSION:
        raise LedgerFault(
            f"{path} has schema version {version}, this program knows up to {SCHEMA_VERSION}",
            hint="install the newer mqtt-provision that wrote it",
        )
    if version < MIGRATES_FROM:
        raise LedgerFault(
            f"{path} has schema version {version} of a program that was never released",
            hint="use the program that made it, or make a new CA",
        )
    if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        raise sqlite3.DatabaseError("quick_check failed")


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """The one place that turns SQLite's errors into faults of ours."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise LedgerFault(f"the ledger {path} refuses the row: {error}") from None
    except sqlite3.OperationalError as error:
        text = str(error)
        hint = "free space on the disk, then repeat the command" if "full" in text or "I/O" in text else ""
        if "locked" in text:
            hint = "another program holds the ledger: wait for it, then repeat the command"
        raise LedgerFault(f"cannot use the ledger {path}: {text}", hint=hint) from None
    except sqlite3.DatabaseError:
        raise LedgerFault(
            f"the ledger {path} is corrupt",
            hint="set it aside and restore the last backup: a new one would repeat serials and keys",
        ) from None
