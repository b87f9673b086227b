"""CRLs as files that any web server can hand out, renewed by a timer long before they end.

A folder gets `crl.pem`, all CRLs of the CA for gateways, and `<key id>.crl`, one in DER per issuing CA, which is what a
certificate's distribution point names. Each is replaced atomically. Whether one is due is read from the CRL itself and
from the ledger; the root's cannot be renewed without its key, so that it is told instead, early enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mtls.errors import Fault
from mtls.keystore import write_public
from mtls.profiles import common_name, spki_sha256
from provisioning.ca import CertificateAuthority
from provisioning.ca_folder import ISSUING, ROOT, certificate_at
from provisioning.ca_settings import key_id
from provisioning.crls import crl_at, crls_at, next_update
from provisioning.ledger import CertificateState

RENEW_AT = 0.5  # of its life: half of it is left for a timer that fails and a person who notices


@dataclass(frozen=True, slots=True)
class Stale:
    """A CRL that ends too soon, or has ended."""

    issuer: str
    next_update: datetime
    left: timedelta

    def __str__(self) -> str:
        when = f"{self.next_update:%Y-%m-%dT%H:%M:%SZ}"
        if self.left <= timedelta(0):
            return f"the CRL of {self.issuer} ended at {when}: gateways that know nothing newer refuse its devices"
        return f"the CRL of {self.issuer} ends at {when}, in {self.left / timedelta(hours=1):.0f} h"


def due(ca: CertificateAuthority, now: datetime) -> list[str]:
    """Why a new CRL is wanted: one sentence per issuing CA; none when all is well."""
    reasons = []
    for role in (ISSUING, *ca.folder.former(now)):
        certificate = certificate_at(ca.folder.certificate(role))
        name = common_name(certificate.subject)
        if not ca.folder.crl(role).exists():
            reasons.append(f"{name} has no CRL yet")
            continue
        crl = crl_at(ca.folder.crl(role))
        revoked = ca.ledger.certificates(issuer_spki_sha256=spki_sha256(certificate), state=CertificateState.REVOKED)
        missing = {int(row.certificate_serial, 16) for row in revoked} - {entry.serial_number for entry in crl}
        if missing:
            reasons.append(f"{name} has revoked {len(missing)} more")
        elif now >= crl.last_update_utc + (next_update(crl) - crl.last_update_utc) * RENEW_AT:
            reasons.append(f"half the life of {name}'s CRL is over")
    return reasons


def serve(ca: CertificateAuthority, out: Path, now: datetime) -> list[Path]:
    """Write the CRLs that are in the CA's folder into `out`; the files."""
    if not out.is_dir():
        raise Fault(f"{out} is not a folder", hint=f"mkdir -p {out}")
    files = {out / "crl.pem": ca.folder.crl_bundle.read_bytes()}
    for role in (ROOT, ISSUING, *ca.folder.former(now)):
        crl = crl_at(ca.folder.crl(role))
        files[out / f"{key_id(certificate_at(ca.folder.certificate(role)))}.crl"] = crl.public_bytes(Encoding.DER)
    for path, content in files.items():
        write_public(path, content)
    return list(files)


def stale(files: Sequence[Path], now: datetime, within: timedelta) -> list[Stale]:
    """Every CRL in `files` that ends within a time, ended ones too."""
    found: list[x509.CertificateRevocationList] = [crl for file in files for crl in crls_at(file)]
    return [
        Stale(common_name(crl.issuer), next_update(crl), next_update(crl) - now)
        for crl in found
        if next_update(crl) - now <= within
    ]
