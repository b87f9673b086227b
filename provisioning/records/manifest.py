"""The manifest: what a station made, as JSON lines of public data, and its detached signature.

The first line is the head: which work order, the counts, and where in the ledger's history it was written (number of
events and their chain). Then one line per attempt, failures included, so that the counts can be added up from the file
alone. The signature is CMS (RFC 5652), detached, by a station certificate of the CA: `openssl cms -verify` reads it.
It says that the holder of this CA's folder wrote the file, not that a device told the truth.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from mtls.errors import ConfigFault
from mtls.keystore import new_key, read_limited, save_key, write_public
from mtls.profiles import STATION, spki_sha256
from provisioning.ca import CertificateAuthority, issuable_id
from provisioning.ca_folder import certificate_at
from provisioning.ledger import Attempt, CertificateRow, Ledger, Outcome, Unit, utc_now
from provisioning.signing import pem

FORMAT = 1
MAX_MANIFEST_BYTES = 1024**3  # two million attempts


def manifest_rows(ledger: Ledger, work_order: str | None) -> Iterator[dict[str, Any]]:
    """The head, then every attempt of a work order, or of all."""
    events = ledger.events()
    head = {
        "manifest": FORMAT,
        "work_order": work_order,
        "events": len(events),
        "chain": events[-1].chain if events else "",
    }
    yield {**head, "counts": ledger.counts(work_order).as_row()}
    units = {unit.id: unit for unit in ledger.units()}
    certificates = {
        row.unit_id: row for row in ledger.certificates() if row.unit_id is not None and row.der is not None
    }
    for attempt in ledger.attempts_of(work_order):
        unit = units.get(attempt.unit_id) if attempt.unit_id is not None else None
        yield _row(attempt, unit, None if unit is None else certificates.get(unit.id))


def _row(attempt: Attempt, unit: Unit | None, certificate: CertificateRow | None) -> dict[str, Any]:
    return {
        "attempt": attempt.id,
        "work_order": attempt.work_order,
        "station": attempt.station,
        "port": attempt.port,
        "hardware_serial": attempt.hardware_serial,
        "uid": attempt.uid,
        "model": attempt.model,
        "firmware": attempt.firmware,
        "attributes": json.loads(attempt.attributes),
        "outcome": attempt.outcome,
        "step": attempt.step,
        "reason": attempt.reason,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "device_id": unit.device_id if unit else None,
        "unit_state": unit.state if unit else None,
        "spki_sha256": unit.spki_sha256 if unit else None,
        "certificate_serial": certificate.certificate_serial if certificate else None,
        "fingerprint_sha256": certificate.fingerprint_sha256 if certificate else None,
        "not_after": certificate.not_after if certificate else None,
        "certificate_state": certificate.state if certificate else None,
    }


def write_manifest(ca: CertificateAuthority, out: Path, work_order: str | None) -> Path:
    """Write the manifest and its signature `OUT.p7s`; returns the signature's path."""
    data = "".join(json.dumps(row) + "\n" for row in manifest_rows(ca.ledger, work_order)).encode("ascii")
    certificate, key = station_identity(ca)
    signed = pkcs7.PKCS7SignatureBuilder().set_data(data).add_signer(certificate, key, hashes.SHA256())
    options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary]
    signature = signed.add_certificate(ca.issuing).sign(Encoding.PEM, options)
    beside = out.with_name(f"{out.name}.p7s")
    write_public(out, data)
    write_public(beside, signature)
    return beside


def station_identity(ca: CertificateAuthority) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The station's own certificate and key from the CA's folder; made when there is none, or it has expired."""
    folder, path = ca.folder, ca.folder.path / "station.crt"
    if path.exists():
        certificate = certificate_at(path)
        key = folder.load("station", ca.passphrase)
        if spki_sha256(key.public_key()) != spki_sha256(certificate):
            raise ConfigFault(f"the station's key in {folder.path} does not belong to station.crt", hint=f"rm {path}")
        if certificate.not_valid_after_utc > utc_now():
            return certificate, key
    key = new_key()
    key_file = folder.key("station", insecure=folder.insecure)
    key_file.unlink(missing_ok=True)
    save_key(key_file, key, None if folder.insecure else ca.passphrase())
    certificate = ca.issue(issuable_id("station"), STATION, key.public_key())[0]
    write_public(path, pem(certificate))
    return certificate, key


def manifest_problems(file: Path, ledger: Ledger) -> list[str]:
    """What in a manifest disagrees with itself or with the ledger, which may have gone on since."""
    rows = _rows_of(file)
    if not rows or rows[0].get("manifest") != FORMAT:
        return [f"{file} is no manifest of format {FORMAT}"]
    head, attempts = rows[0], rows[1:]
    return [*_head_problems(head, attempts, ledger), *_line_problems(attempts, ledger)]


def _rows_of(file: Path) -> list[dict[str, Any]]:
    try:
        rows = [json.loads(line) for line in read_limited(file, MAX_MANIFEST_BYTES).splitlines()]
    except ValueError:
        rows = []
    return rows if all(isinstance(row, dict) for row in rows) else []


def _head_problems(head: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], ledger: Ledger) -> Iterator[str]:
    outcomes = [row.get("outcome") for row in attempts]
    counted = {"started": len(outcomes), **{str(outcome): outcomes.count(outcome) for outcome in Outcome}}
    counts = head.get("counts")
    # A manifest from before an outcome existed does not count it.
    if not isinstance(counts, dict) or dict.fromkeys(counted, 0) | counts != counted:
        yield f"the manifest's head counts {counts}, its lines are {counted}"
    events, number = ledger.events(), head.get("events")
    if type(number) is not int or not 0 < number <= len(events):
        yield f"the manifest was written after {number} events, the ledger has {len(events)}"
    elif events[number - 1].chain != head.get("chain"):
        yield "the ledger's history up to the manifest is not the one that the manifest saw"


def _line_problems(attempts: Sequence[Mapping[str, Any]], ledger: Ledger) -> Iterator[str]:
    known = {row["attempt"]: row for row in manifest_rows(ledger, None) if "attempt" in row}
    changing = {"unit_state", "certificate_state"}
    for row in attempts:
        now = json.loads(json.dumps(known.get(row.get("attempt"), {})))
        if row.get("outcome") == Outcome.OPEN:
            continue
        differing = sorted(name for name in row.keys() | now.keys() if row.get(name) != now.get(name))
        if set(differing) - changing:
            yield f"attempt {row.get('attempt')} differs between manifest and ledger: {', '.join(differing)}"
