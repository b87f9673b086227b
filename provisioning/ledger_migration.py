"""Taking over a ledger of the schema before: the same rows under the constraints of today.

A constraint cannot be changed in place, so a table whose constraint grew is built anew and filled from the old one
(SQLite's own procedure, https://sqlite.org/lang_altertable.html#otheralter). The caller holds the transaction: all of
it is on disk or nothing is, and the history's chain goes on unbroken. It refuses rows that refer to nothing.
"""

import sqlite3

from provisioning.ledger_schema import MIGRATES_FROM, SCHEMA, SCHEMA_VERSION

REBUILT = ("units", "attempts")  # version 3: the state and the outcome `delivered`


def is_old(db: sqlite3.Connection) -> bool:
    """Whether the file has the version before; judged again under the write lock, for another may have migrated it."""
    return bool(db.execute("PRAGMA user_version").fetchone()[0] == MIGRATES_FROM)


def migrate(db: sqlite3.Connection) -> None:
    """Bring the tables to the schema of this program, inside the caller's transaction and with foreign keys off."""
    wanted = _new_schema()
    for kind, name in _objects(db):
        if kind != "table":
            db.execute(f"DROP {kind} {name}")
    for table in REBUILT:
        names = ", ".join(row[1] for row in db.execute(f"PRAGMA table_info({table})"))
        db.execute(wanted["table", table].replace(f"CREATE TABLE {table} ", f"CREATE TABLE {table}_new ", 1))
        db.execute(f"INSERT INTO {table}_new ({names}) SELECT {names} FROM {table}")  # noqa: S608
        db.execute(f"DROP TABLE {table}")
        db.execute(f"ALTER TABLE {table}_new RENAME TO {table}")
    for (kind, _), sql in wanted.items():
        if kind != "table":
            db.execute(sql)
    if db.execute("PRAGMA foreign_key_check").fetchone() is not None:
        raise sqlite3.DatabaseError("a row refers to nothing")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _new_schema() -> dict[tuple[str, str], str]:
    empty = sqlite3.connect(":memory:")
    try:
        empty.executescript(SCHEMA)
        rows = empty.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    finally:
        empty.close()
    return {(kind, name): sql for kind, name, sql in rows}


def _objects(db: sqlite3.Connection) -> list[tuple[str, str]]:
    return db.execute("SELECT type, name FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
