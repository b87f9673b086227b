"""A certificate authority of two levels: the root signs its issuing CA and CRL, the issuing CA all the rest.

One signer at a time (a lock on the folder), and this order for every signature: the clock is judged, the
certificate serial is committed to the ledger, the certificate is built from a profile and checked against it,
the result is committed, and only then handed out. A crash at any point costs a serial and repeats none; the
next signer revokes what was left reserved. Names come from the caller, never from a CSR. Keys are read when
they are needed: revoking needs none, and the root's may lie in a safe until a CRL of its own is due.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from mtls.errors import ConfigFault, Fault
from mtls.identity import DeviceId
from mtls.keystore import new_key, read_limited, save_key, write_public
from mtls.profiles import (
    DEVICE_OPERATIONAL,
    GATEWAY_SERVER,
    ISSUING_CA,
    Issuer,
    Profile,
    common_name,
    spki_sha256,
)
from mtls.revocation import RevokedEntry, build_crl
from mtls.terminal import sanitise
from provisioning.ca_folder import CaFolder, new_folder
from provisioning.ledger import (
    CertificateRow,
    CertificateState,
    Ledger,
    Unit,
    as_moment,
    utc_now,
)
from provisioning.signing import clock_fault, pem, program_date, self_signed, sign

MAX_CRL_BYTES = 64 * 1024 * 1024  # about a million entries
ISSUABLE = re.compile(r"[a-z0-9][a-z0-9._:-]{0,63}")
MAX_OU_CHARS = 64  # RFC 5280 appendix A, ub-organizational-unit-name
ID_HINT = "1 to 64 characters: lower-case letters, digits and . _ : -, a letter or digit first"
ISSUING_CRL_LIFETIME = timedelta(days=7)
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


@dataclass(frozen=True, slots=True)
class CrlReport:
    """What `write_crl` wrote, the root's first."""

    crls: tuple[CrlLine, ...]
    root_is_old: bool  # the root's key was away, its last CRL was carried over


class CertificateAuthority:
    """An open CA folder; use as a context manager or close it."""

    def __init__(
        self,
        folder: CaFolder,
        ledger: Ledger,
        passphrase: Callable[[], bytes],
        clock: Callable[[], datetime],
    ) -> None:
        self.folder = folder
        self.ledger = ledger
        self.root = _certificate(folder.root_certificate)
        self.issuing = _certificate(folder.issuing_certificate)
        self._passphrase = functools.cache(passphrase)  # root and issuing key share it: asked for once
        self._clock = clock
        self._issuers: dict[str, Issuer] = {}

    @classmethod
    def init(
        cls,
        folder: Path,
        name: str,
        *,
        passphrase: bytes | None,
        accept_clock: bool = False,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Make root, issuing CA, ledger and two empty CRLs; `passphrase=None` leaves the keys unencrypted.

        The folder must not exist or be empty; it is there whole or not at all.
        """
        now = clock()
        fault = clock_fault(now, None, program_date())
        if fault is not None and not accept_clock:
            raise fault
        with new_folder(folder) as draft_path:
            draft = CaFolder(draft_path)
            issuing_key = new_key()
            with Ledger.create(draft.ledger, clock=clock) as ledger:
                root = self_signed(ledger, f"{name} root CA", now)
                certificate = sign(ledger, root, ISSUING_CA, f"{name} issuing CA", issuing_key.public_key(), now=now)
            issuing = Issuer(certificate, issuing_key)
            for role, issuer in {"root": root, "issuing": issuing}.items():
                write_public(draft_path / f"{role}.crt", pem(issuer.certificate))
                save_key(draft.key(role, insecure=passphrase is None), issuer.key, passphrase)
            write_public(draft.bundle, pem(root.certificate, issuing.certificate))
            with cls.open(draft_path, lambda: passphrase or b"", clock=clock) as ca:
                ca.write_crl(accept_clock=accept_clock)

    @classmethod
    def open(cls, folder: Path, passphrase: Callable[[], bytes], *, clock: Callable[[], datetime] = utc_now) -> Self:
        """Open a CA; `passphrase` is called at most once per key, and only when a signature needs it."""
        files = CaFolder(folder)
        ledger = Ledger.open(files.ledger, clock=clock)
        try:
            return cls(files, ledger, passphrase, clock)
        except BaseException:
            ledger.close()
            raise

    def close(self) -> None:
        """Close the ledger and forget the keys."""
        self._issuers.clear()
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def unlock(self) -> None:
        """Read the issuing key now, so that a wrong passphrase shows before a device is touched."""
        self._issuer("issuing")

    @property
    def bundle_pem(self) -> bytes:
        """Root and issuing CA, what goes out as `ca.crt`."""
        return pem(self.root, self.issuing)

    # --- issuing

    def issue(
        self,
        device_id: DeviceId,
        profile: Profile = DEVICE_OPERATIONAL,
        public_key: ec.EllipticCurvePublicKey | None = None,
        *,
        ou: str | None = None,
        spiffe_domain: str | None = None,
        crl_url: str | None = None,
        unit: Unit | None = None,
        accept_clock: bool = False,
    ) -> list[x509.Certificate]:
        """Certify a public key for a device or service; returns the leaf and the issuing CA.

        That the holder has the private key is for the caller to prove (a CSR's signature, PROVE). The id must
        be lower-case: clouds and case-blind tools would else make two devices one.
        """
        if public_key is None:
            raise Fault(f"no public key for {device_id}")
        _refuse_upper_case(device_id)
        if ou is not None and not (1 <= len(ou) <= MAX_OU_CHARS and ou.isprintable()):
            raise Fault(
                f"'{sanitise(ou)}' cannot be an organizational unit", hint=f"1 to {MAX_OU_CHARS} printable characters"
            )
        leaf = self._signed(
            profile,
            str(device_id),
            public_key,
            accept_clock=accept_clock,
            unit=unit,
            wishes={"ou": ou, "spiffe_domain": spiffe_domain, "crl_url": crl_url},
        )
        return [leaf, self.issuing]

    def issue_server(
        self,
        public_key: ec.EllipticCurvePublicKey,
        *,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        crl_url: str | None = None,
        accept_clock: bool = False,
    ) -> list[x509.Certificate]:
        """Certify a gateway's key for DNS names and addresses; the first of them is the subject."""
        if not dns and not ips:
            raise Fault("a server certificate needs at least one name or address", hint="add --dns or --ip")
        leaf = self._signed(
            GATEWAY_SERVER,
            [*dns, *ips][0],
            public_key,
            accept_clock=accept_clock,
            unit=None,
            wishes={"dns": tuple(dns), "ips": tuple(ips), "crl_url": crl_url},
        )
        return [leaf, self.issuing]

    def _signed(
        self,
        profile: Profile,
        subject: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        accept_clock: bool,
        unit: Unit | None,
        wishes: dict[str, object],
    ) -> x509.Certificate:
        with self.folder.locked():
            now = self._judged_now(accept_clock=accept_clock)
            issuer = self._issuer("issuing")
            self.ledger.revoke_orphans(spki_sha256(issuer.certificate))
            return sign(self.ledger, issuer, profile, subject, public_key, now=now, unit=unit, wishes=wishes)

    def _judged_now(self, *, accept_clock: bool) -> datetime:
        now = self._clock()
        fault = clock_fault(now, self.ledger.last_signing(), program_date())
        if fault is not None and not accept_clock:
            raise fault
        if now >= self.issuing.not_valid_after_utc:
            raise Fault(
                f"the issuing CA expired on {self.issuing.not_valid_after_utc:%Y-%m-%d}",
                hint="make a new CA: mqtt-provision ca init --dir CA",
            )
        return now

    def _issuer(self, role: str) -> Issuer:
        if role not in self._issuers:
            certificate = self.root if role == "root" else self.issuing
            key = self.folder.load(role, self._passphrase)
            if spki_sha256(key.public_key()) != spki_sha256(certificate):
                raise ConfigFault(
                    f"the {role} key in {self.folder.path} does not belong to {role}.crt",
                    hint="bring back the key and the certificate that were made together",
                )
            self._issuers[role] = Issuer(certificate, key)
        return self._issuers[role]

    # --- revoking

    def revoke(
        self, *, subject: str | None = None, certificate_serial: str | None = None, reason: str = "unspecified"
    ) -> list[CertificateRow]:
        """Revoke every issued certificate of a subject, or the one with a serial; needs no key.

        Revoked already counts as done. It takes effect with the next CRL that a gateway loads.
        """
        found = self.ledger.certificates(subject=subject, certificate_serial=certificate_serial)
        found = [row for row in found if row.state is not CertificateState.RESERVED]
        if not found:
            what = f"certificate serial {certificate_serial}" if subject is None else f"{subject}"
            raise Fault(f"no certificate was issued for {what}", hint="mqtt-provision ledger list --dir CA")
        return [self.ledger.revoke(row.id, reason) for row in found]

    def write_crl(
        self, out: Path | None = None, *, lifetime: timedelta = ISSUING_CRL_LIFETIME, accept_clock: bool = False
    ) -> CrlReport:
        """Sign both CRLs and write them into the folder, and to `out` root's and issuing CA's in one PEM.

        When the root's key is away its last CRL is carried over while it is valid.
        """
        with self.folder.locked():
            now = self._judged_now(accept_clock=accept_clock)
            root_is_old = not self.folder.key("root", insecure=self.folder.insecure).exists()
            root = (
                self._carried_root_crl(now)
                if root_is_old
                else self._crl("root", now, lifetime, accept_clock=accept_clock)
            )
            issuing = self._crl("issuing", now, lifetime, accept_clock=accept_clock)
            bundle = root.public_bytes(Encoding.PEM) + issuing.public_bytes(Encoding.PEM)
            write_public(self.folder.crl_bundle, bundle)
            if out is not None:  # under the lock, so that an older bundle never overtakes a newer one
                write_public(out, bundle)
        return CrlReport(tuple(_crl_line(crl) for crl in (root, issuing)), root_is_old)

    def _crl(
        self, role: str, now: datetime, lifetime: timedelta, *, accept_clock: bool
    ) -> x509.CertificateRevocationList:
        path = self.folder.root_crl if role == "root" else self.folder.issuing_crl
        issuer = self._issuer(role)
        issuer_spki = spki_sha256(issuer.certificate)
        self.ledger.revoke_orphans(issuer_spki)
        revoked = self.ledger.certificates(issuer_spki_sha256=issuer_spki, state=CertificateState.REVOKED)
        previous = _crl_at(path) if path.exists() else None
        # A ledger from a backup may be older than the CRL beside it: its number and its entries count too.
        number = self.ledger.reserve_crl_number(issuer_spki, above=0 if previous is None else _crl_number(previous))
        entries = _with_entries_of(previous, [_entry(row) for row in revoked])
        if previous is not None and accept_clock and previous.last_update_utc > now:
            previous = None  # dated by a clock that ran ahead: following it would lock the fleet out until then
        lifetime = max(lifetime, ROOT_CRL_LIFETIME) if role == "root" else lifetime
        crl = build_crl(issuer, entries, now=now, number=number, lifetime=lifetime, previous=previous)
        write_public(path, crl.public_bytes(Encoding.PEM))
        return crl

    def _carried_root_crl(self, now: datetime) -> x509.CertificateRevocationList:
        crl = _crl_at(self.folder.root_crl)
        if crl.next_update_utc is None or crl.next_update_utc <= now:
            raise ConfigFault(
                f"the root's CRL in {self.folder.path} has expired and the root's key is not there",
                hint="bring root.key back for this one command: the whole fleet needs the root's CRL",
            )
        return crl


def issuable_id(text: str) -> DeviceId:
    """An id that this CA puts into certificates: a DeviceId in lower case; a fault says what is wrong."""
    try:
        device_id = DeviceId(text)
    except ValueError as error:
        raise Fault(
            f"'{sanitise(text)}' cannot be a device id: {error}",
            hint=ID_HINT,
        ) from None
    _refuse_upper_case(device_id)
    return device_id


def _refuse_upper_case(device_id: DeviceId) -> None:
    if not ISSUABLE.fullmatch(str(device_id)):
        lower = str(device_id).lower()
        raise Fault(
            f"'{sanitise(str(device_id))}' is not an id that this CA issues",
            hint=f"ids are lower-case: {lower}" if ISSUABLE.fullmatch(lower) else ID_HINT,
        )


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_limited(path))
    except ValueError:
        raise ConfigFault(f"{path} is not a certificate in PEM", hint="restore it from a backup") from None


def _crl_at(path: Path) -> x509.CertificateRevocationList:
    try:
        return x509.load_pem_x509_crl(read_limited(path, MAX_CRL_BYTES))
    except ValueError:
        raise ConfigFault(f"{path} is not a CRL in PEM", hint="restore the last CRL that was published") from None


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


def _crl_number(crl: x509.CertificateRevocationList) -> int:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _crl_line(crl: x509.CertificateRevocationList) -> CrlLine:
    next_update = crl.next_update_utc or crl.last_update_utc  # ours always has one
    return CrlLine(common_name(crl.issuer), _crl_number(crl), len(crl), next_update)
