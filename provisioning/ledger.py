"""The station's memory: every unit, certificate serial, public key and CRL number, and their history.

A method that returns has committed (SQLite, `synchronous=FULL`). The order of a burn hangs on that: a serial
is committed before signing, a unit's new state before the next action on the device. What may never repeat is
a constraint of the schema (`ledger_schema`); the questions asked here first only make the sentence better.

It holds no key material. It does not judge certificates and does not know a port.
"""

import sqlite3
from typing import Any

from mtls.terminal import sanitise
from provisioning.ledger_attempts import MAX_REASON_CHARS, AttemptLedger, Counts, OrderComplete, Presented
from provisioning.ledger_certificates import (
    DuplicateKey,
    IllegalTransition,
    SerialTaken,
    owner_of,
    row_id,
)
from provisioning.ledger_file import LedgerFault, as_moment, as_text, columns, utc_now
from provisioning.ledger_schema import (
    FINISHED,
    HOLDS_BOX,
    HOLDS_DEVICE_ID,
    NAMES_ARE_FREE,
    TRANSITIONS,
    UNFINISHED,
    Attempt,
    CertificateRow,
    CertificateState,
    Event,
    Outcome,
    Unit,
    UnitState,
)

__all__ = [
    "FINISHED",
    "NAMES_ARE_FREE",
    "TRANSITIONS",
    "UNFINISHED",
    "Attempt",
    "CertificateRow",
    "CertificateState",
    "Counts",
    "DuplicateKey",
    "Event",
    "IllegalTransition",
    "Ledger",
    "LedgerFault",
    "OrderComplete",
    "Outcome",
    "Presented",
    "SerialTaken",
    "Unit",
    "UnitState",
    "UnitTaken",
    "as_moment",
    "as_text",
    "utc_now",
]

# How an ended unit's certificate is revoked (RFC 5280 §5.3.1).
_REVOKED_BECAUSE = {
    UnitState.FAILED: "cessationOfOperation",
    UnitState.QUARANTINED: "cessationOfOperation",
    UnitState.RETIRED: "superseded",
    UnitState.SCRAPPED: "cessationOfOperation",
}
_OUTCOMES = {
    UnitState.RECORDED: Outcome.PASSED,
    UnitState.DELIVERED: Outcome.DELIVERED,
    UnitState.FAILED: Outcome.FAILED,
    UnitState.QUARANTINED: Outcome.QUARANTINED,
}
_FINISHED_HINT = "a finished unit is not burned again; one that came back: mqtt-provision retire NAME --reason TEXT"
_TAKEN_HINTS = {
    UnitState.RECORDED: _FINISHED_HINT,
    UnitState.DELIVERED: _FINISHED_HINT,
    UnitState.QUARANTINED: "look at the unit, then: mqtt-provision retire NAME --reason TEXT, or scrap",
    UnitState.SCRAPPED: "a scrapped unit is not burned again",
}


class UnitTaken(LedgerFault):
    """The hardware serial, chip id or device id belongs to a live or finished unit."""


def _unit(row: tuple[Any, ...]) -> Unit:
    named = dict(zip(Unit.__slots__, row, strict=True))
    return Unit(**named | {"state": UnitState(named["state"])})


class Ledger(AttemptLedger):
    """An open ledger: units, and beneath them attempts, keys, certificates, CRL numbers and history."""

    def reserve(
        self, hardware_serial: str, uid: str, device_id: str, station: str, presented: Presented | None = None
    ) -> Unit:
        """Begin a unit and its attempt.

        UnitTaken when any of the three names is held by another unit, OrderComplete when the work order is.
        """
        now = as_text(self._clock())
        presented = presented if presented is not None else Presented(hardware_serial=hardware_serial, uid=uid)
        with self._write() as db:
            self._refuse_taken(db, hardware_serial, uid, device_id)
            cursor = db.execute(
                "INSERT INTO units (hardware_serial, uid, device_id, station, state, created_at, updated_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (hardware_serial, uid, device_id, station, UnitState.RESERVED, now, now),
            )
            unit_id = row_id(cursor)
            self._open_attempt(db, presented, station, unit_id)
            facts = {"device_id": device_id, "station": station, "dialect": presented.dialect}
            self._note(db, "unit_reserved", unit_id=unit_id, facts=facts)
        return self.unit(unit_id)

    @staticmethod
    def _refuse_taken(db: sqlite3.Connection, hardware_serial: str, uid: str, device_id: str) -> None:
        # The constraint decides; asking first, in the same write transaction, only makes the sentence better.
        named = {"hardware_serial": hardware_serial, "uid": uid, "device_id": device_id}
        for column, value in named.items():
            held = HOLDS_DEVICE_ID if column == "device_id" else HOLDS_BOX
            query = f"SELECT id, state, device_id FROM units WHERE {column} = ? AND {held}"  # noqa: S608
            taken = db.execute(query, (value,)).fetchone()
            if taken is not None:
                raise UnitTaken(
                    f"{column} {sanitise(value)} belongs to unit {taken[0]} ({taken[2]}, {taken[1]})",
                    hint=_TAKEN_HINTS.get(taken[1], "settle that unit first: mqtt-provision resume"),
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
        if state in _REVOKED_BECAUSE:
            raise IllegalTransition(f"a unit is {state} with a reason and its certificate, not advanced to it")
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
            if state in FINISHED:
                self._close_attempt(db, unit.id, _OUTCOMES[state], as_text(self._clock()))
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
        return self._end(unit, UnitState.FAILED, step, reason)

    def quarantine(self, unit: Unit, step: str, reason: str) -> Unit:
        """Set an unfinished unit aside and revoke its certificate; it keeps its names until a person decides."""
        return self._end(unit, UnitState.QUARANTINED, step, reason)

    def retire(self, unit: Unit, reason: str) -> Unit:
        """Let a finished or quarantined unit be burned again under a new row; its certificate is revoked."""
        return self._end(unit, UnitState.RETIRED, unit.step, reason)

    def scrap(self, unit: Unit, reason: str) -> Unit:
        """Never burn this box again; its certificate is revoked."""
        return self._end(unit, UnitState.SCRAPPED, unit.step, reason)

    def _end(self, unit: Unit, state: UnitState, step: str, reason: str) -> Unit:
        now = as_text(self._clock())
        reason = sanitise(reason, MAX_REASON_CHARS)
        with self._write() as db:
            self._refuse_illegal(db, unit, state)
            db.execute(
                "UPDATE units SET state = ?, step = ?, reason = ?, updated_at = ? WHERE id = ?",
                (state, step, reason, now, unit.id),
            )
            if state in _OUTCOMES:
                self._close_attempt(db, unit.id, _OUTCOMES[state], now, step, reason)
            self._note(db, f"unit_{state}", unit_id=unit.id, facts={"step": step, "reason": reason})
            orphans = db.execute("SELECT id FROM certificates WHERE unit_id = ? AND state <> 'revoked'", (unit.id,))
            for (certificate_id,) in orphans.fetchall():
                self._revoke(db, certificate_id, now, _REVOKED_BECAUSE[state])
        return self.unit(unit.id)

    def interrupt(self, unit: Unit, step: str, reason: str) -> int:
        """Note that work on a unit was cut short, and leave it open; how often that has happened to it by now."""
        reason = sanitise(reason, MAX_REASON_CHARS)
        with self._write() as db:
            self._note(db, "unit_interrupted", unit_id=unit.id, facts={"step": step, "reason": reason})
            count = "SELECT count(*) FROM events WHERE unit_id = ? AND kind = 'unit_interrupted'"
            return int(db.execute(count, (unit.id,)).fetchone()[0])

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

    def newest_named(self, name: str) -> Unit:
        """The newest unit with this device id, hardware serial or chip id; a fault when there is none."""
        named = self.units_named(name)
        if not named:
            raise LedgerFault(f"the ledger does not know {sanitise(name)}", hint="mqtt-provision ledger list --dir CA")
        return named[-1]

    def unfinished(self) -> list[Unit]:
        """Units that are neither finished nor ended: being burned now, or left behind by a crash."""
        return [unit for unit in self.units() if unit.state in UNFINISHED]

    def live_unit(self, *, hardware_serial: str = "", uid: str = "") -> Unit | None:
        """The unit that holds this hardware serial or chip id: what a resumed burn continues, if it is unfinished."""
        where = f"WHERE {HOLDS_BOX} AND (hardware_serial = ? OR uid = ?)"
        found = self._units(where, hardware_serial, uid)
        if len(found) > 1:
            raise UnitTaken(
                f"hardware serial {sanitise(hardware_serial)} and chip id {sanitise(uid)} belong to two different units"
            )
        return found[0] if found else None

    def _units(self, where: str, *values: object) -> list[Unit]:
        rows = self._read(f"SELECT {columns(Unit)} FROM units {where}", *values)  # noqa: S608
        return [_unit(row) for row in rows]
