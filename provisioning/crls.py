"""The CRLs of a CA: the next one of an issuer, one carried over, one brought from elsewhere, many in one file.

A CRL's number is committed to the ledger before it is signed, and what was revoked once stays revoked: the entries of
the CRL before count too, because a ledger from a backup may be older than the CRL beside it. Ours carry no issuing
distribution point, so a leaf may name any URL (RFC 5280 §6.3.3); one CRL of full scope per issuing CA.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mtls.errors import ConfigFault, Fault
from mtls.identity import UNREADABLE
from mtls.keystore import read_limited, write_public
from mtls.profiles import Issuer, common_name, spki_sha256
from mtls.revocation import RevokedEntry, build_crl, is_crl_of
from provisioning.ca_folder import CaFolder
from provisioning.ledger import CertificateRow, CertificateState, Ledger, as_moment

MAX_CRL_BYTES = 64 * 1024 * 1024  # about a million entries
ROOT_CRL_LIFETIME = timedelta(days=365)  # the root lists issuing CAs only, and its key is seldom at hand


@dataclass(frozen=True, slots=True)
class CrlLine:
    """One CRL in a few words."""

    issuer: str
    number: int
    revoked: int
    next_update: datetime

    def as_row(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"next_update": self.next_update.isoformat()}


def crl_line(crl: x509.CertificateRevocationList) -> CrlLine:
    """What a person wants to know of a CRL."""
    return CrlLine(common_name(crl.issuer), crl_number(crl), len(crl), next_update(crl))


def next_crl(
    path: Path, issuer: Issuer, ledger: Ledger, now: datetime, lifetime: timedelta, *, accept_clock: bool = False
) -> x509.CertificateRevocationList:
    """Sign the CRL that follows the one at `path`, and put it there; the caller holds the CA's lock."""
    spki = spki_sha256(issuer.certificate)
    ledger.revoke_orphans(spki)
    revoked = ledger.certificates(issuer_spki_sha256=spki, state=CertificateState.REVOKED)
    previous = crl_at(path) if path.exists() else None
    number = ledger.reserve_crl_number(spki, above=0 if previous is None else crl_number(previous))
    entries = _with_entries_of(previous, [_entry(row) for row in revoked])
    if previous is not None and accept_clock and previous.last_update_utc > now:
        previous = None  # dated by a clock that ran ahead: following it would lock the fleet out until then
    crl = build_crl(issuer, entries, now=now, number=number, lifetime=lifetime, previous=previous)
    write_public(path, crl.public_bytes(Encoding.PEM))
    return crl


def carried_crl(folder: CaFolder, root: x509.Certificate, now: datetime) -> x509.CertificateRevocationList:
    """The root's last CRL, for as long as it is valid; the root's key is away."""
    crl = crl_at(folder.crl("root"))
    if next_update(crl) <= now:
        raise ConfigFault(
            f"the CRL of {common_name(root.subject)} in {folder.path} has expired and the root's key is not there",
            hint="sign a new one where the root's key is, then: mqtt-provision crl --dir CA --root-crl FILE --out FILE",
        )
    return crl


def replace_crl(
    path: Path, brought: x509.CertificateRevocationList, issuer: x509.Certificate
) -> x509.CertificateRevocationList:
    """Put a CRL at `path` that was signed elsewhere; a Fault unless its issuer signed it and its number is not lower.

    The same CRL again changes nothing.
    """
    if not is_crl_of(brought, issuer):
        raise Fault(
            f"the CRL that was brought is not signed by {common_name(issuer.subject)}",
            hint="take the root.crl that was made with this CA's root",
        )
    if path.exists() and crl_number(crl_at(path)) > crl_number(brought):
        raise Fault(
            f"the CRL that was brought has number {crl_number(brought)}, the one here is newer",
            hint="a CRL is never replaced by an older one: fetch the newest",
        )
    write_public(path, brought.public_bytes(Encoding.PEM))
    return brought


def merged(files: Iterable[Path]) -> list[x509.CertificateRevocationList]:
    """The newest CRL of every issuer in `files`, in order of first appearance.

    Signatures are not verified: who loads the result does that, with the CAs that it trusts.
    """
    newest: dict[tuple[bytes, bytes], x509.CertificateRevocationList] = {}
    for file in files:
        for crl in crls_at(file):
            key = (crl.issuer.public_bytes(), _authority_key(crl))
            known = newest.get(key)
            if known is None or crl_number(crl) > crl_number(known):
                newest[key] = crl
    return list(newest.values())


def crls_pem(crls: Iterable[x509.CertificateRevocationList]) -> bytes:
    """CRLs as PEM, one after another."""
    return b"".join(crl.public_bytes(Encoding.PEM) for crl in crls)


def crl_at(path: Path) -> x509.CertificateRevocationList:
    """The one CRL in a PEM file."""
    found = crls_at(path)
    if len(found) != 1:
        raise ConfigFault(f"{path} holds {len(found)} CRLs, one is wanted", hint="take the file of one CA")
    return found[0]


def crls_at(path: Path) -> list[x509.CertificateRevocationList]:
    """Every CRL in a PEM file; ConfigFault when there is none."""
    end = b"-----END X509 CRL-----"
    blocks = [block + end for block in read_limited(path, MAX_CRL_BYTES).split(end)[:-1]]
    try:
        found = [x509.load_pem_x509_crl(block) for block in blocks]
    except UNREADABLE:
        found = []
    if not found:
        raise ConfigFault(f"{path} is not a CRL in PEM", hint="restore the last CRL that was published")
    return found


def crl_number(crl: x509.CertificateRevocationList) -> int:
    """The cRLNumber; 0 without one."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def next_update(crl: x509.CertificateRevocationList) -> datetime:
    """nextUpdate; a CRL without one counts as stale from its beginning."""
    return crl.next_update_utc or crl.last_update_utc


def _authority_key(crl: x509.CertificateRevocationList) -> bytes:
    try:
        found = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        found = None
    return found or b""


def _entry(row: CertificateRow) -> RevokedEntry:
    return RevokedEntry(
        certificate_serial=int(row.certificate_serial, 16),
        revoked_at=as_moment(row.revoked_at or row.reserved_at),
        # RFC 5280 §5.3.1: unspecified is said by leaving the extension away
        reason=None if row.reason == "unspecified" else x509.ReasonFlags(row.reason),
    )


def _with_entries_of(
    previous: x509.CertificateRevocationList | None, entries: list[RevokedEntry]
) -> list[RevokedEntry]:
    """The entries and those that only the previous CRL knows: what was revoked once stays revoked."""
    known = {entry.certificate_serial for entry in entries}
    forgotten = [old for old in previous or () if old.serial_number not in known]
    return entries + [RevokedEntry(old.serial_number, old.revocation_date_utc, _reason(old)) for old in forgotten]


def _reason(revoked: x509.RevokedCertificate) -> x509.ReasonFlags | None:
    try:
        return revoked.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return None
