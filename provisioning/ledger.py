"""The station's memory: every unit, certificate serial, public key and CRL number, and their history.

A method that returns has committed (SQLite, `synchronous=FULL`). The order of a burn hangs on that: a serial
is committed before signing, a unit's new state before the next action on the device. What may never repeat is
a constraint of the schema (`ledger_schema`); the questions asked here first only make the sentence better.

It holds no key material. It does not judge certificates and does not know a port.
"""

import sqlite3
from typing import Any

from mtls.terminal import sanitise
from provisioning.ledger_certificates import (
    CertificateLedger,
    DuplicateKey,
    IllegalTransition,
    SerialTaken,
    owner_of,
    row_id,
)
from provisioning.ledger_file import LedgerFault, as_moment, as_text, columns, utc_now
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


class UnitTaken(LedgerFault):
    """The hardware serial, chip id or device id belongs to a live or finished unit."""


def _unit(row: tuple[Any, ...]) -> Unit:
    named = dict(zip(Unit.__slots__, row, strict=True))
    return Unit(**named | {"state": UnitState(named["state"])})


class Ledger(CertificateLedger):
    """An open ledger: units, and beneath them keys, certificates, CRL numbers and history."""

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
            unit_id = row_id(cursor)
            self._note(db, "unit_reserved", unit_id=unit_id, facts={"device_id": device_id, "station": station})
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
                    f"{column} {sanitise(value)} belongs to unit {taken[0]} ({taken[2]}, {taken[1]})", hint=hint
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
                self._claim(db, spki_sha256, owner_of(unit))
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
            raise IllegalTransition(f"unit {unit.id} is {row[0]} now, not {unit.state}: another station moved it")
        if state not in TRANSITIONS[unit.state]:
            raise IllegalTransition(f"unit {unit.id} cannot go from {unit.state} to {state}")

    def fail(self, unit: Unit, step: str, reason: str) -> Unit:
        """Fail a unit at a step; its certificate is revoked in the same transaction, so none is orphaned."""
        now = as_text(self._clock())
        reason = sanitise(reason, MAX_REASON_CHARS)
        with self._write() as db:
            self._refuse_illegal(db, unit, UnitState.FAILED)
            db.execute(
                "UPDATE units SET state = ?, step = ?, reason = ?, updated_at = ? WHERE id = ?",
                (UnitState.FAILED, step, reason, now, unit.id),
            )
            self._note(db, "unit_failed", unit_id=unit.id, facts={"step": step, "reason": reason})
            orphans = db.execute("SELECT id FROM certificates WHERE unit_id = ? AND state <> 'revoked'", (unit.id,))
            for (certificate_id,) in orphans.fetchall():
                self._revoke(db, certificate_id, now, "cessationOfOperation")
        return self.unit(unit.id)

    def unit(self, unit_id: int) -> Unit:
        """The unit with this row id; a fault when there is none."""
        for unit in self._units("WHERE id = ?", unit_id):
            return unit
        raise LedgerFault(f"there is no unit {unit_id} in the ledger", hint="mqtt-provision ledger list --dir CA")

    def units(self, *, state: UnitState | None = None) -> list[Unit]:
        """All units, oldest first."""
        return self._units("ORDER BY id") if state is None else self._units("WHERE state = ? ORDER BY id", state)

    def units_named(self, name: str) -> list[Unit]:
        """Units with this device id, hardware serial or chip id, oldest first, failed ones too."""
        return self._units("WHERE ? IN (device_id, hardware_serial, uid) ORDER BY id", name)

    def live_unit(self, *, hardware_serial: str = "", uid: str = "") -> Unit | None:
        """The unit of this hardware serial or chip id that has not failed: what a resumed burn continues."""
        found = self._units("WHERE state <> 'failed' AND (hardware_serial = ? OR uid = ?)", hardware_serial, uid)
        if len(found) > 1:
            raise UnitTaken(
                f"hardware serial {sanitise(hardware_serial)} and chip id {sanitise(uid)} belong to two different units"
            )
        return found[0] if found else None

    def _units(self, where: str, *values: object) -> list[Unit]:
        rows = self._read(f"SELECT {columns(Unit)} FROM units {where}", *values)  # noqa: S608
        return [_unit(row) for row in rows]
