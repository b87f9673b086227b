"""The station's memory: every unit, certificate serial, public key and CRL number, and their history.

A method that returns has committed (SQLite, `synchronous=FULL`). The order of a burn hangs on that: a serial
is committed before signing, a unit's new state before the next action on the device. What may never repeat is
a constraint of the schema (`ledger_schema`); the questions asked here first only make the sentence better.

It holds no key material. It does not judge certificates and does not know a port.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from typing import Any

from provisioning.ledger_file import LedgerFault, LedgerFile, as_moment, as_text, utc_now
from provisioning.ledger_schema import (
    TRANSITIONS,
    CertificateRow,
    CertificateState,
    Event,
    Unit,
    UnitState,
)

__all__ = [
    "TRANSITIONS",
    "CertificateRow",
    "CertificateState",
    "DuplicateKey",
    "Event",
    "IllegalTransition",
    "Ledger",
    "LedgerFault",
    "SerialTaken",
    "Unit",
    "UnitState",
    "UnitTaken",
    "as_moment",
    "as_text",
    "utc_now",
]

MAX_REASON_CHARS = 400  # a reason is a sentence; a device that answers with a page is cut short


class DuplicateKey(LedgerFault):
    """A public key that this ledger has seen before: the line stops (two devices would be one)."""


class UnitTaken(LedgerFault):
    """The hardware serial, chip id or device id belongs to a live or finished unit."""


class IllegalTransition(LedgerFault):
    """A step that the table of transitions does not hold."""


class SerialTaken(LedgerFault):
    """The certificate serial was used by this issuer before; draw another one."""


def _columns(row_type: type) -> str:
    return ", ".join(field.name for field in fields(row_type))


def _unit(row: tuple[Any, ...]) -> Unit:
    named = dict(zip(Unit.__slots__, row, strict=True))
    return Unit(**named | {"state": UnitState(named["state"])})


def _certificate(row: tuple[Any, ...]) -> CertificateRow:
    named = dict(zip(CertificateRow.__slots__, row, strict=True))
    return CertificateRow(**named | {"state": CertificateState(named["state"])})


class Ledger(LedgerFile):
    """An open ledger: units, public keys, certificates, CRL numbers, history."""

    # --- units

    def reserve(self, hardware_serial: str, uid: str, device_id: str, station: str) -> Unit:
        """Begin a unit. UnitTaken when any of the three names belongs to a unit that has not failed."""
        now = as_text(self._clock())
        with self._write() as db:
            self._refuse_taken(db, hardware_serial, uid, device_id)
            cursor = db.execute(
                "INSERT INTO units (hardware_serial, uid, device_id, station, state, created_at, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (hardware_serial, uid, device_id, station, UnitState.RESERVED, now, now),
            )
            unit_id = _row_id(cursor)
            self._note(
                db, "unit_reserved", unit_id=unit_id, facts={"device_id": device_id, "station": station}
            )
        return self.unit(unit_id)

    @staticmethod
    def _refuse_taken(db: sqlite3.Connection, hardware_serial: str, uid: str, device_id: str) -> None:
        # The constraint decides; asking first, in the same write transaction, only makes the sentence better.
        named = {"hardware_serial": hardware_serial, "uid": uid, "device_id": device_id}
        for column, value in named.items():
            query = f"SELECT id, state, device_id FROM units WHERE {column} = ? AND state <> 'failed'"  # noqa: S608
            taken = db.execute(query, (value,)).fetchone()
            if taken is not None:
                hint = (
                    "a finished unit is never burned again; erase is a matter for its maker"
                    if taken[1] == UnitState.RECORDED
                    else "resume that unit, or fail it first: mqtt-provision ledger list"
                )
                raise UnitTaken(
                    f"{column} {value} belongs to unit {taken[0]} ({taken[2]}, {taken[1]})", hint=hint
                )

    def advance(
        self,
        unit: Unit,
        state: UnitState,
        *,
        spki_sha256: str | None = None,
        certificate_id: int | None = None,
        step: str = "",
    ) -> Unit:
        """Commit one step and return the unit as it now stands.

        `keyed` needs `spki_sha256` and raises DuplicateKey for a key seen before; `issued` needs the
        certificate, by default the one signed for this unit. The step is refused when another process moved
        the unit meanwhile. A failed unit's key stays used: its rework has the device replace the key.
        """
        if state is UnitState.FAILED:
            raise IllegalTransition("a unit is failed with a step and a reason, not advanced to failed")
        if state is UnitState.KEYED and spki_sha256 is None:
            raise IllegalTransition("a unit is keyed with its public key's spki_sha256")
        if state is UnitState.ISSUED and certificate_id is None:
            signed = self.certificate_of(unit)
            if signed is None:
                raise IllegalTransition(f"unit {unit.id} has no signed certificate to be issued with")
            certificate_id = signed.id
        with self._write() as db:
            self._refuse_illegal(db, unit, state)
            if spki_sha256 is not None:
                self._claim(db, spki_sha256, _owner_of(unit))
            db.execute(
                "UPDATE units SET state = ?, spki_sha256 = coalesce(?, spki_sha256),"
                " certificate_id = coalesce(?, certificate_id), step = ?, updated_at = ? WHERE id = ?",
                (state, spki_sha256, certificate_id, step, as_text(self._clock()), unit.id),
            )
            self._note(db, f"unit_{state}", unit_id=unit.id, certificate_id=certificate_id)
        return self.unit(unit.id)

    @staticmethod
    def _refuse_illegal(db: sqlite3.Connection, unit: Unit, state: UnitState) -> None:
        row = db.execute("SELECT state FROM units WHERE id = ?", (unit.id,)).fetchone()
        if row is None:
            raise IllegalTransition(f"there is no unit {unit.id} in the ledger")
        if UnitState(row[0]) is not unit.state:
            raise IllegalTransition(
                f"unit {unit.id} is {row[0]} now, not {unit.state}: another station moved it"
            )
        if state not in TRANSITIONS[unit.state]:
            raise IllegalTransition(f"unit {unit.id} cannot go from {unit.state} to {state}")

    def fail(self, unit: Unit, step: str, reason: str) -> Unit:
        """Fail a unit at a step; its certificate is revoked in the same transaction, so none is orphaned."""
        now = as_text(self._clock())
        reason = reason[:MAX_REASON_CHARS]
        with self._write() as db:
            self._refuse_illegal(db, unit, UnitState.FAILED)
            db.execute(
                "UPDATE units SET state = ?, step = ?, reason = ?, updated_at = ? WHERE id = ?",
                (UnitState.FAILED, step, reason, now, unit.id),
            )
            self._note(db, "unit_failed", unit_id=unit.id, facts={"step": step, "reason": reason})
            orphans = db.execute(
                "SELECT id FROM certificates WHERE unit_id = ? AND state <> 'revoked'", (unit.id,)
            )
            for (certificate_id,) in orphans.fetchall():
                self._revoke(db, certificate_id, now, "cessationOfOperation")
        return self.unit(unit.id)

    def unit(self, unit_id: int) -> Unit:
        """The unit with this row id; a fault when there is none."""
        for unit in self._units("WHERE id = ?", unit_id):
            return unit
        raise LedgerFault(
            f"there is no unit {unit_id} in the ledger", hint="mqtt-provision ledger list --dir CA"
        )

    def units(self, *, state: UnitState | None = None) -> list[Unit]:
        """All units, oldest first."""
        return (
            self._units("ORDER BY id") if state is None else self._units("WHERE state = ? ORDER BY id", state)
        )

    def units_named(self, name: str) -> list[Unit]:
        """Units with this device id, hardware serial or chip id, oldest first, failed ones too."""
        return self._units("WHERE ? IN (device_id, hardware_serial, uid) ORDER BY id", name)

    def live_unit(self, *, hardware_serial: str = "", uid: str = "") -> Unit | None:
        """The unit of this hardware serial or chip id that has not failed: what a resumed burn continues."""
        found = self._units(
            "WHERE state <> 'failed' AND (hardware_serial = ? OR uid = ?)", hardware_serial, uid
        )
        if len(found) > 1:
            raise UnitTaken(
                f"hardware serial {hardware_serial} and chip id {uid} belong to two different units"
            )
        return found[0] if found else None

    def _units(self, where: str, *values: object) -> list[Unit]:
        rows = self._read(f"SELECT {_columns(Unit)} FROM units {where}", *values)  # noqa: S608
        return [_unit(row) for row in rows]

    # --- public keys

    def claim_key(self, spki_sha256: str, owner: str) -> None:
        """Write down whose key this is; DuplicateKey when it was ever anybody else's."""
        with self._write() as db:
            self._claim(db, spki_sha256, owner)

    def _claim(self, db: sqlite3.Connection, spki_sha256: str, owner: str) -> None:
        row = db.execute("SELECT owner FROM public_keys WHERE spki_sha256 = ?", (spki_sha256,)).fetchone()
        if row is None:
            now = as_text(self._clock())
            db.execute("INSERT INTO public_keys VALUES (?, ?, ?)", (spki_sha256, owner, now))
        elif row[0] != owner:
            raise DuplicateKey(
                f"public key {spki_sha256} was seen before, with {row[0]}",
                hint="stop the line: check the device's random generator and image, then make a new key",
            )

    # --- certificates

    def reserve_certificate(
        self,
        *,
        issuer_spki_sha256: str,
        certificate_serial: str,
        subject: str,
        profile: str,
        spki_sha256: str,
        unit: Unit | None = None,
    ) -> int:
        """Commit a certificate serial (lower-case hex) before it is signed with; returns the row id.

        SerialTaken for a serial of this issuer's past, DuplicateKey for a key of somebody else or one that
        has a signed certificate already (a renewal is a new key).
        """
        with self._write() as db:
            self._claim(db, spki_sha256, f"certificate {subject}" if unit is None else _owner_of(unit))
            signed = "SELECT certificate_serial FROM certificates WHERE spki_sha256 = ? AND der IS NOT NULL"
            row = db.execute(signed, (spki_sha256,)).fetchone()
            if row is not None:
                raise DuplicateKey(
                    f"public key {spki_sha256} already has the certificate with serial {row[0]}",
                    hint="make a new key: a key is certified once",
                )
            taken = "SELECT 1 FROM certificates WHERE issuer_spki_sha256 = ? AND certificate_serial = ?"
            if db.execute(taken, (issuer_spki_sha256, certificate_serial)).fetchone():
                raise SerialTaken(f"certificate serial {certificate_serial} was used by this issuer before")
            cursor = db.execute(
                "INSERT INTO certificates (issuer_spki_sha256, certificate_serial, subject, profile,"
                " spki_sha256, unit_id, state, reserved_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    issuer_spki_sha256,
                    certificate_serial,
                    subject,
                    profile,
                    spki_sha256,
                    None if unit is None else unit.id,
                    CertificateState.RESERVED,
                    as_text(self._clock()),
                ),
            )
            certificate_id = _row_id(cursor)
            unit_id = None if unit is None else unit.id
            self._note(db, "certificate_reserved", unit_id=unit_id, certificate_id=certificate_id)
        return certificate_id

    def record_certificate(
        self,
        certificate_id: int,
        *,
        der: bytes,
        fingerprint_sha256: str,
        not_before: datetime,
        not_after: datetime,
    ) -> CertificateRow:
        """Commit the signed certificate; only after this may it leave the CA."""
        with self._write() as db:
            cursor = db.execute(
                "UPDATE certificates SET state = 'issued', der = ?, fingerprint_sha256 = ?, not_before = ?,"
                " not_after = ? WHERE id = ? AND state = 'reserved'",
                (der, fingerprint_sha256, as_text(not_before), as_text(not_after), certificate_id),
            )
            if cursor.rowcount != 1:
                raise IllegalTransition(f"certificate row {certificate_id} is not reserved")
            self._note(db, "certificate_issued", certificate_id=certificate_id)
        return self.certificate(certificate_id)

    def revoke(self, certificate_id: int, reason: str) -> CertificateRow:
        """Mark a certificate revoked, for good; again is harmless and keeps the first date and reason.

        `reason` is a CRLReason of RFC 5280 §5.3.1 by its name there, e.g. `keyCompromise`.
        """
        with self._write() as db:
            self._revoke(db, certificate_id, as_text(self._clock()), reason)
        return self.certificate(certificate_id)

    def _revoke(self, db: sqlite3.Connection, certificate_id: int, now: str, reason: str) -> None:
        cursor = db.execute(
            "UPDATE certificates SET state = 'revoked', revoked_at = ?, reason = ?"
            " WHERE id = ? AND state <> 'revoked'",
            (now, reason, certificate_id),
        )
        if cursor.rowcount:
            self._note(db, "certificate_revoked", certificate_id=certificate_id, facts={"reason": reason})

    def revoke_orphans(self, issuer_spki_sha256: str) -> int:
        """Revoke serials whose signing was cut short; only for who holds the CA's lock. Returns how many."""
        with self._write() as db:
            rows = db.execute(
                "SELECT id FROM certificates WHERE issuer_spki_sha256 = ? AND state = 'reserved'",
                (issuer_spki_sha256,),
            ).fetchall()
            for (certificate_id,) in rows:
                self._revoke(db, certificate_id, as_text(self._clock()), "cessationOfOperation")
        return len(rows)

    def certificate(self, certificate_id: int) -> CertificateRow:
        """The certificate with this row id; a fault when there is none."""
        for row in self._certificates("WHERE id = ?", certificate_id):
            return row
        raise LedgerFault(f"there is no certificate row {certificate_id} in the ledger")

    def certificate_of(self, unit: Unit) -> CertificateRow | None:
        """The newest signed and unrevoked certificate made for this unit."""
        found = self._certificates("WHERE unit_id = ? AND state = 'issued' ORDER BY id DESC", unit.id)
        return found[0] if found else None

    def certificates(
        self,
        *,
        subject: str | None = None,
        certificate_serial: str | None = None,
        issuer_spki_sha256: str | None = None,
        state: CertificateState | None = None,
    ) -> list[CertificateRow]:
        """Certificates that match all that is given, oldest first."""
        wanted = {
            "subject": subject,
            "certificate_serial": certificate_serial,
            "issuer_spki_sha256": issuer_spki_sha256,
            "state": state,
        }
        given = {column: value for column, value in wanted.items() if value is not None}
        where = " AND ".join(f"{column} = ?" for column in given) or "1"
        return self._certificates(f"WHERE {where} ORDER BY id", *given.values())

    def _certificates(self, where: str, *values: object) -> list[CertificateRow]:
        rows = self._read(f"SELECT {_columns(CertificateRow)} FROM certificates {where}", *values)  # noqa: S608
        return [_certificate(row) for row in rows]

    def last_signing(self) -> datetime | None:
        """When a certificate serial or CRL number was last reserved: no honest clock is behind it."""
        newest = (
            "SELECT max(at) FROM (SELECT max(reserved_at) AS at FROM certificates"
            " UNION ALL SELECT max(reserved_at) FROM crl_numbers)"
        )
        text = self._read(newest)[0][0]
        return None if text is None else as_moment(str(text))

    def reserve_crl_number(self, issuer_spki_sha256: str) -> int:
        """Commit and return this issuer's next cRLNumber (RFC 5280 §5.2.3)."""
        with self._write() as db:
            last = "SELECT coalesce(max(number), 0) FROM crl_numbers WHERE issuer_spki_sha256 = ?"
            number = int(db.execute(last, (issuer_spki_sha256,)).fetchone()[0]) + 1
            now = as_text(self._clock())
            db.execute("INSERT INTO crl_numbers VALUES (?, ?, ?)", (issuer_spki_sha256, number, now))
            self._note(db, "crl_number_reserved", facts={"issuer": issuer_spki_sha256, "number": number})
        return number

    # --- history

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
        db.execute(
            "INSERT INTO events (at, kind, unit_id, certificate_id, detail) VALUES (?, ?, ?, ?, ?)",
            (as_text(self._clock()), kind, unit_id, certificate_id, detail),
        )

    def events(self, *, unit: Unit | None = None) -> list[Event]:
        """The history, oldest first, of one unit or of all."""
        where, values = ("", ()) if unit is None else ("WHERE unit_id = ?", (unit.id,))
        query = f"SELECT {_columns(Event)} FROM events {where} ORDER BY id"  # noqa: S608
        return [Event(*row) for row in self._read(query, *values)]


def _owner_of(unit: Unit) -> str:
    return f"unit {unit.id}"


def _row_id(cursor: sqlite3.Cursor) -> int:
    return int(cursor.lastrowid or 0)  # an INSERT that returned has one
