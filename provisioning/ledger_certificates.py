"""Public keys, certificate serials and CRL numbers: what an issuing CA may use once and never again.

Each is committed before it is used: a serial before the signature, a CRL number before the CRL. A crash in
between costs a number, never repeats one; the next holder of the CA's lock revokes what was left reserved.
"""

import sqlite3
from datetime import datetime
from typing import Any

from provisioning.ledger_file import LedgerFault, LedgerFile, as_moment, as_text, columns
from provisioning.ledger_schema import CertificateRow, CertificateState, Unit


class DuplicateKey(LedgerFault):
    """A public key that this ledger has seen before: the line stops (two devices would be one)."""


class IllegalTransition(LedgerFault):
    """A step that the table of transitions does not hold."""


class SerialTaken(LedgerFault):
    """The certificate serial was used by this issuer before; draw another one."""


def _certificate(row: tuple[Any, ...]) -> CertificateRow:
    named = dict(zip(CertificateRow.__slots__, row, strict=True))
    return CertificateRow(**named | {"state": CertificateState(named["state"])})


def owner_of(unit: Unit) -> str:
    return f"unit {unit.id}"


def row_id(cursor: sqlite3.Cursor) -> int:
    return int(cursor.lastrowid or 0)  # an INSERT that returned has one


class CertificateLedger(LedgerFile):
    """The half of the ledger that the CA writes."""

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
            self._claim(db, spki_sha256, f"certificate {subject}" if unit is None else owner_of(unit))
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
            certificate_id = row_id(cursor)
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
            "UPDATE certificates SET state = 'revoked', revoked_at = ?, reason = ? WHERE id = ? AND state <> 'revoked'",
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

    def signed_by(self, issuer_spki_sha256: str) -> int:
        """How many certificate serials an issuer has used, cut short ones too."""
        count = "SELECT count(*) FROM certificates WHERE issuer_spki_sha256 = ?"
        return int(self._read(count, issuer_spki_sha256)[0][0])

    def _certificates(self, where: str, *values: object) -> list[CertificateRow]:
        rows = self._read(f"SELECT {columns(CertificateRow)} FROM certificates {where}", *values)  # noqa: S608
        return [_certificate(row) for row in rows]

    def last_signing(self) -> datetime | None:
        """When a certificate serial or CRL number was last reserved: no honest clock is behind it."""
        newest = (
            "SELECT max(at) FROM (SELECT max(reserved_at) AS at FROM certificates"
            " UNION ALL SELECT max(reserved_at) FROM crl_numbers)"
        )
        text = self._read(newest)[0][0]
        return None if text is None else as_moment(str(text))

    def reserve_crl_number(self, issuer_spki_sha256: str, *, above: int = 0) -> int:
        """Commit and return this issuer's next cRLNumber (RFC 5280 §5.2.3), higher than `above` too."""
        with self._write() as db:
            last = "SELECT coalesce(max(number), 0) FROM crl_numbers WHERE issuer_spki_sha256 = ?"
            number = max(int(db.execute(last, (issuer_spki_sha256,)).fetchone()[0]), above) + 1
            now = as_text(self._clock())
            db.execute("INSERT INTO crl_numbers VALUES (?, ?, ?)", (issuer_spki_sha256, number, now))
            self._note(db, "crl_number_reserved", facts={"issuer": issuer_spki_sha256, "number": number})
        return number
