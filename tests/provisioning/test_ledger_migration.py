"""A ledger of the schema before is taken over whole: rows, history and constraints; and only that one."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioning import ledger_migration
from provisioning.ledger import Counts, Ledger, LedgerFault, UnitState
from provisioning.ledger_schema import MIGRATES_FROM, SCHEMA, SCHEMA_VERSION
from provisioning.records.verify import verify_ledger
from tests.provisioning.test_ledger import KEY_A, KEY_B, brought_to, certify, reserve_unit

# Version 2 word for word: what has grown since is one value in three lists.
OLD_SCHEMA = SCHEMA.replace("'delivered', ", "")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger of version 2 with a finished, a failed and an unfinished unit; the file of the program before."""
    path = tmp_path / "ledger.db"
    with monkeypatch.context() as before:
        before.setattr("provisioning.ledger_file.SCHEMA", OLD_SCHEMA)
        before.setattr("provisioning.ledger_file.SCHEMA_VERSION", MIGRATES_FROM)
        with Ledger.create(path) as ledger:
            brought_to(ledger, UnitState.RECORDED, "1", KEY_A)
            ledger.fail(reserve_unit(ledger, "2"), "keygen", "no answer")
            brought_to(ledger, UnitState.KEYED, "3", KEY_B)
    return path


def rows_of(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with sqlite3.connect(path) as db:
        found = {table: db.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in TABLES}  # noqa: S608
    db.close()
    return found


TABLES = ("units", "attempts", "certificates", "public_keys", "crl_numbers", "events")


def problems_of(ledger: Ledger) -> list[str]:
    """What `ledger verify` finds; the certificates of these tests are no certificates, which it finds as well."""
    return [problem for problem in verify_ledger(ledger).problems if "does not describe" not in problem]


def objects_of(path: Path) -> set[tuple[str, str, str]]:
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    db.close()
    return {(kind, name, sql.replace('"', "")) for kind, name, sql in rows}


def test_the_old_schema_is_an_old_one(old: Path) -> None:
    """The premise: that file refuses the new state by itself."""
    with sqlite3.connect(old) as db, pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        db.execute("UPDATE units SET state = 'delivered' WHERE state = 'keyed'")
    db.close()


def test_every_row_is_taken_over_and_the_history_goes_on(old: Path) -> None:
    """Nothing is changed but one event that says so; its own books agree, and the schema is that of a new file."""
    before = rows_of(old)
    with Ledger.open(old) as ledger:
        assert problems_of(ledger) == []
        assert ledger.counts() == Counts(passed=1, failed=1, open=1)
    after = rows_of(old)
    told = after.pop("events")
    assert (told[:-1], told[-1][2]) == (before.pop("events"), "ledger_migrated")
    assert after == before
    Ledger.create(old.with_name("new.db")).close()
    assert objects_of(old) == objects_of(old.with_name("new.db"))


def test_an_unfinished_unit_goes_on_in_a_migrated_ledger_and_may_be_delivered(old: Path) -> None:
    """Which the old file could not hold; row numbers go on, and a second opening changes nothing."""
    with Ledger.open(old) as ledger:
        (unit,) = ledger.unfinished()
        certify(ledger, key=KEY_B, serial="09", subject=unit.device_id, unit=unit)
        for state in (UnitState.ISSUED, UnitState.WRITTEN, UnitState.DELIVERED):
            unit = ledger.advance(unit, state)
        assert ledger.counts() == Counts(passed=1, delivered=1, failed=1)
        assert reserve_unit(ledger, "4").id == 4
    events = len(rows_of(old)["events"])
    with Ledger.open(old) as ledger:
        assert problems_of(ledger) == []
    assert len(rows_of(old)["events"]) == events


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM units", "DELETE FROM attempts", "UPDATE units SET state = 'keyed' WHERE id = 1",
     "UPDATE attempts SET outcome = 'open', ended_at = NULL WHERE id = 1", "UPDATE units SET state = 'x' WHERE id = 3",
     "INSERT INTO units SELECT 9, hardware_serial, 'u', 'd', station, state, NULL, NULL, '', '', '', '' FROM units"
     " WHERE id = 1"],
)  # fmt: skip
def test_a_migrated_ledger_refuses_what_a_new_one_refuses(old: Path, statement: str) -> None:
    """Triggers, checks and unique indexes are there again."""
    Ledger.open(old).close()
    with sqlite3.connect(old) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute(statement)
    db.close()


def test_a_migration_that_fails_leaves_the_old_file(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction: all or nothing, and the next opening takes it over."""
    whole: Callable[[sqlite3.Connection], None] = ledger_migration.migrate

    def broken(db: sqlite3.Connection) -> None:
        whole(db)
        raise sqlite3.OperationalError("disk full")

    before = rows_of(old)
    with monkeypatch.context() as patched:
        patched.setattr("provisioning.ledger_file.migrate", broken)
        with pytest.raises(LedgerFault, match="disk full"):
            Ledger.open(old)
    assert rows_of(old) == before
    with Ledger.open(old) as ledger:
        assert ledger._read("PRAGMA user_version") == [(SCHEMA_VERSION,)]
        assert ledger._read("PRAGMA foreign_keys") == [(1,)]


def test_a_schema_of_an_unreleased_program_is_refused(old: Path) -> None:
    """The deny twin: what nobody knows how to take over is left alone."""
    with sqlite3.connect(old) as db:
        db.execute("PRAGMA user_version = 1")
    db.close()
    with pytest.raises(LedgerFault, match="never released"):
        Ledger.open(old)
