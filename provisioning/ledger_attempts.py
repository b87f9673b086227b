"""Attempts: what a station was shown, under which work order, and how it ended; the counts that must reconcile.

An attempt is opened in the transaction that reserves its unit and closed in the one that ends it, so that no crash
leaves one without the other. What was refused before a unit could be reserved is an attempt too: a failed one, without
a unit. A work order's quantity and quota are judged in the same transaction, because several ports draw on them.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from mtls.errors import Fault
from mtls.terminal import sanitise
from provisioning.ledger_certificates import CertificateLedger
from provisioning.ledger_file import LedgerFault, as_text, columns
from provisioning.ledger_schema import Attempt, Outcome

MAX_REASON_CHARS = 400  # a reason is a sentence; a device that answers with a page is cut short


class OrderComplete(LedgerFault):
    """The work order wants no further unit, or may have none."""


@dataclass(frozen=True, slots=True)
class Presented:
    """What the station knows of a unit when its attempt begins; the texts are the device's own word.

    `quantity` and `quota` are the work order's: how many units are to pass, and how many attempts it may take; 0 is
    no limit.
    """

    work_order: str = ""
    dialect: str = "spp1"
    port: str = ""
    hardware_serial: str = ""
    uid: str = ""
    model: str = ""
    firmware: str = ""
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    quantity: int = 0
    quota: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """Attempts by outcome."""

    passed: int = 0
    delivered: int = 0
    failed: int = 0
    quarantined: int = 0
    open: int = 0

    @property
    def started(self) -> int:
        return self.passed + self.delivered + self.failed + self.quarantined + self.open

    def as_row(self) -> dict[str, int]:
        """For JSON."""
        return {"started": self.started, **asdict(self)}


def _attempt(row: tuple[Any, ...]) -> Attempt:
    named = dict(zip(Attempt.__slots__, row, strict=True))
    return Attempt(**named | {"outcome": Outcome(named["outcome"])})


class AttemptLedger(CertificateLedger):
    """The part of the ledger that counts."""

    def _open_attempt(self, db: sqlite3.Connection, presented: Presented, station: str, unit_id: int) -> None:
        self._refuse_beyond_order(db, presented)
        self._insert_attempt(db, presented, station, unit_id=unit_id, outcome=Outcome.OPEN)

    @staticmethod
    def _refuse_beyond_order(db: sqlite3.Connection, presented: Presented) -> None:
        counted = "SELECT count(*), sum(outcome IN ('open', 'passed', 'delivered')) FROM attempts WHERE work_order = ?"
        started, good = db.execute(counted, (presented.work_order,)).fetchone()
        name = sanitise(presented.work_order)
        if presented.quantity and (good or 0) >= presented.quantity:
            raise OrderComplete(
                f"work order {name} wants {presented.quantity} units, and has them or is making them",
                hint="begin the next work order",
            )
        if presented.quota and started >= presented.quota:
            raise OrderComplete(
                f"work order {name} has used its quota of {presented.quota} attempts",
                hint="find out why so many failed, then raise quota in the work order",
            )

    def _insert_attempt(
        self,
        db: sqlite3.Connection,
        presented: Presented,
        station: str,
        *,
        unit_id: int | None,
        outcome: Outcome,
        step: str = "",
        reason: str = "",
    ) -> None:
        now = as_text(self._clock())
        ended = None if outcome is Outcome.OPEN else now
        attributes = json.dumps(dict(presented.attributes), sort_keys=True)
        ending = (outcome, step, reason, now, ended)
        said = (presented.hardware_serial, presented.uid, presented.model, presented.firmware)
        db.execute(
            f"INSERT INTO attempts ({columns(Attempt)}) VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (presented.work_order, station, presented.port, *said, attributes, unit_id, *ending),
        )

    def refuse_attempt(self, presented: Presented, station: str, step: str, reason: str) -> None:
        """Record a unit that failed before it could be reserved: nothing was made for it, but it counts."""
        reason = sanitise(reason, MAX_REASON_CHARS)
        with self._write() as db:
            self._insert_attempt(db, presented, station, unit_id=None, outcome=Outcome.FAILED, step=step, reason=reason)
            facts = {"station": station, "port": presented.port, "step": step, "reason": reason}
            self._note(db, "attempt_refused", facts=facts)

    @staticmethod
    def _close_attempt(
        db: sqlite3.Connection, unit_id: int, outcome: Outcome, now: str, step: str = "", reason: str = ""
    ) -> None:
        db.execute(
            "UPDATE attempts SET outcome = ?, step = ?, reason = ?, ended_at = ?"
            " WHERE unit_id = ? AND outcome = 'open'",
            (outcome, step, reason, now, unit_id),
        )

    def attempts(self, *, work_order: str | None = None) -> list[Attempt]:
        """All attempts, or one work order's, oldest first."""
        where, values = ("", ()) if work_order is None else ("WHERE work_order = ?", (work_order,))
        rows = self._read(f"SELECT {columns(Attempt)} FROM attempts {where} ORDER BY id", *values)  # noqa: S608
        return [_attempt(row) for row in rows]

    def attempts_of(self, work_order: str | None) -> list[Attempt]:
        """The attempts that are handed over; Fault for a work order that nothing was made under, a misspelt one."""
        found = self.attempts(work_order=work_order)
        if work_order is not None and not found:
            known = {attempt.work_order for attempt in self.attempts()} - {""}
            hint = f"the last were {', '.join(sorted(known)[-5:])}" if known else "no work order was begun with this CA"
            raise Fault(f"nothing was made under the work order {work_order!r}", hint=hint)
        return found

    def counts(self, work_order: str | None = None) -> Counts:
        """How many attempts ended how; of one work order, or of all."""
        where, values = ("", ()) if work_order is None else ("WHERE work_order = ?", (work_order,))
        rows = self._read(f"SELECT outcome, count(*) FROM attempts {where} GROUP BY outcome", *values)  # noqa: S608
        return Counts(**{str(outcome): int(count) for outcome, count in rows})
