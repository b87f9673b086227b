"""One signature in the right order, and whether the clock may date it.

Order: the certificate serial is committed, the profile builds, the same profile checks what was built, the
certificate is committed, and only then returned. The caller holds the CA's lock. This module knows no files
and no passphrases.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

import provisioning
from mtls.errors import Fault
from mtls.profiles import (
    ROOT_CA,
    Issuer,
    Profile,
    fingerprint_sha256,
    random_certificate_serial,
    spki_sha256,
)
from mtls.terminal import sanitise
from provisioning.ledger import Ledger, SerialTaken, Unit

CLOCK_TOLERANCE = timedelta(minutes=1)  # what a time service may step back; notBefore is backdated by more
SERIAL_TRIES = 3  # two equal 128-bit draws are a broken random generator, not bad luck


def program_date() -> datetime:
    """When this program was put on this machine: no honest clock is behind it."""
    return datetime.fromtimestamp(Path(str(provisioning.__file__)).stat().st_mtime, UTC)


def clock_fault(now: datetime, last_signing: datetime | None, built: datetime) -> Fault | None:
    """Why this clock may not date a certificate, or None. It cannot see a clock that runs ahead."""
    floors = {"the last signature in the ledger": last_signing, "this program's installation": built}
    for name, floor in floors.items():
        if floor is not None and now < floor - CLOCK_TOLERANCE:
            return Fault(
                f"the clock says {now:%Y-%m-%dT%H:%M:%SZ}, which is before {name} at {floor:%Y-%m-%dT%H:%M:%SZ}",
                hint="set the clock; if it is right and the record is wrong, repeat with --accept-clock",
            )
    return None


def refuse_clock(now: datetime, last_signing: datetime | None, *, accept_clock: bool) -> None:
    """Raise what is wrong with this clock, unless the operator takes it as it is."""
    fault = clock_fault(now, last_signing, program_date())
    if fault is not None and not accept_clock:
        raise fault


def sign(
    ledger: Ledger,
    issuer: Issuer,
    profile: Profile,
    subject: str,
    public_key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    unit: Unit | None = None,
    wishes: Mapping[str, Any] | None = None,
) -> x509.Certificate:
    """Certify `public_key` as `subject`; `wishes` are `Profile.build`'s optional arguments."""
    issuer_spki = spki_sha256(issuer.certificate)
    row, certificate_serial = _reserve(ledger, issuer_spki, profile, subject, public_key, unit)
    try:
        certificate = profile.build(
            subject_cn=subject,
            public_key=public_key,
            issuer=issuer,
            now=now,
            certificate_serial=certificate_serial,
            **(wishes or {}),
        )
    except ValueError as error:  # a name that X.509 does not take; the serial is spent and soon revoked
        raise Fault(f"no certificate for {sanitise(subject)}: {sanitise(str(error))}") from None
    _refuse_mismatch(profile, certificate, issuer.certificate)
    _record(ledger, row, certificate)
    return certificate


def self_signed(ledger: Ledger, subject: str, now: datetime, key: ec.EllipticCurvePrivateKey) -> Issuer:
    """A new root CA with this new key, in the ledger like everything else."""
    public_key = key.public_key()
    row, certificate_serial = _reserve(ledger, spki_sha256(public_key), ROOT_CA, subject, public_key, None)
    certificate = ROOT_CA.build(
        subject_cn=subject,
        public_key=public_key,
        issuer=None,
        key=key,
        now=now,
        certificate_serial=certificate_serial,
    )
    _refuse_mismatch(ROOT_CA, certificate, None)
    _record(ledger, row, certificate)
    return Issuer(certificate, key)


def serial_hex(certificate_serial: int) -> str:
    """A certificate serial as the ledger and `certificate_serial_hex` write it: lower case, whole bytes."""
    digits = f"{certificate_serial:x}"
    return digits if len(digits) % 2 == 0 else f"0{digits}"


def serial_of(text: str) -> str:
    """A certificate serial as people type it (colons, upper case, leading zeros), in the ledger's form."""
    digits = text.replace(":", "").strip()
    if not re.fullmatch(r"(0[xX])?[0-9A-Fa-f]{1,42}", digits):
        raise Fault(f"{sanitise(text)} is not a certificate serial in hex", hint="mqtt-provision ledger list --dir CA")
    return serial_hex(int(digits, 16))


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates as PEM, one after another."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _reserve(
    ledger: Ledger,
    issuer_spki_sha256: str,
    profile: Profile,
    subject: str,
    public_key: ec.EllipticCurvePublicKey,
    unit: Unit | None,
) -> tuple[int, int]:
    for _ in range(SERIAL_TRIES):
        certificate_serial = random_certificate_serial()
        try:
            row = ledger.reserve_certificate(
                issuer_spki_sha256=issuer_spki_sha256,
                certificate_serial=serial_hex(certificate_serial),
                subject=subject,
                profile=profile.name,
                spki_sha256=spki_sha256(public_key),
                unit=unit,
            )
        except SerialTaken:
            continue
        return row, certificate_serial
    raise Fault(
        f"{SERIAL_TRIES} random certificate serials in a row were used before",
        hint="the random generator of this machine is broken: do not sign with it",
    )


def _refuse_mismatch(profile: Profile, certificate: x509.Certificate, issuer: x509.Certificate | None) -> None:
    mismatches = profile.check(certificate, issuer)
    if mismatches:
        raise Fault(f"the new certificate breaks its own profile {profile.name}: {mismatches[0]}")


def _record(ledger: Ledger, row: int, certificate: x509.Certificate) -> None:
    ledger.record_certificate(
        row,
        der=certificate.public_bytes(Encoding.DER),
        fingerprint_sha256=fingerprint_sha256(certificate),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )
