"""The ledger's tables and rows, what makes two rows impossible, and the units' legal transitions.

Theory: uniqueness is a database constraint, never a look-up before an insert, because two stations may
share a ledger and a crash may fall between any two statements. What may never repeat (a public key, a
certificate serial of one issuer) is unique over all rows for ever; what identifies a unit (hardware serial,
chip id, device id) is unique over the units that hold their names, so that a failed or retired unit can be burned
again under a new row and a finished, quarantined or scrapped one cannot. Events, keys and serials can be added and
read, never changed or deleted: triggers see to that, and each event holds the digest of all before it, so that one
changed past the triggers shows.

An attempt is one unit presented to a station, from the first answer to the outcome. Attempts are what a shift counts:
started = passed + delivered + failed + quarantined, and `open` is what `resume` has still to settle.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

SCHEMA_VERSION = 3
MIGRATES_FROM = 2  # rows of this version are taken over as they are; only what a column may hold has grown
APPLICATION_ID = 0x4D544C53  # "MTLS": a database of another program is not mistaken for a ledger


# RFC 5280 §5.3.1, without those that mean something else for a leaf (removeFromCRL, aACompromise, hold)
REVOCATION_REASONS = (
    "unspecified",
    "keyCompromise",
    "cACompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
)


class UnitState(StrEnum):
    """How far one unit has come; each state is committed before the next action on the device."""

    RESERVED = "reserved"
    KEYED = "keyed"
    ISSUED = "issued"
    WRITTEN = "written"
    VERIFIED = "verified"
    SEALED = "sealed"
    RECORDED = "recorded"
    DELIVERED = "delivered"  # certificate written and read back, without a proof of possession after a reset
    FAILED = "failed"
    QUARANTINED = "quarantined"  # left unfinished, and not to be finished: a person looks at it
    RETIRED = "retired"  # given free for another burn by a person
    SCRAPPED = "scrapped"  # never to be burned again


class Outcome(StrEnum):
    """How one attempt ended; open until it is known."""

    OPEN = "open"
    PASSED = "passed"
    DELIVERED = "delivered"
    FAILED = "failed"
    QUARANTINED = "quarantined"


class CertificateState(StrEnum):
    """Reserved is committed before signing: a crash can cost a certificate serial but never repeat one."""

    RESERVED = "reserved"
    ISSUED = "issued"
    REVOKED = "revoked"


_STEPS = (
    UnitState.RESERVED,
    UnitState.KEYED,
    UnitState.ISSUED,
    UnitState.WRITTEN,
    UnitState.VERIFIED,
    UnitState.SEALED,
    UnitState.RECORDED,
)
UNFINISHED = frozenset(_STEPS[:-1])
# A unit that has all it was to get; what was shown of it is the difference between the two.
FINISHED = frozenset({UnitState.RECORDED, UnitState.DELIVERED})
# A unit in one of these has given its hardware serial, chip id and device id back.
NAMES_ARE_FREE = frozenset({UnitState.FAILED, UnitState.RETIRED})

# Devices that cannot prove their key after a reset end at delivered, those that cannot be sealed skip that state.
_ALSO = {
    UnitState.WRITTEN: frozenset({UnitState.DELIVERED}),
    UnitState.VERIFIED: frozenset({UnitState.RECORDED}),
}
# One step forward or ended; a missing entry is an illegal transition.
TRANSITIONS: Mapping[UnitState, frozenset[UnitState]] = {
    state: frozenset({following, UnitState.FAILED, UnitState.QUARANTINED}) | _ALSO.get(state, frozenset())
    for state, following in itertools.pairwise(_STEPS)
} | {
    UnitState.RECORDED: frozenset({UnitState.RETIRED, UnitState.SCRAPPED}),
    UnitState.DELIVERED: frozenset({UnitState.RETIRED, UnitState.SCRAPPED}),
    UnitState.QUARANTINED: frozenset({UnitState.RETIRED, UnitState.SCRAPPED}),
    UnitState.FAILED: frozenset({UnitState.SCRAPPED}),
    UnitState.RETIRED: frozenset({UnitState.SCRAPPED}),
    UnitState.SCRAPPED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Unit:
    """One physical unit on its way to one certificate."""

    id: int
    hardware_serial: str
    uid: str
    device_id: str
    station: str
    state: UnitState
    spki_sha256: str | None
    certificate_id: int | None
    step: str
    reason: str
    created_at: str
    updated_at: str


@dataclass(frozen=True, slots=True)
class CertificateRow:
    """One certificate serial from before its signature to after its revocation; unsigned, `der` is None."""

    id: int
    issuer_spki_sha256: str
    certificate_serial: str
    subject: str
    profile: str
    spki_sha256: str
    unit_id: int | None
    state: CertificateState
    reserved_at: str
    not_before: str | None
    not_after: str | None
    fingerprint_sha256: str | None
    der: bytes | None
    revoked_at: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the append-only history."""

    id: int
    at: str
    kind: str
    unit_id: int | None
    certificate_id: int | None
    detail: str
    chain: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One unit presented to a station: where, under which work order, what it said it was, and how it ended."""

    id: int
    work_order: str
    station: str
    port: str
    hardware_serial: str
    uid: str
    model: str
    firmware: str
    attributes: str
    unit_id: int | None
    outcome: Outcome
    step: str
    reason: str
    started_at: str
    ended_at: str | None


def _states(states: type[StrEnum]) -> str:
    return ", ".join(f"'{state.value}'" for state in states)


def _frozen(table: str, *operations: str) -> str:
    """Triggers that refuse the named operations on a table, whoever asks."""
    return "".join(
        f"CREATE TRIGGER {table}_no_{operation.lower()} BEFORE {operation} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} rows are never changed by {operation.lower()}'); END;\n"
        for operation in operations
    )


# A scrapped unit's box stays known for ever; its id may go to the unit that takes its place.
HOLDS_BOX = "state NOT IN ('failed', 'retired')"
HOLDS_DEVICE_ID = "state NOT IN ('failed', 'retired', 'scrapped')"

_TABLES = f"""
CREATE TABLE units (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    hardware_serial TEXT NOT NULL CHECK (length(hardware_serial) BETWEEN 1 AND 128),
    uid TEXT NOT NULL CHECK (length(uid) BETWEEN 1 AND 128),
    device_id TEXT NOT NULL CHECK (length(device_id) BETWEEN 1 AND 64),
    station TEXT NOT NULL CHECK (length(station) BETWEEN 1 AND 128),
    state TEXT NOT NULL CHECK (state IN ({_states(UnitState)})),
    spki_sha256 TEXT UNIQUE CHECK (length(spki_sha256) = 64),
    certificate_id INTEGER REFERENCES certificates (id),
    step TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_live_unit_per_hardware_serial ON units (hardware_serial) WHERE {HOLDS_BOX};
CREATE UNIQUE INDEX one_live_unit_per_uid ON units (uid) WHERE {HOLDS_BOX};
CREATE UNIQUE INDEX one_live_unit_per_device_id ON units (device_id) WHERE {HOLDS_DEVICE_ID};

CREATE TABLE attempts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    work_order TEXT NOT NULL,
    station TEXT NOT NULL CHECK (length(station) BETWEEN 1 AND 128),
    port TEXT NOT NULL,
    hardware_serial TEXT NOT NULL,
    uid TEXT NOT NULL,
    model TEXT NOT NULL,
    firmware TEXT NOT NULL,
    attributes TEXT NOT NULL,
    unit_id INTEGER UNIQUE REFERENCES units (id),
    outcome TEXT NOT NULL CHECK (outcome IN ({_states(Outcome)})),
    step TEXT NOT NULL,
    reason TEXT NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    CHECK ((outcome = 'open') = (ended_at IS NULL)),
    CHECK (outcome = 'failed' OR unit_id IS NOT NULL)
) STRICT;
CREATE INDEX attempts_by_order ON attempts (work_order, outcome);

CREATE TABLE certificates (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    issuer_spki_sha256 TEXT NOT NULL CHECK (length(issuer_spki_sha256) = 64),
    certificate_serial TEXT NOT NULL CHECK (length(certificate_serial) BETWEEN 1 AND 40),
    subject TEXT NOT NULL,
    profile TEXT NOT NULL,
    spki_sha256 TEXT NOT NULL CHECK (length(spki_sha256) = 64) REFERENCES public_keys (spki_sha256),
    unit_id INTEGER REFERENCES units (id),
    state TEXT NOT NULL CHECK (state IN ({_states(CertificateState)})),
    reserved_at TEXT NOT NULL,
    not_before TEXT,
    not_after TEXT,
    fingerprint_sha256 TEXT,
    der BLOB,
    revoked_at TEXT,
    reason TEXT NOT NULL DEFAULT '',
    UNIQUE (issuer_spki_sha256, certificate_serial),
    CHECK (state <> 'issued' OR der IS NOT NULL),
    CHECK ((state = 'revoked') = (revoked_at IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX one_signed_certificate_per_key ON certificates (spki_sha256) WHERE der IS NOT NULL;
CREATE INDEX certificates_by_subject ON certificates (subject);
CREATE INDEX certificates_by_unit ON certificates (unit_id);

CREATE TABLE public_keys (
    spki_sha256 TEXT PRIMARY KEY CHECK (length(spki_sha256) = 64),
    owner TEXT NOT NULL,
    claimed_at TEXT NOT NULL
) STRICT;

CREATE TABLE crl_numbers (
    issuer_spki_sha256 TEXT NOT NULL CHECK (length(issuer_spki_sha256) = 64),
    number INTEGER NOT NULL CHECK (number > 0),
    reserved_at TEXT NOT NULL,
    PRIMARY KEY (issuer_spki_sha256, number)
) STRICT;

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    kind TEXT NOT NULL,
    unit_id INTEGER REFERENCES units (id),
    certificate_id INTEGER REFERENCES certificates (id),
    detail TEXT NOT NULL DEFAULT '',
    chain TEXT NOT NULL CHECK (length(chain) = 64)
) STRICT;
CREATE INDEX events_by_unit ON events (unit_id);
"""

_SERIAL_IS_FINAL = """
CREATE TRIGGER certificates_keep_their_serial
BEFORE UPDATE OF issuer_spki_sha256, certificate_serial, spki_sha256, subject ON certificates
BEGIN SELECT RAISE(ABORT, 'a certificate row keeps its serial, key and subject'); END;
CREATE TRIGGER certificates_keep_their_der
BEFORE UPDATE OF der ON certificates WHEN OLD.der IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a signed certificate is never replaced'); END;
CREATE TRIGGER certificates_stay_revoked
BEFORE UPDATE OF state ON certificates WHEN OLD.state = 'revoked' AND NEW.state <> 'revoked'
BEGIN SELECT RAISE(ABORT, 'a revoked certificate stays revoked'); END;
CREATE TRIGGER units_stay_finished
BEFORE UPDATE OF state ON units
    WHEN OLD.state IN ('failed', 'recorded', 'delivered', 'quarantined', 'retired', 'scrapped')
    AND NEW.state NOT IN ('retired', 'scrapped')
BEGIN SELECT RAISE(ABORT, 'a unit that has ended is only retired or scrapped'); END;
CREATE TRIGGER attempts_keep_their_outcome
BEFORE UPDATE ON attempts WHEN OLD.outcome <> 'open'
BEGIN SELECT RAISE(ABORT, 'an attempt that has ended keeps its outcome'); END;
"""

SCHEMA = (
    _TABLES
    + _SERIAL_IS_FINAL
    + _frozen("events", "UPDATE", "DELETE")
    + _frozen("public_keys", "UPDATE", "DELETE")
    + _frozen("crl_numbers", "UPDATE", "DELETE")
    + _frozen("certificates", "DELETE")
    + _frozen("units", "DELETE")
    + _frozen("attempts", "DELETE")
)
