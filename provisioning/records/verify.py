"""`ledger verify`: the ledger held against itself, so that a change past the program shows.

Compared: the chain of events (each carries the digest of all before it), the state of every unit and certificate with
the last event that tells it, every attempt with its unit, every certificate with the bytes that were signed. Not shown
by this: that the newest events were cut off together with their rows (a manifest or a backup from before shows that),
or that the station told the truth when it wrote.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from cryptography import x509

from mtls.profiles import common_name, fingerprint_sha256, spki_sha256
from provisioning.ledger import (
    FINISHED,
    UNFINISHED,
    Attempt,
    CertificateRow,
    CertificateState,
    Counts,
    Event,
    Ledger,
    Outcome,
    Unit,
    UnitState,
)
from provisioning.ledger_file import chained
from provisioning.signing import serial_hex

_CERTIFICATE_EVENTS = {
    "certificate_reserved": CertificateState.RESERVED,
    "certificate_issued": CertificateState.ISSUED,
    "certificate_revoked": CertificateState.REVOKED,
}
# What an attempt's outcome allows its unit to be; a person may have retired or scrapped it since.
_LATER = frozenset({UnitState.RETIRED, UnitState.SCRAPPED})
_UNIT_MAY_BE = {
    Outcome.OPEN: UNFINISHED,
    Outcome.PASSED: frozenset({UnitState.RECORDED}) | _LATER,
    Outcome.DELIVERED: frozenset({UnitState.DELIVERED}) | _LATER,
    Outcome.FAILED: frozenset({UnitState.FAILED, UnitState.SCRAPPED}),
    Outcome.QUARANTINED: frozenset({UnitState.QUARANTINED}) | _LATER,
}


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that disagrees, and the counts; `chain` names this very history."""

    problems: tuple[str, ...]
    counts: Counts
    events: int
    chain: str

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "started": self.counts.started, "ok": not self.problems}

    def lines(self) -> list[str]:
        """For people."""
        counts = self.counts
        numbers = (
            f"started {counts.started} = passed {counts.passed} + delivered {counts.delivered} + failed "
            f"{counts.failed} + quarantined {counts.quarantined} + open {counts.open}"
        )
        verdict = f"{len(self.problems)} problems" if self.problems else "the ledger agrees with itself"
        return [*self.problems, numbers, f"{self.events} events, chain {self.chain}", verdict]


def verify_ledger(ledger: Ledger) -> Findings:
    """Compare everything with everything; never raises for a wrong row, it is a problem."""
    events, units, attempts = ledger.events(), ledger.units(), ledger.attempts()
    certificates = ledger.certificates()
    problems = [
        *ledger.integrity_problems(),
        *_chain_problems(events),
        *_unit_problems(units, events, certificates),
        *_certificate_problems(certificates, events),
        *_attempt_problems(attempts, units),
    ]
    return Findings(tuple(problems), ledger.counts(), len(events), events[-1].chain if events else "")


def _chain_problems(events: Sequence[Event]) -> Iterator[str]:
    before = ""
    for number, event in enumerate(events, 1):
        row = (number, event.at, event.kind, event.unit_id, event.certificate_id, event.detail)
        if event.chain != chained(before, row):
            yield f"event {event.id} is not the one that was written: the chain breaks there"
        before = event.chain


def _unit_problems(
    units: Sequence[Unit], events: Sequence[Event], certificates: Sequence[CertificateRow]
) -> Iterator[str]:
    told = {e.unit_id: e.kind.removeprefix("unit_") for e in events if e.kind.removeprefix("unit_") in set(UnitState)}
    valid = Counter(row.unit_id for row in certificates if row.state is CertificateState.ISSUED)
    signed = {row.unit_id for row in certificates if row.der is not None}
    for unit in units:
        if told.get(unit.id) != unit.state:
            yield f"unit {unit.id} is {unit.state}, its history says {told.get(unit.id, 'nothing')}"
        most = 1 if unit.state in UNFINISHED | FINISHED else 0
        if valid[unit.id] > most:
            yield f"unit {unit.id} is {unit.state} and has {valid[unit.id]} valid certificates"
        if unit.state in FINISHED and unit.id not in signed:
            yield f"unit {unit.id} is {unit.state} without a certificate"


def _certificate_problems(certificates: Sequence[CertificateRow], events: Sequence[Event]) -> Iterator[str]:
    told = {
        event.certificate_id: _CERTIFICATE_EVENTS[event.kind] for event in events if event.kind in _CERTIFICATE_EVENTS
    }
    for row in certificates:
        if told.get(row.id) is not row.state:
            yield f"certificate row {row.id} is {row.state}, its history says {told.get(row.id, 'nothing')}"
        if row.der is not None and not _is_described(row):
            yield f"certificate row {row.id} ({row.subject}) does not describe the certificate in it"


def _is_described(row: CertificateRow) -> bool:
    try:
        certificate = x509.load_der_x509_certificate(row.der or b"")
    except ValueError:
        return False
    found = (common_name(certificate.subject), serial_hex(certificate.serial_number), spki_sha256(certificate))
    said = (row.subject, row.certificate_serial, row.spki_sha256)
    return found == said and fingerprint_sha256(certificate) == row.fingerprint_sha256


def _attempt_problems(attempts: Sequence[Attempt], units: Sequence[Unit]) -> Iterator[str]:
    by_id = {unit.id: unit for unit in units}
    for attempt in attempts:
        unit = by_id.pop(attempt.unit_id, None) if attempt.unit_id is not None else None
        if unit is not None and unit.state not in _UNIT_MAY_BE[attempt.outcome]:
            yield f"attempt {attempt.id} is {attempt.outcome}, and its unit {unit.id} is {unit.state}"
        try:
            json.loads(attempt.attributes)
        except ValueError:
            yield f"attempt {attempt.id} has attributes that cannot be read"
    for unit_id in by_id:
        yield f"unit {unit_id} belongs to no attempt"
