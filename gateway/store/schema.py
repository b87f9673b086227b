"""The tables of the store, as ordered steps: a file of an older program is brought up to date when it is opened.

A step that was released never changes; a new need is a new step at the end. The version stands twice, in the file's
header and in a table, so that a damaged header is not taken for a newer program's file.

Why one table of deliveries: its key (session, message) is the queue's order, because messages are numbered as they
arrive, and a message goes to a session once. The body stands once in `messages`, however many sessions want it.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from mtls.errors import ConfigFault

APPLICATION_ID: Final = 0x6D677731  # "mgw1"

_FIRST: Final = """
CREATE TABLE schema_version (version INTEGER NOT NULL) STRICT;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    identity TEXT NOT NULL,
    client_id TEXT NOT NULL,
    leaf_der BLOB NOT NULL,
    offline_s INTEGER NOT NULL DEFAULT 0,
    UNIQUE (identity, client_id)
) STRICT;
CREATE TABLE subscriptions (
    session INTEGER NOT NULL,
    topic_filter TEXT NOT NULL,
    qos INTEGER NOT NULL,
    PRIMARY KEY (session, topic_filter)
) STRICT, WITHOUT ROWID;
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    topic BLOB NOT NULL,
    payload BLOB NOT NULL,
    qos INTEGER NOT NULL,
    droppable INTEGER NOT NULL
) STRICT;
CREATE INDEX messages_droppable ON messages (id) WHERE droppable;
CREATE TABLE deliveries (
    session INTEGER NOT NULL,
    message INTEGER NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL,
    packet_id INTEGER NOT NULL,
    released INTEGER NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (session, message)
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_message ON deliveries (message);
CREATE TABLE received (
    session INTEGER NOT NULL,
    packet_id INTEGER NOT NULL,
    PRIMARY KEY (session, packet_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE retained (
    topic TEXT PRIMARY KEY,
    payload BLOB NOT NULL,
    qos INTEGER NOT NULL
) STRICT;
CREATE TABLE wills (
    id INTEGER PRIMARY KEY,
    client_id TEXT NOT NULL,
    leaf_der BLOB NOT NULL,
    topic TEXT NOT NULL,
    payload BLOB NOT NULL,
    qos INTEGER NOT NULL,
    retain INTEGER NOT NULL
) STRICT;
CREATE TABLE forgotten (session INTEGER PRIMARY KEY) STRICT;
"""

# Messages for the upstream. `size` has an index so that all of them are counted without reading the rows.
_UPLINK: Final = """
CREATE TABLE uplink (
    id INTEGER PRIMARY KEY,
    device_id TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    time_us INTEGER NOT NULL,
    time_state TEXT NOT NULL,
    topic TEXT NOT NULL,
    remote TEXT NOT NULL,
    payload BLOB NOT NULL,
    size INTEGER NOT NULL
) STRICT;
CREATE INDEX uplink_size ON uplink (size);
"""

# For whose share a retained message counts; nobody's where it was kept by a program that did not note it.
_WRITER: Final = "ALTER TABLE retained ADD COLUMN writer TEXT NOT NULL DEFAULT '';"

STEPS: Final[tuple[str, ...]] = (_FIRST, _UPLINK, _WRITER)


class Damaged(Exception):
    """The file cannot be what this program wrote."""


def migrate(db: sqlite3.Connection, name: str) -> None:
    """Bring an open database up to date, each step in one transaction.

    ConfigFault when a newer program wrote it, Damaged when its header and its tables contradict each other.
    """
    version = _version(db)
    if version > len(STEPS):
        raise ConfigFault(
            f"{name} has schema {version}, and this version of the gateway knows schema {len(STEPS)}",
            hint="install the version that wrote it, or restore a backup: mqtt-gateway store restore --help",
        )
    for number, step in enumerate(STEPS[version:], version + 1):
        stamp = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        told = f"DELETE FROM schema_version; INSERT INTO schema_version VALUES ({number});"  # noqa: S608 - a number
        db.executescript(f"BEGIN IMMEDIATE; {step} {told} {stamp} COMMIT;")


def _version(db: sqlite3.Connection) -> int:
    (header,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not header and not tables:
        return 0
    try:
        (stated,) = db.execute("SELECT version FROM schema_version").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
    except (sqlite3.OperationalError, TypeError) as error:
        raise Damaged("it has no schema version") from error
    if stated != header or application != APPLICATION_ID:
        raise Damaged(f"its header says schema {header} of {application:#x}, its table {stated!a}")
    return int(header)
