"""The ledger: what is unique stays unique, illegal steps are refused, and no file is mistaken for a good one."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from provisioning.ledger import (
    TRANSITIONS,
    CertificateState,
    DuplicateKey,
    IllegalTransition,
    Ledger,
    LedgerFault,
    SerialTaken,
    Unit,
    UnitState,
    UnitTaken,
)

KEY_A, KEY_B = "a" * 64, "b" * 64
ISSUER, OTHER_ISSUER = "1" * 64, "2" * 64
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
PATH_TO_RECORDED = ("keyed", "issued", "written", "verified", "sealed", "recorded")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path / "ledger.db") as made:
        yield made


def reserve_unit(ledger: Ledger, name: str = "1") -> Unit:
    return ledger.reserve(f"SN-{name}", f"uid-{name}", f"dev-{name}", "station-1")


def certify(
    ledger: Ledger, *, key: str = KEY_A, serial: str = "01", subject: str = "dev-1", unit: Unit | None = None
) -> int:
    row = ledger.reserve_certificate(
        issuer_spki_sha256=ISSUER,
        certificate_serial=serial,
        subject=subject,
        profile="device",
        spki_sha256=key,
        unit=unit,
    )
    ledger.record_certificate(
        row, der=b"der" + serial.encode(), fingerprint_sha256=serial, not_before=NOON, not_after=NOON
    )
    return row


def brought_to(ledger: Ledger, state: UnitState, name: str = "1", key: str = KEY_A) -> Unit:
    unit = reserve_unit(ledger, name)
    for step in PATH_TO_RECORDED:
        if unit.state is state:
            break
        if step == "keyed":
            unit = ledger.advance(unit, UnitState.KEYED, spki_sha256=key)
        elif step == "issued":
            certify(ledger, key=key, serial=f"0{name}", subject=unit.device_id, unit=unit)
            unit = ledger.advance(unit, UnitState.ISSUED)
        else:
            unit = ledger.advance(unit, UnitState(step))
    return unit


# --- units


def test_a_unit_walks_the_whole_way_and_every_step_is_in_the_history(ledger: Ledger) -> None:
    """The seven states in order, each one an event."""
    unit = brought_to(ledger, UnitState.RECORDED)
    kinds = [event.kind for event in ledger.events(unit=unit) if event.kind.startswith("unit_")]
    assert unit.state is UnitState.RECORDED
    assert unit.spki_sha256 == KEY_A
    assert kinds == ["unit_reserved", *(f"unit_{step}" for step in PATH_TO_RECORDED)]
    signed = ledger.certificate_of(unit)
    assert signed is not None
    assert unit.certificate_id == signed.id


@pytest.mark.parametrize("state", [state for state in UnitState if state is not UnitState.FAILED])
def test_only_the_transitions_of_the_table_are_possible(ledger: Ledger, state: UnitState) -> None:
    """Every target that the table does not name is refused and changes nothing."""
    unit = brought_to(ledger, state)
    for target in set(UnitState) - TRANSITIONS[state]:
        with pytest.raises(IllegalTransition):
            ledger.advance(unit, target, spki_sha256=KEY_B)
    assert ledger.unit(unit.id) == unit


def test_a_unit_that_another_station_moved_is_not_moved_again(ledger: Ledger) -> None:
    """Compare and swap: the caller's idea of the state must be the ledger's."""
    stale = reserve_unit(ledger)
    ledger.advance(stale, UnitState.KEYED, spki_sha256=KEY_A)
    with pytest.raises(IllegalTransition, match="another station"):
        ledger.fail(stale, "keygen", "no answer")


def test_keyed_needs_the_key_and_issued_needs_a_certificate(ledger: Ledger) -> None:
    """A state is a claim about facts, so the facts come with it."""
    unit = reserve_unit(ledger)
    with pytest.raises(IllegalTransition, match="spki"):
        ledger.advance(unit, UnitState.KEYED)
    unit = ledger.advance(unit, UnitState.KEYED, spki_sha256=KEY_A)
    with pytest.raises(IllegalTransition, match="no signed certificate"):
        ledger.advance(unit, UnitState.ISSUED)


@pytest.mark.parametrize("taken", ["hardware_serial", "uid", "device_id"])
@pytest.mark.parametrize("state", [UnitState.RESERVED, UnitState.WRITTEN, UnitState.RECORDED])
def test_the_names_of_a_live_or_finished_unit_are_taken(ledger: Ledger, taken: str, state: UnitState) -> None:
    """Hardware serial, chip id and device id each belong to one unit that has not failed."""
    unit = brought_to(ledger, state)
    names = {"hardware_serial": "SN-2", "uid": "uid-2", "device_id": "dev-2"}
    with pytest.raises(UnitTaken, match=f"{taken} .* belongs to unit {unit.id}"):
        ledger.reserve(**names | {taken: getattr(unit, taken)}, station="station-2")
    assert ledger.units() == [unit]


def test_the_database_itself_refuses_a_second_live_unit(ledger: Ledger) -> None:
    """The constraint holds without our question before it."""
    reserve_unit(ledger)
    with sqlite3.connect(ledger.path) as other, pytest.raises(sqlite3.IntegrityError, match="hardware_serial"):
        other.execute(
            "INSERT INTO units (hardware_serial, uid, device_id, station, state, created_at, updated_at)"
            " VALUES ('SN-1', 'x', 'y', 's', 'reserved', '', '')"
        )
    other.close()


def test_a_failed_unit_is_burned_again_under_a_new_row(ledger: Ledger) -> None:
    """Rework: the names are free again, the failed row stays."""
    failed = ledger.fail(brought_to(ledger, UnitState.KEYED), "csr", "no answer")
    again = reserve_unit(ledger)
    assert failed.state is UnitState.FAILED
    assert (failed.step, failed.reason) == ("csr", "no answer")
    assert again.id != failed.id
    assert ledger.live_unit(uid="uid-1") == again
    assert [unit.id for unit in ledger.units_named("dev-1")] == [failed.id, again.id]


def test_a_live_unit_is_found_by_either_name_and_two_units_are_a_fault(ledger: Ledger) -> None:
    """What resume asks; a box whose label and chip belong to different units is quarantined."""
    one, two = reserve_unit(ledger, "1"), reserve_unit(ledger, "2")
    assert ledger.live_unit(hardware_serial="SN-1", uid="uid-1") == one
    assert ledger.live_unit(hardware_serial="SN-2") == two
    assert ledger.live_unit(uid="uid-3") is None
    with pytest.raises(UnitTaken, match="two different units"):
        ledger.live_unit(hardware_serial="SN-1", uid="uid-2")


def test_a_failed_unit_takes_its_certificate_with_it(ledger: Ledger) -> None:
    """F8: no certificate outlives the unit it was made for."""
    unit = brought_to(ledger, UnitState.WRITTEN)
    signed = ledger.certificate_of(unit)
    assert signed is not None
    ledger.fail(unit, "verify", "digest differs")
    assert ledger.certificate(signed.id).state is CertificateState.REVOKED
    assert ledger.certificate_of(unit) is None


# --- keys (F3)


@pytest.mark.parametrize("state", [UnitState.KEYED, UnitState.RECORDED, UnitState.FAILED])
def test_the_same_public_key_twice_stops_the_line(ledger: Ledger, state: UnitState) -> None:
    """F3: whatever became of the first unit, its key is never accepted from another one."""
    first = brought_to(ledger, UnitState.KEYED if state is UnitState.FAILED else state)
    if state is UnitState.FAILED:
        ledger.fail(first, "prove", "wrong signature")
    second = reserve_unit(ledger, "2")
    with pytest.raises(DuplicateKey, match=f"unit {first.id}") as caught:
        ledger.advance(second, UnitState.KEYED, spki_sha256=KEY_A)
    assert "stop the line" in caught.value.hint
    assert ledger.unit(second.id).state is UnitState.RESERVED


def test_rework_of_the_same_unit_needs_a_new_key(ledger: Ledger) -> None:
    """The key of a failed burn counts as used, also for the same box."""
    ledger.fail(brought_to(ledger, UnitState.KEYED), "csr", "no answer")
    again = reserve_unit(ledger)
    with pytest.raises(DuplicateKey):
        ledger.advance(again, UnitState.KEYED, spki_sha256=KEY_A)
    assert ledger.advance(again, UnitState.KEYED, spki_sha256=KEY_B).spki_sha256 == KEY_B


def test_a_key_certified_outside_a_burn_is_no_units_key(ledger: Ledger) -> None:
    """A key from a CSR or a host-made one shows up in a device: the line stops, and the other way round."""
    certify(ledger, key=KEY_A, subject="service-1")
    unit = reserve_unit(ledger)
    with pytest.raises(DuplicateKey, match="service-1"):
        ledger.advance(unit, UnitState.KEYED, spki_sha256=KEY_A)
    ledger.advance(unit, UnitState.KEYED, spki_sha256=KEY_B)
    with pytest.raises(DuplicateKey):
        certify(ledger, key=KEY_B, serial="02", subject="service-1")


def test_a_key_is_certified_once(ledger: Ledger) -> None:
    """A renewal is a new key; only a reservation that was never signed may be repeated."""
    row = ledger.reserve_certificate(
        issuer_spki_sha256=ISSUER, certificate_serial="01", subject="a", profile="device", spki_sha256=KEY_A
    )
    certify(ledger, key=KEY_A, serial="02", subject="a")
    with pytest.raises(DuplicateKey, match="already has the certificate with serial 02"):
        certify(ledger, key=KEY_A, serial="03", subject="a")
    with pytest.raises(LedgerFault):  # the abandoned row cannot be signed any more either
        ledger.record_certificate(row, der=b"x", fingerprint_sha256="x", not_before=NOON, not_after=NOON)


# --- certificate serials and CRL numbers (F5)


def test_a_certificate_serial_is_used_once_per_issuer(ledger: Ledger) -> None:
    """The same serial under another issuer is another certificate."""
    certify(ledger, serial="0a")
    with pytest.raises(SerialTaken):
        certify(ledger, key=KEY_B, serial="0a", subject="dev-2")
    ledger.reserve_certificate(
        issuer_spki_sha256=OTHER_ISSUER, certificate_serial="0a", subject="b", profile="d", spki_sha256=KEY_B
    )


def test_a_reserved_serial_survives_the_death_of_the_process(tmp_path: Path) -> None:
    """F5: the row is on disk before anything is signed; killed in between, the serial stays taken."""
    path = tmp_path / "ledger.db"
    Ledger.create(path).close()
    script = (
        "import os, sys, pathlib\n"
        "from provisioning.ledger import Ledger\n"
        "ledger = Ledger.open(pathlib.Path(sys.argv[1]))\n"
        "ledger.reserve_certificate(issuer_spki_sha256='1' * 64, certificate_serial='0a', subject='x',"
        " profile='d', spki_sha256='a' * 64)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(path)], check=False, timeout=30)
    assert died.returncode == -9
    with Ledger.open(path) as ledger:
        with pytest.raises(SerialTaken):
            certify(ledger, key=KEY_B, serial="0a")
        assert ledger.revoke_orphans(ISSUER) == 1
        assert ledger.revoke_orphans(ISSUER) == 0
        (orphan,) = ledger.certificates()
        assert (orphan.state, orphan.der) == (CertificateState.REVOKED, None)


def test_revoking_is_final_and_keeps_the_first_reason(ledger: Ledger) -> None:
    """Again is harmless; the date and the reason of the first time stay."""
    row = certify(ledger)
    first = ledger.revoke(row, "keyCompromise")
    assert ledger.revoke(row, "superseded") == first
    assert (first.state, first.reason) == (CertificateState.REVOKED, "keyCompromise")


def test_crl_numbers_grow_per_issuer(ledger: Ledger) -> None:
    """RFC 5280 §5.2.3: monotonic for one issuer, whatever another does."""
    assert [ledger.reserve_crl_number(ISSUER) for _ in range(3)] == [1, 2, 3]
    assert ledger.reserve_crl_number(OTHER_ISSUER) == 1


def test_the_last_signing_is_the_newest_of_serials_and_crl_numbers(tmp_path: Path) -> None:
    """What the clock rule compares with."""
    moments = iter(NOON + timedelta(hours=hour) for hour in range(100))
    with Ledger.create(tmp_path / "ledger.db", clock=lambda: next(moments)) as ledger:
        assert ledger.last_signing() is None
        certify(ledger)
        after_certificate = ledger.last_signing()
        ledger.reserve_crl_number(ISSUER)
        after_crl = ledger.last_signing()
    assert after_certificate is not None
    assert after_crl is not None
    assert NOON <= after_certificate < after_crl


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events",
        "UPDATE events SET kind = 'other'",
        "DELETE FROM units",
        "UPDATE units SET state = 'keyed' WHERE state = 'failed'",
        "DELETE FROM certificates",
        "UPDATE certificates SET certificate_serial = '99'",
        "UPDATE certificates SET der = x'00'",
        "UPDATE certificates SET state = 'issued', revoked_at = NULL WHERE state = 'revoked'",
        "DELETE FROM public_keys",
        "UPDATE public_keys SET owner = 'me'",
        "DELETE FROM crl_numbers",
    ],
)
def test_history_cannot_be_rewritten(ledger: Ledger, statement: str) -> None:
    """Triggers refuse it to anybody who opens the file with SQLite."""
    ledger.fail(brought_to(ledger, UnitState.WRITTEN), "verify", "digest differs")
    ledger.reserve_crl_number(ISSUER)
    connection = sqlite3.connect(ledger.path)
    try:
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(statement)
    finally:
        connection.close()


# --- the file


def test_the_file_is_private_durable_and_checked(ledger: Ledger) -> None:
    """Mode 0600, WAL, synchronous=FULL and foreign keys are in force on our connection."""
    pragmas = ("journal_mode", "synchronous", "foreign_keys")
    values = [ledger._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert values == ["wal", 2, 1]
    assert ledger.path.stat().st_mode & 0o777 == 0o600


def test_a_second_ledger_is_never_made_over_the_first(ledger: Ledger) -> None:
    """Creating refuses an existing file and leaves its rows alone."""
    reserve_unit(ledger)
    with pytest.raises(LedgerFault, match="exists already"):
        Ledger.create(ledger.path)
    assert len(ledger.units()) == 1


def test_a_missing_ledger_is_a_fault_and_none_is_made(tmp_path: Path) -> None:
    """An empty ledger in the place of a lost one would repeat serials and keys."""
    with pytest.raises(LedgerFault, match="there is no ledger"):
        Ledger.open(tmp_path / "ledger.db")
    assert list(tmp_path.iterdir()) == []


def test_a_newer_schema_is_refused_and_left_alone(ledger: Ledger) -> None:
    """A program that does not know the schema does not write to it."""
    ledger._connection.execute("PRAGMA user_version = 99")
    ledger.close()
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerFault, match="schema version 99") as caught:
        Ledger.open(ledger.path)
    assert "newer" in caught.value.hint
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("damage", ["junk", "truncated", "empty", "foreign", "hole"])
def test_a_damaged_or_foreign_file_is_a_fault_with_a_hint(ledger: Ledger, damage: str) -> None:
    """One sentence and a hint, no traceback of SQLite's, and the file stays as it is."""
    for number in range(40):
        reserve_unit(ledger, str(number))
    ledger.close()
    whole = ledger.path.read_bytes()
    if damage == "foreign":
        ledger.path.unlink()
        other = sqlite3.connect(ledger.path)
        other.execute("CREATE TABLE t (x)")
        other.close()
    else:
        hole = whole[:4096] + b"\xff" * 8192 + whole[4096 + 8192 :]
        damaged = {"junk": b"junk" * 5000, "truncated": whole[: len(whole) // 2], "empty": b"", "hole": hole}
        ledger.path.write_bytes(damaged[damage])
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerFault) as caught:
        Ledger.open(ledger.path)
    assert str(ledger.path) in str(caught.value)
    assert caught.value.hint
    assert ledger.path.read_bytes() == before


def test_a_write_that_fails_leaves_no_half_of_it(ledger: Ledger) -> None:
    """A refused reservation rolls back the key claim made in the same transaction."""
    certify(ledger, serial="0a")
    with pytest.raises(SerialTaken):
        certify(ledger, key=KEY_B, serial="0a", subject="dev-2")
    unit = reserve_unit(ledger)
    assert ledger.advance(unit, UnitState.KEYED, spki_sha256=KEY_B).state is UnitState.KEYED


def test_two_processes_never_reserve_the_same_unit(tmp_path: Path) -> None:
    """Four stations on one ledger want the same box at once: one gets it."""
    path = tmp_path / "ledger.db"
    Ledger.create(path).close()
    script = (
        "import sys, pathlib\n"
        "from provisioning.ledger import Ledger, UnitTaken\n"
        "with Ledger.open(pathlib.Path(sys.argv[1])) as ledger:\n"
        "    sys.stdin.read()\n"
        "    try:\n"
        "        ledger.reserve('SN', 'uid', 'dev', 'station')\n"
        "    except UnitTaken:\n"
        "        sys.exit(1)\n"
    )
    stations = [
        subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, env=os.environ)
        for _ in range(4)
    ]
    for station in stations:
        assert station.stdin is not None
        station.stdin.close()
    codes = sorted(station.wait(timeout=60) for station in stations)
    assert codes == [0, 1, 1, 1]
