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
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mtls.errors import ConfigFault, Fault
from mtls.identity import DeviceId
from mtls.keystore import new_key, save_key, write_public
from mtls.profiles import (
    DEVICE_OPERATIONAL,
    GATEWAY_SERVER,
    ISSUING_CA,
    Issuer,
    Profile,
    spki_sha256,
)
from mtls.terminal import sanitise
from provisioning.ca_folder import ISSUING, ROOT, CaFolder, certificate_at, new_folder
from provisioning.crls import (
    ROOT_CRL_LIFETIME,
    CrlLine,
    carried_crl,
    crl_at,
    crl_line,
    crls_pem,
    next_crl,
    replace_crl,
)
from provisioning.ledger import CertificateRow, CertificateState, Ledger, Unit, utc_now
from provisioning.pkcs11_key import HsmKey
from provisioning.signing import pem, refuse_clock, self_signed, sign

ISSUABLE = re.compile(r"[a-z0-9][a-z0-9._:-]{0,63}")
MAX_OU_CHARS = 64  # RFC 5280 appendix A, ub-organizational-unit-name
ID_HINT = "1 to 64 characters: lower-case letters, digits and . _ : -, a letter or digit first"
ISSUING_CRL_LIFETIME = timedelta(days=7)


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
        self.root = certificate_at(folder.certificate(ROOT))
        self.issuing = certificate_at(folder.certificate(ISSUING))
        self.settings = folder.settings
        self.passphrase = functools.cache(passphrase)  # root and issuing key share it: asked for once
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
        refuse_clock(now, None, accept_clock=accept_clock)
        with new_folder(folder) as draft_path:
            draft = CaFolder(draft_path)
            issuing_key = new_key()
            with Ledger.create(draft.ledger, clock=clock) as ledger:
                root = self_signed(ledger, f"{name} root CA", now, new_key())
                certificate = sign(ledger, root, ISSUING_CA, f"{name} issuing CA", issuing_key.public_key(), now=now)
            issuing = Issuer(certificate, issuing_key)
            for role, issuer in {ROOT: root, ISSUING: issuing}.items():
                write_public(draft.certificate(role), pem(issuer.certificate))
                save_key(draft.key(role, insecure=passphrase is None), issuer.key, passphrase)
            write_public(draft.bundle, pem(root.certificate, issuing.certificate))
            with cls.open(draft_path, lambda: passphrase or b"", clock=clock) as ca:
                ca.write_crl(accept_clock=accept_clock)

    @classmethod
    def open(cls, folder: Path, passphrase: Callable[[], bytes], *, clock: Callable[[], datetime] = utc_now) -> Self:
        """Open a CA; `passphrase` is called at most once per key, and only when a signature needs it."""
        files = CaFolder(folder)
        if (folder / "next.csr").exists() and not files.certificate(ISSUING).exists():
            hint = "the root signs next.csr, then: mqtt-provision ca install FOLDER --dir CA"
            raise ConfigFault(f"the CA in {folder} has no certificate yet", hint=hint)
        ledger = Ledger.open(files.ledger, clock=clock)
        try:
            return cls(files, ledger, passphrase, clock)
        except BaseException:
            ledger.close()
            raise

    def close(self) -> None:
        """Close the ledger and forget the keys."""
        for issuer in self._issuers.values():
            if isinstance(issuer.key, HsmKey):
                issuer.key.close()
        self._issuers.clear()
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def unlock(self) -> None:
        """Read the issuing key now, so that a wrong passphrase shows before a device is touched."""
        self._issuer(ISSUING)

    @property
    def bundle_pem(self) -> bytes:
        """Root, issuing CA and former issuing CAs, what goes out as `ca.crt`."""
        former = [certificate_at(self.folder.certificate(role)) for role in self.folder.former(self._clock())]
        return pem(self.root, self.issuing, *former)

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
            wishes={
                "ou": ou,
                "spiffe_domain": spiffe_domain,
                "crl_url": crl_url or self.settings.crl_url_of(self.issuing),
            },
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
            wishes={"dns": tuple(dns), "ips": tuple(ips), "crl_url": crl_url or self.settings.crl_url_of(self.issuing)},
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
            issuer = self._issuer(ISSUING)
            self.ledger.revoke_orphans(spki_sha256(issuer.certificate))
            self._refuse_beyond_quota()
            return sign(self.ledger, issuer, profile, subject, public_key, now=now, unit=unit, wishes=wishes)

    def _refuse_beyond_quota(self) -> None:
        quota = self.settings.quota
        if quota is not None and self.ledger.signed_by(spki_sha256(self.issuing)) >= quota:
            raise Fault(
                f"the issuing CA has signed the {quota} certificates of its quota",
                hint="a new issuing CA has a new quota: mqtt-provision ca rotate --dir CA",
            )

    def _judged_now(self, *, accept_clock: bool) -> datetime:
        now = self._clock()
        refuse_clock(now, self.ledger.last_signing(), accept_clock=accept_clock)
        if now >= self.issuing.not_valid_after_utc:
            raise Fault(
                f"the issuing CA expired on {self.issuing.not_valid_after_utc:%Y-%m-%d}",
                hint="make a new one: mqtt-provision ca rotate --dir CA",
            )
        return now

    def _issuer(self, role: str) -> Issuer:
        if role not in self._issuers:
            self._issuers[role] = self.folder.issuer(role, self.passphrase)
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
        """Sign the CRLs of root, issuing CA and former issuing CAs, and write all of them into one PEM, also to `out`.

        When the root's key is away its last CRL is carried over while it is valid.
        """
        with self.folder.locked():
            now = self._judged_now(accept_clock=accept_clock)
            root_is_old = not self.folder.has_key(ROOT)
            roles = [ISSUING, *self.folder.former(now)]
            made = [self._crl(role, now, lifetime, accept_clock=accept_clock) for role in roles]
            root = (
                carried_crl(self.folder, self.root, now)
                if root_is_old
                else self._crl(ROOT, now, max(lifetime, ROOT_CRL_LIFETIME), accept_clock=accept_clock)
            )
            bundle = crls_pem([root, *made])
            write_public(self.folder.crl_bundle, bundle)
            if out is not None:  # under the lock, so that an older bundle never overtakes a newer one
                write_public(out, bundle)
        return CrlReport(tuple(crl_line(crl) for crl in (root, *made)), root_is_old)

    def _crl(
        self, role: str, now: datetime, lifetime: timedelta, *, accept_clock: bool
    ) -> x509.CertificateRevocationList:
        return next_crl(
            self.folder.crl(role), self._issuer(role), self.ledger, now, lifetime, accept_clock=accept_clock
        )

    def take_root_crl(self, file: Path) -> CrlLine:
        """Put a newer CRL of the root into the folder, as it came from where the root's key is kept."""
        with self.folder.locked():
            return crl_line(replace_crl(self.folder.crl(ROOT), crl_at(file), self.root))


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
